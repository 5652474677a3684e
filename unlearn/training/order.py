"""Row order: which rows every training step saw, by id."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from unlearn.data import Rows

EMPTY = -1


@dataclass(frozen=True)
class BatchOrder:
    """Row ids of every batch, held as positions into one tuple of ids.

    Attributes:
        ids: every id that occurs.
        positions: (steps, batch size) positions into ``ids``; -1 is an empty place.

    >>> order = BatchOrder.from_batches([["a", "b"], ["c"]])
    >>> order.positions.tolist(), order.batch(1)
    ([[0, 1], [2, -1]], ['c'])
    """

    ids: tuple[str, ...]
    positions: Tensor

    @classmethod
    def from_batches(cls, batches: Sequence[Sequence[str]]) -> BatchOrder:
        """Return the order of these batches of ids."""
        index: dict[str, int] = {}
        width = max((len(batch) for batch in batches), default=0)
        positions = np.full((len(batches), width), EMPTY, dtype=np.int32)
        for step, batch in enumerate(batches):
            positions[step, : len(batch)] = [index.setdefault(row, len(index)) for row in batch]
        return cls(tuple(index), torch.from_numpy(positions))

    @classmethod
    def shuffled(cls, ids: Sequence[str], *, epochs: int, batch_size: int, seed: int) -> BatchOrder:
        """Return a new random order of all rows for each epoch; each epoch's order depends on (seed, epoch)."""
        steps = math.ceil(len(ids) / batch_size)
        positions = torch.full((epochs, steps * batch_size), EMPTY, dtype=torch.int32)
        for epoch in range(epochs):
            shuffled = np.random.default_rng([seed, epoch]).permutation(len(ids)).astype(np.int32)
            positions[epoch, : len(ids)] = torch.from_numpy(shuffled)
        return cls(tuple(ids), positions.reshape(epochs * steps, batch_size))

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def digest(self) -> str:
        """sha256 of ids and positions, as hex."""
        shape_and_ids = json.dumps([list(self.positions.shape), self.ids]).encode()
        return hashlib.sha256(shape_and_ids + self.positions.int().numpy().tobytes()).hexdigest()

    def batch(self, step: int) -> list[str]:
        """Return the ids of one step."""
        return [self.ids[i] for i in self.positions[step].tolist() if i != EMPTY]

    def rows_left(self) -> Tensor:
        """Return how many rows are still to be seen before each step, shape (steps,).

        >>> BatchOrder.from_batches([["a", "b"], ["c"]]).rows_left().tolist()
        [3, 1]
        """
        return (self.positions != EMPTY).sum(1).flip(0).cumsum(0).flip(0)

    def without(self, ids: Iterable[str]) -> BatchOrder:
        """Return the order with the places of these rows empty and their ids gone.

        >>> order = BatchOrder.from_batches([["a", "b"], ["c"]]).without(["a"])
        >>> order.ids, order.positions.tolist()
        (('b', 'c'), [[-1, 0], [1, -1]])
        """
        gone = set(ids)
        kept = [i for i, row in enumerate(self.ids) if row not in gone]
        table = torch.full((len(self.ids) + 1,), EMPTY, dtype=torch.int32)  # its last entry is that of empty places
        table[kept] = torch.arange(len(kept), dtype=torch.int32)
        return BatchOrder(tuple(self.ids[i] for i in kept), table[self.positions.long()])

    def on(self, rows: Rows) -> Tensor:
        """Return the order as positions into ``rows``; the places of rows that are not there are empty (-1).

        Shape (steps, batch size). This is the coupled row order of math.md 0: a removed row leaves its place empty.
        """
        place: Mapping[str, int] = {row: i for i, row in enumerate(rows.ids)}
        table = torch.tensor([place.get(row, EMPTY) for row in self.ids] + [EMPTY])
        return table[self.positions.long()]
