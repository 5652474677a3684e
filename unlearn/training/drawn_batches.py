"""Which rows each batch of a data loader holds, noted where its sampler draws them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from unlearn.errors import RecordError


class DrawnBatches:
    """Positions of the rows of each batch that a loader draws, in the order of its batches.

    The loader's sampler is watched between :meth:`start` and :meth:`stop`. Batches are asked for in the order in which
    they are drawn, so workers and batches fetched ahead change nothing.

    Args:
        loader: a ``DataLoader`` of a map-style dataset with a sampler.
        count: rows that its dataset must have.

    Raises:
        RecordError: a loader whose rows have no positions, or another number of rows.

    >>> loader = DataLoader([0.1, 0.2, 0.3], batch_size=2)
    >>> drawn = DrawnBatches(loader, 3)
    >>> drawn.start()
    >>> batches = list(loader)
    >>> drawn.next(), drawn.take(), drawn.take()
    (([0, 1], True), [0, 1], [2])
    >>> drawn.stop()
    """

    def __init__(self, loader: DataLoader[Any], count: int) -> None:
        batches = getattr(loader, "batch_sampler", None)
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            raise RecordError(
                f"the rows come from {type(loader).__name__} over {type(getattr(loader, 'dataset', loader)).__name__}, "
                "so they have no positions; give one DataLoader over a dataset with __len__ and __getitem__"
            )
        if type(batches) is not BatchSampler:
            raise RecordError(
                f"the DataLoader has {type(batches).__name__} as its batch sampler, and rows are noted where "
                "torch.utils.data.BatchSampler draws them; pass batch_size= with sampler= or shuffle=True"
            )
        rows = len(loader.dataset)  # type: ignore[arg-type]
        if rows != count:
            raise RecordError(
                f"the training dataset has {rows} rows and data {count}; give the same rows in the same order"
            )
        self.loader = loader
        self.steps = len(loader)
        self._batches = batches
        self._sampler = batches.sampler
        self._waiting: deque[int] = deque()
        self._first = False

    def start(self) -> None:
        """Watch the sampler."""
        self._batches.sampler = _Watched(self._sampler, self)

    def stop(self) -> None:
        """Give the loader its own sampler back."""
        self._batches.sampler = self._sampler

    def next(self) -> tuple[list[int], bool]:
        """Return the positions of the oldest batch that was not taken, and whether it is the first of its pass.

        Raises:
            RecordError: every batch drawn was taken.
        """
        if not self._waiting:
            raise RecordError(
                "the optimizer made a step for which the training DataLoader drew no rows; take one step a batch of "
                "this loader"
            )
        return list(self._waiting)[: self._batches.batch_size], self._first

    def take(self) -> list[int]:
        """Return and drop the positions of the oldest batch.

        Raises:
            RecordError: every batch drawn was taken.
        """
        batch, _ = self.next()
        for _ in batch:
            self._waiting.popleft()
        self._first = False
        return batch

    def begin(self) -> None:
        """Drop what an earlier pass drew ahead and never used."""
        self._waiting.clear()
        self._first = True

    def drew(self, position: int) -> None:
        """Note a position."""
        self._waiting.append(position)


class _Watched:
    """A sampler that tells of what it draws; whatever else it is asked for is the watched one's."""

    def __init__(self, sampler: Any, drawn: DrawnBatches) -> None:
        self._sampler, self._drawn = sampler, drawn

    def __iter__(self) -> Iterator[int]:
        self._drawn.begin()
        for position in self._sampler:
            self._drawn.drew(int(position))
            yield position

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "_sampler":  # a copy that is not made yet
            raise AttributeError(name)
        return getattr(self._sampler, name)
