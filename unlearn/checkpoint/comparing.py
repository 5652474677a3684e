"""What differs between two checkpoints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearn.checkpoint.digests import raw_bytes
from unlearn.checkpoint.reading import Checkpoint, read_checkpoint

_ABSENT = object()


@dataclass(frozen=True)
class TensorChange:
    """How one tensor differs.

    Attributes:
        name: the tensor.
        equal: bit for bit the same, with type and shape.
        largest: largest absolute change of a number; None where type or shape differ.
        relative: norm of the change over the norm of the first; None there too, and where the first is zero.
        note: the types and shapes where they differ, else empty.
    """

    name: str
    equal: bool
    largest: float | None
    relative: float | None
    note: str = ""


@dataclass(frozen=True)
class CheckpointDiff:
    """What differs between two checkpoints.

    Attributes:
        tensors: one entry for each tensor in both.
        only_first: names of tensors that the second has not.
        only_second: names of tensors that the first has not.
        metadata: (first, second) for each entry that differs, by dotted name; None where it is absent.
    """

    tensors: tuple[TensorChange, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    metadata: dict[str, tuple[Any, Any]]

    @property
    def same_weights(self) -> bool:
        """Whether all tensors are the same bit for bit."""
        return not self.only_first and not self.only_second and all(change.equal for change in self.tensors)


def diff_checkpoints(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> CheckpointDiff:
    """Compare two safetensors files tensor by tensor, in double precision, and their provenance.

    Raises:
        CheckpointError: one of the files is damaged or altered.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from unlearn.checkpoint import save_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a, b = Path(folder, "a.safetensors"), Path(folder, "b.safetensors")
    ...     digests = [save_checkpoint(f, {"w": torch.tensor([3.0, x])}) for f, x in ((a, 4.0), (b, 4.5))]
    ...     diff_checkpoints(a, b).tensors
    (TensorChange(name='w', equal=False, largest=0.5, relative=0.1, note=''),)
    """
    a = read_checkpoint(first, require_provenance=False)
    b = read_checkpoint(second, require_provenance=False)
    return CheckpointDiff(
        tensors=tuple(_change(name, a.tensors[name], b.tensors[name]) for name in a.tensors if name in b.tensors),
        only_first=tuple(name for name in a.tensors if name not in b.tensors),
        only_second=tuple(name for name in b.tensors if name not in a.tensors),
        metadata=_entries_that_differ(a, b),
    )


def _change(name: str, a: Tensor, b: Tensor) -> TensorChange:
    if a.dtype != b.dtype or a.shape != b.shape:
        return TensorChange(name, False, None, None, f"{_layout(a)} -> {_layout(b)}")
    if torch.equal(raw_bytes(a), raw_bytes(b)):
        return TensorChange(name, True, 0.0, 0.0)
    wide = torch.complex128 if a.is_complex() else torch.float64
    change, norm = b.to(wide) - a.to(wide), float(torch.linalg.vector_norm(a.to(wide)))
    relative = float(torch.linalg.vector_norm(change)) / norm if norm > 0 else None
    return TensorChange(name, False, float(change.abs().max()), relative)


def _layout(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _entries_that_differ(a: Checkpoint, b: Checkpoint) -> dict[str, tuple[Any, Any]]:
    ours, theirs = _flat(a.metadata or {}), _flat(b.metadata or {})
    names = sorted(ours.keys() | theirs.keys())
    return {
        name: (ours.get(name), theirs.get(name))
        for name in names
        if ours.get(name, _ABSENT) != theirs.get(name, _ABSENT)
    }


def _flat(entries: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, dict):
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out
