"""Ids of rows: texts, or row numbers, which need no string for each. Both are found and picked alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt


class RowTexts(tuple[str, ...]):
    """Any texts as ids.

    >>> ids = RowTexts(["b", "a"])
    >>> ids.find(["a", "x"]), ids.at(np.array([1])), "b" in ids
    ([1, -1], ('a',), True)
    """

    @cached_property
    def _places(self) -> dict[str, int]:
        return {row: i for i, row in enumerate(self)}

    def __contains__(self, row: object) -> bool:
        return row in self._places

    def at(self, positions: npt.NDArray[np.int64]) -> RowTexts:
        """Return the ids at these positions."""
        return RowTexts(self[i] for i in positions.tolist())

    def find(self, rows: Sequence[str]) -> list[int]:
        """Return the position of each of these ids, -1 where it is not there."""
        return [self._places.get(row, -1) for row in rows]


class RowNumbers(Sequence[str]):
    """Row numbers as ids: the sequence of their texts, equal to the tuple of them, held as 8 bytes each.

    Args:
        numbers: distinct, at least 0, shape (n,).

    >>> ids = RowNumbers(np.arange(3))
    >>> ids[1], ids[1:], ids == ("0", "1", "2"), "3" in ids
    ('1', ('1', '2'), True, False)
    """

    def __init__(self, numbers: npt.NDArray[np.int64]) -> None:
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> RowNumbers: ...
    def __getitem__(self, key: int | slice) -> str | RowNumbers:
        return RowNumbers(self._numbers[key]) if isinstance(key, slice) else str(self._numbers[key])

    def __iter__(self) -> Iterator[str]:
        for part in np.array_split(self._numbers, len(self) // 65536 + 1):
            yield from map(str, part.tolist())

    def __contains__(self, row: object) -> bool:
        return isinstance(row, str) and self.find([row])[0] >= 0

    def __eq__(self, other: object) -> bool:
        if isinstance(other, RowNumbers):
            return np.array_equal(self._numbers, other._numbers)
        return isinstance(other, tuple) and len(self) == len(other) and all(map(str.__eq__, self, other))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[np.str_]:
        width = len(str(self._numbers.max(initial=0)))
        return self._numbers.astype(f"U{width}" if dtype is None else dtype)

    def at(self, positions: npt.NDArray[np.int64]) -> RowNumbers:
        """Return the ids at these positions."""
        return RowNumbers(self._numbers[positions])

    def find(self, rows: Sequence[str]) -> list[int]:
        """Return the position of each of these ids, -1 where it is not there.

        >>> RowNumbers(np.array([4, 2])).find(["2", "02", "x", "4"])
        [1, -1, -1, 0]
        """
        # row numbers are written in one way only: no sign, no leading zero, no other digits
        asked = np.array([int(r) if r.isascii() and r.isdigit() and r == str(int(r)) else -1 for r in rows], np.int64)
        order, ascending = self._ascending
        place = np.searchsorted(ascending, asked).clip(max=len(ascending) - 1)
        found = np.where(ascending[place] == asked, place, -1)
        places: list[int] = (found if order is None else np.where(found >= 0, order[found], -1)).tolist()
        return places

    @cached_property
    def _ascending(self) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.int64]]:
        """The order that sorts the numbers (None where they are sorted), and the numbers in it."""
        if (np.diff(self._numbers) > 0).all():
            return None, self._numbers
        order = self._numbers.argsort()
        return order, self._numbers[order]


RowIds = RowTexts | RowNumbers


def row_ids(ids: Iterable[object]) -> RowIds:
    """Return ids as they are held: row numbers as they came, all else as texts.

    >>> row_ids([1, "a"]), row_ids(RowNumbers(np.arange(2)))
    (('1', 'a'), ('0', '1'))
    """
    return ids if isinstance(ids, (RowTexts, RowNumbers)) else RowTexts(map(str, ids))


def text_order(ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the positions of the ids in the order of their texts.

    >>> text_order(RowNumbers(np.array([2, 10, 1]))).tolist()
    [2, 1, 0]
    """
    if isinstance(ids, RowNumbers):
        return np.argsort(np.array(ids))
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)


def repeated(ids: Iterable[str]) -> list[str]:
    """Return the ids that are named twice, each once.

    >>> repeated(["a", "b", "a"]), repeated(RowNumbers(np.arange(2)))
    (['a'], [])
    """
    if isinstance(ids, RowNumbers):
        return []
    seen: set[str] = set()
    twice = [row for row in ids if row in seen or seen.add(row)]  # type: ignore[func-returns-value]
    return list(dict.fromkeys(twice))
