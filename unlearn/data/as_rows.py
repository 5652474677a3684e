"""Anything map-style becomes rows: a tensor pair, a torch ``Dataset``, a Hugging Face ``datasets.Dataset``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler
from torch.utils.data import default_collate as collate

from unlearn.data.rows import Rows
from unlearn.errors import InputError

_INPUT_COLUMNS = ("input", "inputs", "image", "img", "x", "features", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "target", "y")


class _DatasetSource:
    def __init__(self, dataset: Any, column: str | int) -> None:
        self.dataset = dataset
        self.column = column

    def inputs(self, positions: Tensor) -> Tensor:
        """Return the inputs at these positions, collated."""
        rows = [torch.as_tensor(self.dataset[i][self.column]) for i in positions.tolist()]
        return collate(rows)  # type: ignore[no-any-return]


def as_rows(
    data: Any,
    *,
    input_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    ids: Sequence[str] | None = None,
    classes: int | None = None,
    name: str = "data",
) -> Rows:
    """Return ``data`` as :class:`Rows`; rows are returned as they are.

    Args:
        data: rows; a pair of tensors (inputs, labels); a map-style dataset whose items are pairs or dictionaries
            (a Hugging Face dataset among them); or a ``DataLoader`` that does not shuffle.
        input_column: column of the inputs where items are dictionaries; by default the first of ``input``,
            ``inputs``, ``image``, ``img``, ``x``, ``features``, ``pixel_values`` that is there.
        label_column: column of the labels; by default the first of ``label``, ``labels``, ``target``, ``y``.
        id_column: column of the row ids; by default row numbers are the ids.
        ids: row ids, instead of a column.
        classes: number of classes; by default the largest label plus one.
        name: what to call the data in messages.

    Raises:
        InputError: the data shuffles, has no length, or gives other values when a row is read again.

    >>> as_rows((torch.zeros(2, 3), torch.tensor([0, 1]))).ids
    ('0', '1')
    """
    if isinstance(data, Rows):
        return data
    if isinstance(data, DataLoader):
        if not isinstance(data.sampler, SequentialSampler):
            raise InputError(
                f"{name} is a DataLoader with {type(data.sampler).__name__}, so rows can not be matched to ids; "
                "pass its dataset, or build it with shuffle=False"
            )
        data = data.dataset
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return Rows.from_tensors(data[0], data[1], ids=ids, classes=classes, name=name)
    if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise InputError(
            f"{name} is {type(data).__name__}; rows are read by number, so give a pair of tensors or a dataset with "
            "__len__ and __getitem__"
        )
    if len(data) == 0:
        raise InputError(f"{name} is empty; give at least one row")
    return _from_dataset(data, input_column, label_column, id_column, ids, classes, name)


def _from_dataset(
    data: Any,
    input_column: str | None,
    label_column: str | None,
    id_column: str | None,
    ids: Sequence[str] | None,
    classes: int | None,
    name: str,
) -> Rows:
    if hasattr(data, "with_format") and hasattr(data, "column_names"):
        data = data.with_format("torch")
    first = data[0]
    if isinstance(first, dict):
        x: str | int = input_column or _guess(first, _INPUT_COLUMNS, "input", name)
        y: str | int = label_column or _guess(first, _LABEL_COLUMNS, "label", name)
        for column in (x, y, id_column):
            if column is not None and column not in first:
                raise InputError(f"{name} has no column {column!r}; its columns are {', '.join(first)}")
    elif isinstance(first, (tuple, list)) and len(first) == 2:
        if id_column is not None:
            raise InputError(f"items of {name} are pairs, which have no column {id_column!r}; pass ids=[...] instead")
        x, y = 0, 1
    else:
        raise InputError(f"items of {name} are {type(first).__name__}; give (input, label) pairs or dictionaries")
    if not torch.equal(torch.as_tensor(first[x]), torch.as_tensor(data[0][x])):
        raise InputError(
            f"row 0 of {name} read twice gives two values: a random transform; scores and edits need the same input "
            "each time, so pass the data without augmentation"
        )
    labels = []
    names: list[str] = []
    for i in range(len(data)):
        row = data[i]
        labels.append(torch.as_tensor(row[y]))
        if id_column is not None:
            value = row[id_column]
            names.append(str(value.item() if isinstance(value, Tensor) else value))
    return Rows.from_source(
        _DatasetSource(data, x),
        torch.stack(labels),
        length=len(data),
        ids=names if id_column is not None else ids,
        classes=classes,
        name=name,
    )


def _guess(row: dict[str, Any], names: Sequence[str], what: str, data: str) -> str:
    for column in names:
        if column in row:
            return column
    raise InputError(f"{data} has columns {', '.join(row)}: none is known as {what}; pass {what}_column=...")
