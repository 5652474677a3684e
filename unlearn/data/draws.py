"""Counter-based random draws: a number for a row depends on the seed and the row's id, and on nothing else.

Batch size, row order and process rank can not change such a draw, so sampled labels and label noise survive
shuffling, splitting and removal of other rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


def uniform(seed: int, ids: Iterable[str], stream: str = "") -> npt.NDArray[np.float64]:
    """Return one draw from [0, 1) per row id.

    Args:
        seed: any integer.
        ids: row ids, in any order.
        stream: a name that separates independent uses of one seed.

    Returns:
        Array of shape (rows,); the entry of a row does not depend on the other rows.

    >>> a, b = uniform(0, ["x", "y"])
    >>> float(uniform(0, ["y"])[0]) == float(b), bool(0 <= a < 1)
    (True, True)
    """
    key = f"{seed}\x1f{stream}\x1f".encode()
    counts = [int.from_bytes(hashlib.blake2b(key + i.encode(), digest_size=8).digest(), "big") >> 11 for i in ids]
    return np.array(counts, dtype=np.float64) * 2.0**-53


def derived_seed(seed: int, *parts: object) -> int:
    """Return a seed in [0, 2^63) that depends on ``seed`` and the parts, and on nothing else.

    >>> derived_seed(0, "step", 1) == derived_seed(0, "step", 1) != derived_seed(0, "step", 2)
    True
    """
    key = "\x1f".join(map(str, (seed, *parts))).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def permutation(seed: int, ids: Iterable[str], stream: str = "") -> npt.NDArray[np.int64]:
    """Return positions of the rows in a random order that is the same whatever order they came in.

    >>> ids = ["a", "b", "c"]
    >>> [ids[i] for i in permutation(1, ids)] == [ids[::-1][i] for i in permutation(1, ids[::-1])]
    True
    """
    return np.argsort(uniform(seed, ids, stream), kind="stable")
