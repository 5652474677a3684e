"""The parent of an edited checkpoint, and the way back to it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.atomic import write_atomically
from unlearn.checkpoint.digests import sha256_of_file
from unlearn.checkpoint.reading import read_metadata
from unlearn.errors import CheckpointError, FolderError


@dataclass(frozen=True)
class Rollback:
    """What a rollback did.

    Attributes:
        restored: the file that now has the parent's bytes.
        kept: where the edited file went, or None when it stays where it was.
        parent: the file the bytes came from.
        sha256: of the restored bytes, as hex.
    """

    restored: Path
    kept: Path | None
    parent: Path
    sha256: str


def find_parent(path: Path, recorded: Mapping[str, Any]) -> Path:
    """Return where the recorded parent of the checkpoint at ``path`` should lie: in the same folder.

    Raises:
        CheckpointError: the recorded name is no plain file name.
    """
    name = str(recorded["name"])
    if not name or Path(name).name != name or "\\" in name:
        raise CheckpointError(f"{str(path)!r} names its parent {name!r}, which is no plain file name; give parent=")
    return path.parent / name


def check_parent(parent: Path, recorded: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the file's sha256 is the recorded one."""
    _refuse_other(parent, sha256_of_file(parent), recorded)


def rollback(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    parent: str | os.PathLike[str] | None = None,
) -> Rollback:
    """Put the parent's bytes in the place of an edited checkpoint; the edited file is kept under another name.

    The edited file goes to ``<stem>.rolled-back<suffix>``, or to ``<stem>.rolled-back-2<suffix>`` and so on where that
    name is taken. At any moment ``path`` is one of the two files, whole.

    Args:
        path: an edited checkpoint.
        out: write the parent's bytes to this new file instead, and leave ``path`` as it is.
        parent: where the parent lies now; by default in the same folder, under the recorded name.

    Raises:
        CheckpointError: the checkpoint is damaged or has no parent, or the parent is missing or altered.
        FolderError: ``out`` exists, or the folder can not be written.

    >>> import tempfile, torch
    >>> from unlearn.checkpoint import save_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a, b = Path(folder, "a.safetensors"), Path(folder, "b.safetensors")
    ...     digests = save_checkpoint(a, {"w": torch.ones(1)}), save_checkpoint(b, {"w": torch.zeros(1)}, parent=a)
    ...     done = rollback(b)
    ...     a.read_bytes() == b.read_bytes(), done.kept.name
    (True, 'b.rolled-back.safetensors')
    """
    edited = Path(path)
    recorded = read_metadata(edited).get("parent")
    if recorded is None:
        raise CheckpointError(
            f"{str(edited)!r} has no parent, so there is nothing to roll back to; give an edited file"
        )
    source = find_parent(edited, recorded) if parent is None else Path(parent)
    data = _read_parent_bytes(source, recorded)
    if out is not None:
        if os.path.lexists(out):
            raise FolderError(f"{str(out)!r} exists; give a new name, or leave out= away to replace the edited file")
        write_atomically(out, data)
        return Rollback(Path(out), None, source, str(recorded["sha256"]))
    kept = _keep(edited)
    try:
        write_atomically(edited, data)
    except FolderError:
        if sha256_of_file(edited) != recorded["sha256"]:  # still the edited file, so its second name is not needed
            kept.unlink(missing_ok=True)
        raise
    return Rollback(edited, kept, source, str(recorded["sha256"]))


def _read_parent_bytes(parent: Path, recorded: Mapping[str, Any]) -> bytes:
    try:
        data = parent.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"can not read the parent {str(parent)!r}: {error.strerror}; say where {recorded['name']!r} lies now with "
            "parent= (--parent)"
        ) from error
    _refuse_other(parent, hashlib.sha256(data).hexdigest(), recorded)
    return data


def _refuse_other(parent: Path, sha256: str, recorded: Mapping[str, Any]) -> None:
    if sha256 != recorded["sha256"]:
        raise CheckpointError(
            f"{str(parent)!r} is not the parent that was edited: its sha256 is {sha256[:12]}..., recorded is "
            f"{str(recorded['sha256'])[:12]}...; it was altered or replaced: restore it, or give parent="
        )


def _keep(edited: Path) -> Path:
    """Give the edited file a second name that was free; a link, so that no moment is without it."""
    for kept in _names_aside(edited):
        try:
            os.link(edited, kept)
        except FileExistsError:
            continue
        except OSError:  # a file system without hard links
            if os.path.lexists(kept):
                continue
            write_atomically(kept, edited.read_bytes())
        return kept
    raise FolderError(f"no name is left beside {str(edited)!r} to keep it under; move older files away")


def _names_aside(edited: Path) -> Iterator[Path]:
    yield edited.with_name(f"{edited.stem}.rolled-back{edited.suffix}")
    for number in range(2, 10_000):
        yield edited.with_name(f"{edited.stem}.rolled-back-{number}{edited.suffix}")
