"""Linear compression of long vectors: pad, permute, random signs, sums of groups (DMin, arXiv 2412.08637).

With D entries and k groups: zeros are appended up to the next multiple of k, the entries are permuted, each is given a
random sign, and neighbours are summed to k numbers. It is a count sketch whose buckets are all of one size: P has one
entry of +-1 in each column. So nothing but a bucket and a sign of each entry is held, in place of a (k, D) matrix.

For two vectors, E <P g, P h> = <g, h>, and with m entries a group and N = k m the variance is
(m - 1) / (N - 1) (|g|^2 |h|^2 + <g, h>^2 - 2 sum_i g_i^2 h_i^2): at most about 2 / k for unit vectors. With k >= D
nothing is lost.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unlearn.data import draws
from unlearn.errors import InputError


@dataclass(frozen=True)
class SignedGroupSums:
    """The compression P of vectors with D entries to ``size`` numbers.

    Attributes:
        size: k, numbers that come out.
        groups: which of them an entry is added to, int32 of shape (D,).
        signs: with which sign, int8 of shape (D,), -1 or 1.

    >>> sums = SignedGroupSums.drawn(entries=5, size=2, seed=0)
    >>> sums.groups.tolist(), sums.signs.tolist()
    ([1, 0, 1, 1, 0], [-1, -1, 1, -1, 1])
    >>> out = torch.zeros(1, 2)
    >>> sums.add_to(out, torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    >>> out.tolist()
    [[3.0, -2.0]]
    """

    size: int
    groups: Tensor
    signs: Tensor

    @classmethod
    def drawn(cls, entries: int, size: int, seed: int) -> SignedGroupSums:
        """Return the compression that belongs to a seed.

        The draws are raw words of Philox, whose stream NumPy keeps through its versions, so that sketches saved with
        one version can be compared with those made by another.

        Args:
            entries: D.
            size: k.
            seed: any integer.

        Raises:
            InputError: size is below 1.
        """
        if size < 1:
            raise InputError(f"size is {size}; give at least 1 number for a sketch")
        per_group = -(-entries // size)
        order = permutation(per_group * size, seed)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        words = np.random.Philox(key=draws.derived_seed(seed, "sketch-signs")).random_raw(len(order))
        signs = np.where(words >> np.uint64(63), 1, -1).astype(np.int8)
        groups = (place[:entries] // per_group).astype(np.int32)
        return cls(size, torch.from_numpy(groups), torch.from_numpy(signs[place[:entries]]))

    def add_to(self, out: Tensor, vectors: Tensor, start: int = 0) -> None:
        """Add P v to ``out`` for vectors of which only the entries from ``start`` are given; the rest count as 0.

        Args:
            out: sums so far, shape (rows, size); changed.
            vectors: some entries of each vector, shape (rows, entries given).
            start: number of the first entry given.
        """
        here = slice(start, start + vectors.shape[1])
        out.index_add_(1, self.groups[here], vectors * self.signs[here])

    def to(self, device: torch.device) -> SignedGroupSums:
        """Return the same compression for vectors on a device."""
        return SignedGroupSums(self.size, self.groups.to(device), self.signs.to(device))

    @property
    def digest(self) -> str:
        """sha256 of the compression: equal where sketches may be compared."""
        total = hashlib.sha256(f"unlearn-signed-group-sums-1 {self.size}".encode())
        total.update(self.groups.cpu().numpy().astype("<i4").tobytes())
        total.update(self.signs.cpu().numpy().tobytes())
        return total.hexdigest()


def permutation(entries: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the numbers of the entries in their permuted order, shape (entries,).

    >>> sorted(permutation(4, seed=1).tolist())
    [0, 1, 2, 3]
    """
    words = np.random.Philox(key=draws.derived_seed(seed, "sketch-order")).random_raw(entries)
    return np.argsort(words, kind="stable")
