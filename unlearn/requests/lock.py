"""One process works on the requests of a run at a time.

The lock is the kernel's, on an open file: it goes with the process that holds it, however that ends, so a dead
process's lock needs no breaking. The file says who holds it. Submitting needs no lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from unlearn.errors import FolderError, LockedError
from unlearn.requests.shown import shown

try:
    import fcntl
except ImportError:  # pragma: no cover - no such lock on this system
    fcntl = None  # type: ignore[assignment]

PAUSE = 0.1


@contextlib.contextmanager
def working(path: Path, *, who: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock.

    Args:
        path: the lock file; its folder exists.
        who: the operator, for the message to others.
        wait: seconds to wait for another process.

    Raises:
        LockedError: another process holds it for longer; the message says which.
        FolderError: the file can not be written, or the system has no such locks.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp(), "lock")
    >>> with working(place, who="dpo"):
    ...     json.loads(place.read_text())["who"]
    'dpo'
    """
    if fcntl is None:  # pragma: no cover
        raise FolderError("this system has no file locks (fcntl); process requests on Linux or macOS")
    try:
        file = open(path, "a+")  # noqa: SIM115 - held open for as long as the lock
    except OSError as error:
        raise FolderError(f"can not open lock {str(path)!r}: {error.strerror}; make its folder writable") from error
    with file:
        _take(file, path, wait)
        try:
            file.seek(0)
            file.truncate()
            file.write(json.dumps({"pid": os.getpid(), "who": who, "since": int(time.time())}))
            file.flush()
        except OSError as error:
            raise FolderError(f"can not write lock {str(path)!r}: {error.strerror}; free some space") from error
        yield


def _take(file: IO[str], path: Path, wait: float) -> None:
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise LockedError(f"{_holder(path)} works on these requests; wait for it, or give --wait") from None
        except OSError as error:
            raise FolderError(f"can not lock {str(path)!r}: {error.strerror}; use a local disk") from error
        time.sleep(PAUSE)


def _holder(path: Path) -> str:
    try:
        said = json.loads(path.read_text())
        return f"process {int(said['pid'])} ({shown(str(said['who']))})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
