"""Removing what a begun purge names, and the row key once the ledger has given it up."""

from __future__ import annotations

import shutil
from pathlib import Path

from unlearn.errors import FolderError, LedgerError
from unlearn.requests.desk import Desk
from unlearn.requests.heads import write_head


def finish_purge(desk: Desk) -> None:
    """Remove what a begun purge names; what is gone already is no harm."""
    purging = desk.state().purging
    if purging is None:
        return
    for name in purging["paths"]:
        _remove(desk.run.folder, name)
        desk.fault("purged a part")
    event = desk.record("purged", {"paths": purging["paths"]})
    desk.fault("purged")
    write_head(desk, event)


def finish_key(desk: Desk) -> None:
    """Destroy the row key that the ledger has given up; a process may have died between the event and the file."""
    state, keys = desk.state(), desk.keys
    given_up = state.count > 0 and state.key is None
    if given_up and keys is not None and keys.rows is not None and keys.fingerprint == state.opened["key"]:
        keys.destroy()


def _remove(run: Path, name: str) -> None:
    path = run / name
    if not path.resolve().is_relative_to(run.resolve()) or path == run:
        raise LedgerError(f"the ledger asks to purge {name!r}, which is outside the run; run `unlearn request audit`")
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise FolderError(
            f"can not remove {str(path)!r}: {error.strerror}; make it writable and purge again"
        ) from error
