"""Named checks of a checkpoint, one after another."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unlearn.checkpoint.digests import sha256_of_text
from unlearn.checkpoint.parents import check_parent, find_parent
from unlearn.checkpoint.reading import (
    Header,
    check_finite,
    check_tensors,
    parse_metadata,
    read_header,
    read_tensors,
)
from unlearn.errors import CheckpointError


@dataclass(frozen=True)
class Check:
    """One check of a checkpoint.

    Attributes:
        name: ``header``, ``metadata``, ``tensors``, ``finite``, ``recipe`` or ``parent``.
        ok: whether it holds; None where it could not be checked.
        detail: what was found.
    """

    name: str
    ok: bool | None
    detail: str


def verify_checkpoint(path: str | os.PathLike[str]) -> list[Check]:
    """Check a checkpoint file and its parent, and say what holds.

    ``header``: it is a whole safetensors file. ``metadata``: the provenance has its digest. ``tensors``: the weights
    have theirs. ``finite``: no NaN, no infinity. ``recipe``: its text has its sha256. ``parent``: the file the weights
    come from lies beside it, unaltered.

    Raises:
        CheckpointError: there is no file to check.

    >>> import tempfile, torch
    >>> from unlearn.checkpoint import save_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     digest = save_checkpoint(Path(folder, "a.safetensors"), {"weight": torch.ones(2)})
    ...     [(check.name, check.ok) for check in verify_checkpoint(Path(folder, "a.safetensors"))]
    [('header', True), ('metadata', True), ('tensors', True), ('finite', True), ('recipe', None), ('parent', None)]
    """
    if not Path(path).is_file():
        raise CheckpointError(f"there is no checkpoint {str(path)!r} to verify; check the path")
    return _Checks(Path(path)).run()


class _Checks:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.header: Header | None = None
        self.metadata: dict[str, Any] | None = None
        self.tensors: dict[str, Tensor] | None = None

    def run(self) -> list[Check]:
        checks: dict[str, Callable[[], tuple[bool | None, str]]] = {
            "header": self.check_header,
            "metadata": self.check_metadata,
            "tensors": self.check_tensors,
            "finite": self.check_finite,
            "recipe": self.check_recipe,
            "parent": self.check_parent,
        }
        out = []
        for name, check in checks.items():
            try:
                ok, detail = check()
            except CheckpointError as error:
                ok, detail = False, str(error)
            out.append(Check(name, ok, detail))
        return out

    def check_header(self) -> tuple[bool | None, str]:
        header = read_header(self.path)
        self.tensors = read_tensors(self.path)
        self.header = header
        return True, f"{header.size} bytes, {len(header.layout)} tensors"

    def check_metadata(self) -> tuple[bool | None, str]:
        if self.header is None:
            return None, "not checked: the header is unreadable"
        self.metadata = parse_metadata(self.header.text, self.name)
        return True, f"kind {self.metadata['kind']}, digest {self.metadata['digest'][:12]}..."

    def check_tensors(self) -> tuple[bool | None, str]:
        if self.tensors is None or self.metadata is None:
            return None, "not checked: there is no digest to compare with"
        check_tensors(self.tensors, self.metadata, self.name)
        return True, f"sha256 {self.metadata['tensors_sha256'][:12]}..."

    def check_finite(self) -> tuple[bool | None, str]:
        if self.tensors is None:
            return None, "not checked: the tensors are unreadable"
        check_finite(self.tensors, self.name)
        return True, f"{sum(tensor.numel() for tensor in self.tensors.values())} numbers"

    def check_recipe(self) -> tuple[bool | None, str]:
        if self.metadata is None or self.metadata.get("recipe") is None:
            return None, "not checked: no recipe is recorded"
        recipe = self.metadata["recipe"]
        if sha256_of_text(recipe["text"]) != recipe["sha256"]:
            raise CheckpointError(f"the recipe in {self.name!r} does not match its sha256; save the checkpoint again")
        return True, f"sha256 {recipe['sha256'][:12]}..."

    def check_parent(self) -> tuple[bool | None, str]:
        if self.metadata is None or self.metadata.get("parent") is None:
            return None, "not checked: no parent is recorded"
        recorded = self.metadata["parent"]
        parent = find_parent(self.path, recorded)
        if not parent.is_file():
            return None, f"not checked: {recorded['name']!r} is not beside it, so it can not be rolled back"
        check_parent(parent, recorded)
        return True, f"{recorded['name']!r} is beside it, unaltered"
