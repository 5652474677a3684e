"""Anything map-style becomes rows: a tensor pair, a torch ``Dataset``, a Hugging Face ``datasets.Dataset``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, default_collate, default_convert

from unlearn.data.rows import Rows
from unlearn.errors import InputError
from unlearn.inputs import Inputs, named_tensors

_INPUT_COLUMNS = ("input", "inputs", "image", "img", "x", "features", "pixel_values")
_TOKEN_COLUMNS = ("input_ids", "attention_mask", "token_type_ids")
_LABEL_COLUMNS = ("label", "labels", "target", "y")
_PROBED = 16
_READ_ROWS = 8192


class _DatasetSource:
    def __init__(self, dataset: Any, columns: str | int | Sequence[str], name: str) -> None:
        self.dataset = dataset
        self.columns = columns
        self.name = name

    def inputs(self, positions: Tensor) -> Inputs:
        """Return the inputs at these positions, stacked."""
        rows = positions.tolist()
        items = [self.input(i) for i in rows]
        found = [named_tensors(item) for item in items]
        parts = {key: _stack([item[key] for item in found], rows, "inputs", self.name) for key in found[0]}
        if isinstance(items[0], Mapping):
            return parts
        return parts[""] if isinstance(items[0], Tensor) else tuple(parts.values())

    def input(self, row: int) -> Inputs:
        """Return the input of one row."""
        item = self.dataset[row]
        if isinstance(self.columns, (str, int)):
            value = item[self.columns]
        else:
            value = {column: item[column] for column in self.columns}
        if isinstance(value, Mapping):
            return {key: _as_tensor(part, row, f"input {key!r}", self.name) for key, part in value.items()}
        if isinstance(value, tuple) and all(isinstance(part, Tensor) for part in value):
            return value
        return _as_tensor(value, row, "input", self.name)


class _TableSource:
    """Inputs in columns of a table that gives many rows at once, as Hugging Face's does, mapped from the disk."""

    def __init__(self, table: Any, columns: str | Sequence[str], name: str) -> None:
        self.columns = columns
        self.table = table.select_columns([columns] if isinstance(columns, str) else list(columns))
        self.name = name

    def inputs(self, positions: Tensor) -> Inputs:
        """Return the inputs at these positions, stacked."""
        rows = positions.tolist()
        found = self.table[rows]
        parts = {column: _stacked(values, rows, column, self.name) for column, values in found.items()}
        return parts[self.columns] if isinstance(self.columns, str) else parts


def _stacked(values: Any, rows: Sequence[int], column: str, name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values
    cells = [_as_tensor(value, row, f"column {column!r}", name) for row, value in zip(rows, values, strict=True)]
    return _stack(cells, rows, f"column {column!r}", name)


def as_rows(
    data: Any,
    *,
    input_column: str | Sequence[str] | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    ids: Sequence[str] | None = None,
    classes: int | None = None,
    name: str = "data",
) -> Rows:
    """Return ``data`` as :class:`Rows`; rows are returned as they are.

    Args:
        data: rows; a pair (inputs, labels), inputs being a tensor, a tuple of tensors (positional arguments of the
            model) or a dictionary of tensors (keyword arguments); a map-style dataset whose items are such pairs or
            dictionaries (a Hugging Face dataset among them); or a ``DataLoader`` that does not shuffle.
        input_column: column of the inputs where items are dictionaries, or several, which the model then gets as
            keyword arguments; by default ``input_ids`` with ``attention_mask`` and ``token_type_ids`` where it is
            there, else the first of ``input``, ``inputs``, ``image``, ``img``, ``x``, ``features``,
            ``pixel_values``. Sequences must be padded to one length.
        label_column: column of the labels; by default the first of ``label``, ``labels``, ``target``, ``y``.
        id_column: column of the row ids; by default row numbers are the ids.
        ids: row ids, instead of a column.
        classes: number of classes; by default the largest label plus one.
        name: what to call the data in messages.

    Raises:
        InputError: the data shuffles, has no length, or gives other values when a row is read again; an option that
            has no meaning for this kind of data.

    >>> as_rows((torch.zeros(2, 3), torch.tensor([0, 1]))).ids
    ('0', '1')
    """
    if input_column is not None and not isinstance(input_column, str):
        input_column = list(input_column)
    columns: dict[str, object] = {"input_column": input_column, "label_column": label_column, "id_column": id_column}
    if isinstance(data, Rows):
        _refuse(columns | {"ids": ids, "classes": classes}, "rows that have ids and labels already")
        return data
    if isinstance(data, DataLoader):
        data = _loaded(data, name)
    if isinstance(data, (tuple, list)) and len(data) == 2 and _are_inputs(data[0]) and isinstance(data[1], Tensor):
        _refuse(columns, "a pair of tensors")
        return Rows.from_tensors(data[0], data[1], ids=ids, classes=classes, name=name)
    if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise InputError(
            f"{name} is {type(data).__name__}; rows are read by number, so give a pair of tensors or a dataset with "
            "__len__ and __getitem__"
        )
    if len(data) == 0:
        raise InputError(f"{name} is empty; give at least one row")
    if id_column is not None and ids is not None:
        raise InputError(f"ids of {name} are given twice, as id_column={id_column!r} and as ids; pass one of them")
    return _from_dataset(data, input_column, label_column, id_column, ids, classes, name)


def _are_inputs(value: Any) -> bool:
    """Whether a value is a batch of inputs as it stands."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return isinstance(value, Tensor) or (
        isinstance(value, tuple) and len(value) > 0 and all(isinstance(part, Tensor) and part.ndim for part in value)
    )


def _refuse(options: Mapping[str, object], data: str) -> None:
    """Refuse options that would be without effect."""
    for option, value in options.items():
        if value is not None:
            raise InputError(f"{option} has no meaning for {data}; leave it out")


def _loaded(loader: DataLoader[Any], name: str) -> Any:
    """Return the data set of a loader that gives it row by row as it is."""
    batches = loader.batch_sampler
    sampler = loader.sampler if batches is None else getattr(batches, "sampler", batches)
    if not isinstance(loader.dataset, IterableDataset) and not isinstance(sampler, SequentialSampler):
        raise InputError(
            f"{name} is a DataLoader with {type(sampler).__name__}, so rows can not be matched to ids; "
            "pass its dataset, or build it with shuffle=False"
        )
    if loader.collate_fn not in (default_collate, default_convert):
        raise InputError(
            f"{name} is a DataLoader with its own collate_fn, which rows read one by one would not pass through; "
            "pass a dataset whose items are (input, label) pairs or dictionaries"
        )
    return loader.dataset


def _from_dataset(
    data: Any,
    input_column: str | Sequence[str] | None,
    label_column: str | None,
    id_column: str | None,
    ids: Sequence[str] | None,
    classes: int | None,
    name: str,
) -> Rows:
    table = hasattr(data, "with_format") and hasattr(data, "select_columns")
    if table:
        data = data.with_format("torch")
    first = data[0]
    if isinstance(first, Mapping):
        tokens = [column for column in _TOKEN_COLUMNS if column in first]
        known = tokens if "input_ids" in tokens else None
        x: str | int | Sequence[str] = input_column or known or _guess(first, _INPUT_COLUMNS, "input", name)
        y: str | int = label_column or _guess(first, _LABEL_COLUMNS, "label", name)
        for column in (*([x] if isinstance(x, (str, int)) else x), y, id_column):
            if column is not None and column not in first:
                raise InputError(f"{name} has no column {column!r}; its columns are {', '.join(first)}")
    elif isinstance(first, (tuple, list)) and len(first) == 2:
        if id_column is not None:
            raise InputError(f"items of {name} are pairs, which have no column {id_column!r}; pass ids=[...] instead")
        x, y = 0, 1
    else:
        raise InputError(f"items of {name} are {type(first).__name__}; give (input, label) pairs or dictionaries")
    source = _TableSource(data, x, name) if table and not isinstance(x, int) else _DatasetSource(data, x, name)
    for i in range(min(_PROBED, len(data))):
        once, again = (named_tensors(source.inputs(torch.tensor([i]))) for _ in range(2))
        if any(not torch.equal(once[key].nan_to_num(), again[key].nan_to_num()) for key in once):
            raise InputError(
                f"row {i} of {name} read twice gives two values: a random transform; scores and edits need the same "
                "input each time, so pass the data without augmentation"
            )
    if table:
        labels = torch.cat([_stacked(part, rows, str(y), name) for rows, part in _parts(data, str(y))])
        names = None if id_column is None else [_text(v) for _, part in _parts(data, id_column) for v in part]
    else:
        items = (data[i] for i in range(len(data)))
        pairs = [(row[y], None if id_column is None else _text(row[id_column])) for row in items]
        cells = [_as_tensor(value, i, "label", name) for i, (value, _) in enumerate(pairs)]
        labels = _stack(cells, range(len(data)), "labels", name)
        names = None if id_column is None else [str(row) for _, row in pairs]
    return Rows.from_source(
        source,
        labels,
        length=len(data),
        ids=ids if names is None else names,
        classes=classes,
        name=name,
    )


def _parts(table: Any, column: str) -> Iterator[tuple[range, Any]]:
    """Yield row numbers and values of a column, some rows at a time."""
    alone = table.select_columns([column])
    for start in range(0, len(table), _READ_ROWS):
        rows = range(start, min(start + _READ_ROWS, len(table)))
        yield rows, alone[start : rows.stop][column]


def _text(value: Any) -> str:
    return str(value.item() if isinstance(value, Tensor) else value)


def _as_tensor(value: Any, row: int, what: str, name: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the {what} of row {row} of {name} is {type(value).__name__}, not numbers: turn it into a tensor first"
        ) from error


def _stack(values: Sequence[Tensor], rows: Sequence[int], what: str, name: str) -> Tensor:
    for row, value in zip(rows, values, strict=True):
        if value.shape != values[0].shape:
            raise InputError(
                f"{what} of {name} differ in shape: {tuple(values[0].shape)} in row {rows[0]}, {tuple(value.shape)} in "
                f"row {row}; bring them to one shape"
            )
    return torch.stack(list(values))


def _guess(row: Mapping[str, Any], names: Sequence[str], what: str, data: str) -> str:
    for column in names:
        if column in row:
            return column
    raise InputError(f"{data} has columns {', '.join(row)}: none is known as {what}; pass {what}_column=...")
