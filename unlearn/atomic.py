"""Writing a file so that what stands under its name is whole: the old bytes or the new, never a part."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from unlearn.errors import FolderError
from unlearn.ranks import on_first_rank

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.ENOENT: "its folder does not exist; create it first",
    errno.ENOTDIR: "its folder is a file; choose another folder",
    errno.EISDIR: "a folder has this name; choose another name",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``<path>.part``, flush it to the disk, and rename it to ``path``.

    A crash at any moment leaves under ``path`` either what stood there before or all of ``data``. The folder is not
    created. Of several ranks the first writes (:func:`unlearn.ranks.on_first_rank`).

    Args:
        path: the final name; a file that stands there is replaced.
        data: all bytes of the file.

    Raises:
        FolderError: the folder is missing, full or not writable; what stood under ``path`` is untouched and the
            ``.part`` file is removed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder, "a.json"), b"{}")
    ...     [(file.name, file.read_bytes()) for file in Path(folder).iterdir()]
    [('a.json', b'{}')]
    """
    final = Path(path)
    if not final.name:
        raise FolderError(f"can not write {str(path)!r}: it names no file; give a file name")
    on_first_rank(lambda: _write(final, data))


def _write(final: Path, data: bytes) -> None:
    part = final.with_name(final.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, final)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise FolderError(f"can not write {str(final)!r}: {_remedy(error)}") from error
        raise
    _sync_folder(final)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder with its parents, if it is not there.

    Raises:
        FolderError: it can not be created.
    """
    folder = Path(path)
    on_first_rank(lambda: _make(folder))
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "a file has this name; choose another folder" if folder.is_file() else _remedy(error)
        raise FolderError(f"can not create folder {str(folder)!r}: {remedy}") from error


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what was written as one JSON table.

    Raises:
        FolderError: the file can not be read, or something else is in it.
    """
    try:
        facts = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise FolderError(
            f"{str(path)!r} is damaged ({error}); restore it from a copy, or repeat the stage that wrote it"
        ) from error
    if not isinstance(facts, dict):
        raise FolderError(f"{str(path)!r} holds {type(facts).__name__}, no table; restore it from a copy")
    return facts


def _remedy(error: OSError) -> str:
    return _REMEDIES.get(error.errno or 0, f"{error.strerror or error}; check the disk or choose another folder")


def _sync_folder(file: Path) -> None:
    """Flush the rename itself; file systems that can not flush a folder are left to their own order."""
    if os.name == "nt":
        return
    try:
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise FolderError(
                f"{str(file)!r} is written, but its folder could not be flushed to the disk: {_remedy(error)}"
            ) from error
