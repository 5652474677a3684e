"""Rows in a safetensors file that is mapped, not read: what is resident is one batch, whatever the size of the file."""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearn.data.row_ids import RowNumbers
from unlearn.data.rows import Rows, TensorSource
from unlearn.errors import InputError, did_you_mean
from unlearn.inputs import Inputs

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_IDS = "ids"


class MappedSource(TensorSource):
    """Inputs in a mapped file; pages are let go when a batch has been copied out of them."""

    def __init__(self, tensors: Inputs, file: mmap.mmap) -> None:
        super().__init__(tensors)
        self._file = file

    def inputs(self, positions: Tensor) -> Inputs:
        """Return copies of the rows at these positions."""
        found = super().inputs(positions)
        if hasattr(mmap, "MADV_DONTNEED"):
            self._file.madvise(mmap.MADV_DONTNEED)
        return found


def mapped_rows(
    path: str | Path, *, label: str = "labels", classes: int | None = None, first: int = 0, name: str | None = None
) -> Rows:
    """Return the rows of a safetensors file, whose tensors have rows as their first dimension.

    Labels are held in memory, and ids as numbers; inputs are read from the disk batch by batch. The file must not be
    changed while the rows are in use.

    Args:
        path: the file. Its tensor ``ids`` (int64, where there is one) gives the ids, else they are row numbers. All
            tensors but label and ids are inputs: one is the model's only argument, several are its keyword arguments.
        label: the tensor of labels.
        classes: number of classes; by default the largest label plus one.
        first: row number of the first row, where the file has no ids.
        name: what to call the rows; the file's name by default.

    Raises:
        InputError: no such file, not a safetensors file, no such tensor, tensors of several lengths, a type that is not
            known, or what :meth:`unlearn.data.Rows.from_source` refuses.

    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> path = Path(tempfile.mkdtemp()) / "rows.safetensors"
    >>> save_file({"x": torch.eye(3), "labels": torch.tensor([0, 1, 1])}, path)
    >>> mapped_rows(path).at(torch.tensor([2]))[0]
    (tensor([0., 0., 1.]), tensor(1))
    """
    path = Path(path)
    name = path.stem if name is None else name
    tensors, file = _mapped(path)
    if label not in tensors:
        raise InputError(f"{str(path)!r} has no tensor {label!r} of labels; {did_you_mean(label, tensors)}")
    lengths = {key: len(tensor) if tensor.ndim else 0 for key, tensor in tensors.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f"tensors of {str(path)!r} have {lengths} rows; give each the same number, at least one")
    labels = tensors.pop(label).clone()
    numbers = tensors.pop(_IDS, None)
    ids = RowNumbers(np.arange(first, first + len(labels))) if numbers is None else _ids(numbers, path)
    if not tensors:
        raise InputError(f"{str(path)!r} has no tensors beside {label!r} and 'ids'; add the inputs")
    inputs: Inputs = next(iter(tensors.values())) if len(tensors) == 1 else tensors
    return Rows.from_source(MappedSource(inputs, file), labels, length=len(labels), ids=ids, classes=classes, name=name)


def _ids(numbers: Tensor, path: Path) -> RowNumbers:
    if numbers.dtype != torch.int64 or numbers.ndim != 1 or bool((numbers < 0).any()):
        raise InputError(f"'ids' of {str(path)!r} are no whole numbers of at least 0, one a row (int64); repair them")
    if len(np.unique(numbers.numpy())) != len(numbers):
        raise InputError(f"'ids' of {str(path)!r} name a row twice; make each id unique")
    return RowNumbers(numbers.numpy().copy())


def _mapped(path: Path) -> tuple[dict[str, Tensor], mmap.mmap]:
    """Return the tensors of a file as views of it, and the mapping that they live in."""
    try:
        with path.open("rb") as file:
            # a private copy is never written to: torch wants memory that it could write
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        (length,) = struct.unpack_from("<Q", mapping)
        table: Mapping[str, Any] = json.loads(mapping[8 : 8 + length])
        start = 8 + length
        entries = {key: entry for key, entry in table.items() if key != "__metadata__"}
        found = {key: _view(mapping, start, key, entry, path) for key, entry in entries.items()}
    except OSError as error:
        raise InputError(f"{str(path)!r} can not be read ({error}); give a safetensors file") from error
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{str(path)!r} is no safetensors file, or damaged ({error}); write it again") from error
    return found, mapping


def _view(mapping: mmap.mmap, start: int, key: str, entry: Mapping[str, Any], path: Path) -> Tensor:
    if entry["dtype"] not in _TYPES:
        raise InputError(f"tensor {key!r} of {str(path)!r} is {entry['dtype']}; known: {', '.join(_TYPES)}")
    shape = tuple(entry["shape"])
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=_TYPES[entry["dtype"]])
    offset = start + entry["data_offsets"][0]
    return torch.frombuffer(mapping, dtype=_TYPES[entry["dtype"]], count=count, offset=offset).reshape(shape)
