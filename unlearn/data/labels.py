"""Labels as they stand in a file become class numbers, or numbers to be predicted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unlearn.errors import InputError, some

_KINDS = {int: "whole numbers", float: "numbers", str: "text"}


def class_labels(
    values: Sequence[Any], ids: Sequence[str], name: str, classes: Sequence[str] = ()
) -> tuple[Tensor, int | None]:
    """Return labels as a tensor, and the number of classes (None: numbers to be predicted).

    Args:
        values: labels as they stand: names, whole numbers (class numbers, counted from 0) or other numbers
            (regression). A text that reads as a number is one.
        ids: row ids, for messages.
        name: of the data, for messages.
        classes: class names in the order of their numbers; by default the names there are, sorted.

    Raises:
        InputError: labels that are missing, of mixed types, or none of the classes; the row is named.

    >>> class_labels(["dog", "cat", "dog"], ["a", "b", "c"], "pets")
    (tensor([1, 0, 1]), 2)
    >>> class_labels(["2", "0"], ["a", "b"], "pets"), class_labels([0.5, 1], ["a", "b"], "prices")
    ((tensor([2, 0]), 3), (tensor([0.5000, 1.0000]), None))
    """
    missing = [row for row, value in zip(ids, values, strict=True) if value is None or value == ""]
    if missing:
        raise InputError(f"labels of {name} are missing in rows {some(missing)}; fill them in or leave out these rows")
    if classes:
        return _numbered([str(value) for value in values], ids, name, classes)
    read = [_read(value) for value in values]
    first: dict[type, int] = {}
    for k, value in enumerate(read):
        first.setdefault(type(value), k)
    if str in first and len(first) > 1:
        found = ", ".join(
            f"{sum(type(value) is kind for value in read)} {_KINDS.get(kind, kind.__name__)} (row {ids[k]!r}: "
            f"{values[k]!r})"
            for kind, k in first.items()
        )
        raise InputError(f"labels of {name} are of mixed types: {found}; make them one, or state classes = [names]")
    if str in first:
        return _numbered(read, ids, name, sorted(set(read)))
    if set(first) == {int}:
        return torch.tensor(read), max(read) + 1
    if set(first) <= {int, float}:
        return torch.tensor(read, dtype=torch.float32), None
    kind, k = next((kind, k) for kind, k in first.items() if kind not in _KINDS)
    raise InputError(f"the label of row {ids[k]!r} of {name} is {kind.__name__}; give one name or number a row")


def _numbered(names: Sequence[str], ids: Sequence[str], name: str, classes: Sequence[str]) -> tuple[Tensor, int]:
    number = {label: k for k, label in enumerate(classes)}
    for row, label in zip(ids, names, strict=True):
        if label not in number:
            raise InputError(f"label {label!r} of row {row!r} of {name} is none of the classes {', '.join(classes)}")
    return torch.tensor([number[label] for label in names]), len(classes)


def _read(value: Any) -> Any:
    """Return a label as int, float, str, or as it is."""
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"[+-]?\d+", value.strip()):
        return int(value)
    return float(value) if re.fullmatch(r"[+-]?(\d+\.\d*|\.?\d+)([eE][+-]?\d+)?", value.strip()) else value
