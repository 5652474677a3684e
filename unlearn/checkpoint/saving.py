"""Writing a checkpoint: one safetensors file with weights and where they come from."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from unlearn.atomic import write_atomically
from unlearn.checkpoint.digests import canonical_json, non_finite, sha256_of_file, sha256_of_tensors, sha256_of_text
from unlearn.checkpoint.reading import (
    FORMAT,
    METADATA_KEY,
    Checkpoint,
    digest_of,
    model_layout,
    read_checkpoint,
    state_tensors,
)
from unlearn.errors import InputError


class HasProvenance(Protocol):
    """An edit that can say where its weights come from."""

    def provenance(self) -> Mapping[str, Any]:
        """Return what JSON can hold: method, rows (``id_sha256``, ``action``, ``label``), steps, cost, ..."""
        ...


class HasDict(Protocol):
    """A training record that can be written as a dictionary."""

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        ...


FilePath = str | os.PathLike[str]
Action = Literal["remove", "relabel"]


def save_checkpoint(
    path: FilePath,
    model: nn.Module | Mapping[str, Tensor],
    *,
    parent: FilePath | None = None,
    edit: HasProvenance | None = None,
    record: HasDict | Mapping[str, Any] | None = None,
    recipe: str | tuple[str, str] | None = None,
    rows: Iterable[str] | Mapping[str, int | float] | None = None,
    action: Action | None = None,
    method: str | None = None,
    spec: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Write weights and their provenance to one safetensors file, atomically; equal arguments give equal bytes.

    Row ids are written as sha256 only. Times and folders are not written.

    Args:
        path: file to write; one that stands there is replaced once the new one is whole.
        model: a module (parameters and persistent buffers are written) or a state dictionary.
        parent: checkpoint that the weights come from; its name, sha256 and digest are written. Keep it in the same
            folder, so that a rollback finds it.
        edit: the edit that changed the weights.
        record: the training record, or its dictionary.
        recipe: text of the recipe, or its name and text.
        rows: instead of ``edit``: ids of the rows that were edited, or new labels by id.
        action: what was done to ``rows``; by default ``relabel`` where labels are given, else ``remove``.
        method: how ``rows`` were edited, in a word.
        spec: ``{"name": ..., "options": {...}}`` from which :func:`unlearn.models.build_model` builds the model; taken
            from the parent when its tensors have the same names, types and shapes.
        extra: anything else that JSON can hold.

    Returns:
        The digest: sha256 over metadata and tensors, as hex.

    Raises:
        InputError: a weight is NaN or infinite, or an argument can not be written.
        CheckpointError: the parent is damaged.
        FolderError: the folder is missing, full or not writable; an older file under this name is untouched.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a = save_checkpoint(Path(folder, "a.safetensors"), nn.Linear(2, 1))
    >>> len(a)
    64
    """
    if edit is not None and not (rows is None and action is None and method is None):
        raise InputError("edit= and rows= (action=, method=) say the same thing; give one of them")
    source = _read_parent(path, parent)
    changes = dict(edit.provenance()) if edit is not None else _edit_by_hand(rows, action, method)
    tensors = _tensors_of(model)
    if spec is None and source is not None and model_layout(source.tensors) == model_layout(tensors):
        spec = source.spec
    return write_checkpoint(
        path,
        tensors,
        kind="original" if changes is None and parent is None else "edited",
        parent=None if source is None else _describe_parent(source),
        edit=changes,
        record=record_dict(record),
        recipe=_describe_recipe(recipe),
        model=checked_spec(spec),
        extra=extra,
    )


def write_checkpoint(path: FilePath, tensors: Mapping[str, Tensor], *, kind: str, **entries: Any) -> str:
    """Write tensors and metadata entries; return the digest.

    Raises:
        InputError: a weight is NaN or infinite, or has a type that safetensors can not hold.
        FolderError: the folder can not be written.
    """
    plain = {name: _plain(name, tensor) for name, tensor in tensors.items()}
    bad = non_finite(plain)
    if bad is not None:
        raise InputError(
            f"tensor {bad!r} is NaN or infinite, so nothing was written; train again with a smaller learning rate (a "
            "mask of infinities: register it with persistent=False)"
        )
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "kind": kind,
        "tensors_sha256": sha256_of_tensors(plain),
        "versions": _versions(),
        **{key: value for key, value in entries.items() if value is not None},
    }
    metadata["digest"] = digest_of(metadata)
    try:
        data = safetensors.torch.save(plain, {METADATA_KEY: canonical_json(metadata)})
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"safetensors can not hold these weights: {error}; convert or leave out the tensor") from error
    write_atomically(path, data)
    return str(metadata["digest"])


def _tensors_of(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(model, nn.Module):
        return state_tensors(model.state_dict(), f"the model ({type(model).__name__})")
    if not isinstance(model, Mapping):
        raise InputError(f"model is {type(model).__name__}; give a torch.nn.Module or a dictionary of tensors")
    return state_tensors(model, "the state dictionary")


def _plain(name: str, tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares storage with nothing, so that tied weights can be written."""
    if name == "__metadata__" or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise InputError(f"tensor {name!r} can not be held by safetensors; convert it to a dense tensor, or rename it")
    return tensor.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def _read_parent(path: FilePath, parent: FilePath | None) -> Checkpoint | None:
    if parent is None:
        return None
    if Path(path).absolute() == Path(parent).absolute() or (
        os.path.exists(path) and os.path.exists(parent) and os.path.samefile(path, parent)
    ):
        raise InputError(f"{str(path)!r} is its own parent, so it could not be rolled back; write to another name")
    return read_checkpoint(parent, require_provenance=False)


def _describe_parent(parent: Checkpoint) -> dict[str, str]:
    return {"name": parent.path.name, "sha256": sha256_of_file(parent.path), "digest": parent.digest}


def _describe_recipe(recipe: str | tuple[str, str] | None) -> dict[str, str | None] | None:
    if recipe is None:
        return None
    name, text = (None, recipe) if isinstance(recipe, str) else recipe
    return {"name": name, "sha256": sha256_of_text(text), "text": text}


def _edit_by_hand(
    rows: Iterable[str] | Mapping[str, int | float] | None, action: Action | None, method: str | None
) -> dict[str, Any] | None:
    if rows is None:
        if action is not None or method is not None:
            raise InputError("action= and method= describe rows=; give the ids of the edited rows too")
        return None
    if isinstance(rows, str):
        raise InputError(f"rows is the string {rows!r}; give a list of row ids")
    labels = dict(rows) if isinstance(rows, Mapping) else dict.fromkeys(rows)
    action = action or ("relabel" if isinstance(rows, Mapping) else "remove")
    if action not in ("remove", "relabel"):
        raise InputError(f"unknown action {action!r}; known: remove, relabel")
    if action == "remove" and isinstance(rows, Mapping):
        raise InputError("rows has labels, and action='remove' takes none; give a list of ids, or action='relabel'")
    entries = [{"id_sha256": sha256_of_text(row), "action": action, "label": label} for row, label in labels.items()]
    return {"method": method, "rows": sorted(entries, key=lambda entry: str(entry["id_sha256"]))}


def record_dict(record: HasDict | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a training record as a dictionary."""
    if record is None:
        return None
    return dict(record) if isinstance(record, Mapping) else record.to_dict()


def checked_spec(spec: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a model's name and options.

    Raises:
        InputError: it has other keys.
    """
    if spec is None:
        return None
    if not isinstance(spec.get("name"), str) or set(spec) - {"name", "options"}:
        raise InputError(f"spec has the keys {sorted(spec)}; it is {{'name': a string, 'options': a dictionary}}")
    return {"name": spec["name"], "options": dict(spec.get("options") or {})}


def _versions() -> dict[str, str]:
    try:
        own = version("unlearn")
    except PackageNotFoundError:
        own = "unknown"
    python = ".".join(platform.python_version_tuple()[:2])
    return {"unlearn": own, "torch": str(torch.__version__), "numpy": np.__version__, "python": python}
