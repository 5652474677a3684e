"""Rows a part at a time: of data that is read by number, and of a stream that is only ever read through."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from unlearn.data.as_rows import as_rows
from unlearn.data.row_ids import RowNumbers
from unlearn.data.rows import Rows
from unlearn.errors import InputError


def is_stream(data: Any) -> bool:
    """Whether data can only be read through, as an ``IterableDataset`` of torch or Hugging Face, or a generator.

    >>> is_stream(iter([])), is_stream([])
    (True, False)
    """
    by_number = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return hasattr(data, "__iter__") and (not by_number or isinstance(data, torch.utils.data.IterableDataset))


def row_parts(data: Any, size: int, *, columns: Mapping[str, Any] | None = None) -> Iterator[Rows]:
    """Yield the rows in parts of so many, the last may have fewer; of a stream no more than one part is held.

    Args:
        data: what :func:`unlearn.as_rows` takes, or a stream of (input, label) pairs or dictionaries. Without a column
            of ids, places in the stream are the ids.
        size: rows of a part.
        columns: options of :func:`unlearn.as_rows` but ``ids``: ``input_column``, ``label_column``, ``id_column``,
            ``classes``, ``name``.

    Raises:
        InputError: the stream is empty, or what :func:`unlearn.as_rows` refuses.

    >>> stream = ((torch.ones(2) * i, i % 2) for i in range(3))
    >>> [part.ids for part in row_parts(stream, 2)]
    [('0', '1'), ('2',)]
    """
    columns = dict(columns or {})
    if not is_stream(data):
        rows = as_rows(data, **columns)
        for start in range(0, len(rows), size):
            yield rows.at(torch.arange(start, min(start + size, len(rows))))
        return
    items = iter(_as_tensors(data))
    for start in itertools.count(0, size):
        part = list(itertools.islice(items, size))
        if not part and start == 0:
            raise InputError(f"{columns.get('name', 'data')} is an empty stream; give at least one row")
        if not part:
            return
        numbers = RowNumbers(np.arange(start, start + len(part)))
        yield as_rows(part, ids=None if columns.get("id_column") else numbers, **columns)


def _as_tensors(data: Any) -> Iterable[Any]:
    """Return a Hugging Face stream with tensors in its rows, others as they are."""
    return data.with_format("torch") if hasattr(data, "with_format") else data  # type: ignore[no-any-return]
