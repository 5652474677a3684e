"""Columns become rows: which are inputs (numbers, images or texts), which is the label, which names the rows."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unlearn.data.labels import class_labels
from unlearn.data.pictures import PictureFormat, ReadPictures, check_files, open_picture
from unlearn.data.rows import Rows, Source, TensorSource
from unlearn.data.splits import split_positions
from unlearn.data.texts import TokenisedTexts
from unlearn.errors import InputError, did_you_mean, some
from unlearn.source_options import ColumnOptions

Part = Mapping[str, Sequence[Any]]


def column_rows(
    parts: Mapping[str, Part], split: str, split_seed: int, options: ColumnOptions, *, name: str, folder: Path
) -> Rows:
    """Return the rows of a split.

    All parts are looked at whatever the split, so that class numbers, ids and standardisation do not depend on it.

    Args:
        parts: columns by name, of ``train`` and ``test``, or of one part, which is then split by id.
        split: ``train``, ``test`` or ``all``.
        split_seed: decides which rows are test rows where there is one part.
        options: which columns are what.
        name: of the data.
        folder: what paths of images are relative to.

    Raises:
        InputError: a column that is not there (with those that are), labels of mixed types, values that are no
            numbers, images or texts.
    """
    for part in parts.values():
        _check_columns(part, options, name)
    lengths = {key: len(part[options.label]) for key, part in parts.items()}
    if options.id:
        ids = [str(value) for value in _joined(parts, options.id)]
    else:
        ids = [f"{key}-{i}" for key, length in lengths.items() for i in range(length)]
    labels, classes = class_labels(_joined(parts, options.label), ids, name, options.classes)
    if len(parts) == 1:
        positions = split_positions(ids, split_seed)
    else:
        first = lengths["train"]
        positions = {"train": torch.arange(first), "test": torch.arange(first, len(ids))}
    source = _source(parts, ids, positions["train"], options, name, folder)
    rows = Rows.from_source(source, labels, length=len(ids), ids=ids, classes=classes, name=name)
    if split == "all":
        return rows
    if not len(positions[split]):
        raise InputError(f"{name} has {len(ids)} rows, too few for a split {split!r}; give a file of test rows")
    return rows.at(positions[split])


def _check_columns(part: Part, options: ColumnOptions, name: str) -> None:
    for column in (options.label, options.id, options.image, options.text, *options.inputs):
        if column is not None and column not in part:
            raise InputError(f"{name} has no column {column!r}; {did_you_mean(column, part)}")


def _joined(parts: Mapping[str, Part], column: str) -> list[Any]:
    return [value for part in parts.values() for value in part[column]]


def _source(
    parts: Mapping[str, Part], ids: Sequence[str], train: Tensor, options: ColumnOptions, name: str, folder: Path
) -> Source:
    if options.image:
        return _pictures([part[options.image] for part in parts.values()], ids, options, name, folder)
    if options.text and options.tokenizer:
        return TokenisedTexts(_joined(parts, options.text), ids, options.tokenizer, options.length, name)
    columns = options.inputs or [c for c in next(iter(parts.values())) if c not in (options.label, options.id)]
    if not columns:
        raise InputError(f"{name} has no columns beside label and id; add the inputs")
    table = torch.cat([_numbers(_joined(parts, column), ids, column, name) for column in columns], 1)
    if options.standardise:
        std, mean = torch.std_mean(table[train], 0)
        table = (table - mean) / torch.where(std > 0, std, 1)  # a constant column becomes zeros
    return TensorSource(table.float())


def _numbers(values: Sequence[Any], ids: Sequence[str], column: str, name: str) -> Tensor:
    """Return a column of numbers, or of equally long lists of numbers, float64 of shape (rows, numbers)."""
    try:
        table = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        for row, value in zip(ids, values, strict=True):
            try:
                np.array(value, dtype=np.float64)
            except (TypeError, ValueError):
                raise InputError(
                    f"column {column!r} of {name} is {value!r} in row {row!r}, not a number; repair it, or state "
                    "inputs = [columns of numbers]"
                ) from None
        raise InputError(f"column {column!r} of {name} has lists of several lengths; bring them to one") from None
    table = table.reshape(len(values), -1)
    bad = [ids[k] for k in (~np.isfinite(table)).any(1).nonzero()[0].tolist()]
    if bad:
        raise InputError(f"column {column!r} of {name} is empty, NaN or infinite in rows {some(bad)}; repair them")
    return torch.from_numpy(table)


def _pictures(
    columns: Sequence[Sequence[Any]], ids: Sequence[str], options: ColumnOptions, name: str, folder: Path
) -> Source:
    places = [(k, i) for k, column in enumerate(columns) for i in range(len(column))]
    stored = [value for column in columns if isinstance(column, list) for value in column]
    check_files([folder / value for value in stored if isinstance(value, str)], name)

    def read(row: int) -> Any:
        part, position = places[row]
        return _picture(columns[part][position], folder)

    try:
        channels = 1 if read(0).mode in ("1", "L", "I;16") else 3
    except (OSError, AttributeError) as error:
        raise InputError(f"the image of row {ids[0]!r} of {name} can not be read: {error}") from error
    return ReadPictures(read, ids, PictureFormat.of(options, None, channels))


def _picture(value: Any, folder: Path) -> Any:
    """Return the image of a cell: a path, the bytes of a file as Hugging Face's Parquet files have them, an image."""
    if isinstance(value, str):
        return open_picture(folder / value)
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return Image.open(io.BytesIO(value["bytes"]))
    return value
