"""Decisions on the disk, one line each, in the order in which they were made; nothing is ever changed or removed.

A line counts when its end is on the disk. What a crash left of a line without its end was never told to be saved, and
is cut off when the file is opened again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from unlearn.atomic import write_atomically
from unlearn.errors import FolderError

FORMAT = 1


class Journal:
    """An append-only file of JSON lines, for one process at a time.

    Args:
        path: the file; made if it is not there.
        subject: what the entries are about; a file about something else is refused.

    Raises:
        FolderError: the file is damaged, of another version or subject, in use, or can not be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Journal(Path(folder, "a.jsonl"), "rows 1") as journal:
    ...         journal.append({"row": "a"})
    ...     with Journal(Path(folder, "a.jsonl"), "rows 1") as journal:
    ...         journal.entries
    [{'row': 'a'}]
    """

    def __init__(self, path: Path, subject: str) -> None:
        self.path, self._size = path, 0
        if not path.exists():
            write_atomically(path, _line({"format": FORMAT, "subject": subject}))
        try:
            self._file = open(path, "r+b")  # noqa: SIM115
        except OSError as error:
            raise FolderError(f"can not write {str(path)!r}: {error.strerror}; check its permissions") from error
        try:
            _lock(self._file.fileno(), path)
            self.entries = self._read(subject)
        except BaseException:
            self._file.close()
            raise

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an entry, and flush it to the disk.

        Raises:
            FolderError: the disk does not take it; the file is then as it was.
        """
        line, size = _line(entry), self._size
        try:
            self._file.seek(size)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError, ValueError):
                self._file.truncate(size)
            raise FolderError(
                f"can not write {str(self.path)!r}: {error}; the decision is not saved: make room and decide again"
            ) from error
        self._size = size + len(line)
        self.entries.append(dict(entry))

    def close(self) -> None:
        """Let others have the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, subject: str) -> list[dict[str, Any]]:
        text = self._file.read()
        whole, end, _ = text.rpartition(b"\n")
        entries = []
        for number, line in enumerate(whole.split(b"\n"), 1):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                raise FolderError(
                    f"{str(self.path)!r} is damaged in line {number}; restore it from a copy, or move it away to begin "
                    "anew"
                )
            entries.append(entry)
        if entries[0].get("format") != FORMAT:
            raise FolderError(
                f"{str(self.path)!r} has format {entries[0].get('format')!r}; this release reads {FORMAT}: move it "
                "away to begin anew"
            )
        if entries[0].get("subject") != subject:
            raise FolderError(
                f"{str(self.path)!r} was begun on other rows: they were detected anew since; move it away to begin anew"
            )
        self._size = len(whole) + len(end)
        if self._size < len(text):
            self._file.truncate(self._size)
        return entries[1:]


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, allow_nan=False).encode() + b"\n"


def _lock(file: int, path: Path) -> None:
    """Refuse a file that another process has; a process that dies lets it go. Where there are no locks, do nothing."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise FolderError(
            f"{str(path)!r} is in use by another `unlearn review`; end that one, or go on in its page"
        ) from error
