"""The ledger: one SQLite file to which events are only ever added."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unlearn.atomic import make_folder
from unlearn.errors import FolderError, LedgerError, UnlearnError
from unlearn.requests.events import Event, next_event

BUSY_SECONDS = 60.0
_COLUMNS = "number, time, who, kind, request, text, previous, hash"

# Version n of the schema is what the first n scripts make. A script that was released is never changed.
MIGRATIONS = (
    """
    CREATE TABLE events (
        number INTEGER PRIMARY KEY,
        time TEXT NOT NULL,
        who TEXT NOT NULL,
        kind TEXT NOT NULL,
        request INTEGER REFERENCES requests (number) DEFERRABLE INITIALLY DEFERRED,
        text TEXT NOT NULL,
        previous TEXT NOT NULL UNIQUE,
        hash TEXT NOT NULL UNIQUE
    );
    CREATE TABLE requests (
        number INTEGER PRIMARY KEY,
        content TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        event INTEGER NOT NULL UNIQUE REFERENCES events (number),
        UNIQUE (content, attempt)
    );
    """,
    """
    CREATE TRIGGER events_stay BEFORE UPDATE ON events
    BEGIN SELECT RAISE (ABORT, 'events are never changed'); END;
    CREATE TRIGGER events_last BEFORE DELETE ON events
    BEGIN SELECT RAISE (ABORT, 'events are never deleted'); END;
    CREATE TRIGGER requests_stay BEFORE UPDATE ON requests
    BEGIN SELECT RAISE (ABORT, 'requests are never changed'); END;
    CREATE TRIGGER requests_last BEFORE DELETE ON requests
    BEGIN SELECT RAISE (ABORT, 'requests are never deleted'); END;
    """,
)


class Ledger:
    """An open ledger. One process writes at a time; others wait.

    Args:
        path: the file.
        create: make it where it is missing.

    Raises:
        FolderError: there is no such file, or it can not be read or written.
        LedgerError: it is no ledger, or one of a newer version.

    >>> import tempfile
    >>> ledger = Ledger(Path(tempfile.mkdtemp(), "ledger.sqlite"), create=True)
    >>> with ledger.writing() as last:
    ...     event = ledger.append(last, time="2026-03-01T12:00:00Z", who="dpo", kind="opened", body={})
    >>> [event.kind for event in ledger.events()]
    ['opened']
    >>> ledger.close()
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        if create:
            make_folder(self.path.parent)
        elif not self.path.is_file():
            raise FolderError(f"there is no ledger {str(self.path)!r}; `unlearn request submit` makes one")
        with self._clear_errors():
            self._database = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
            )
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                self._database.execute("PRAGMA foreign_keys = ON")
                self._migrate()
            except BaseException:
                self._database.close()
                raise

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _migrate(self) -> None:
        """Bring an older schema up to date, all steps or none."""
        if self._version() == len(MIGRATIONS):
            return
        with self._transaction():
            version = self._version()
            if version > len(MIGRATIONS):
                raise LedgerError(
                    f"ledger {str(self.path)!r} has schema {version}, written by a newer version; this one reads up to "
                    f"{len(MIGRATIONS)}: upgrade unlearn"
                )
            for script in MIGRATIONS[version:]:
                for statement in _statements(script):
                    self._database.execute(statement)
            self._database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _version(self) -> int:
        return int(self._database.execute("PRAGMA user_version").fetchone()[0])

    @contextlib.contextmanager
    def writing(self) -> Iterator[Event | None]:
        """Hold the ledger for writing; gives the last event. What was added stays only if the block ends well."""
        with self._transaction():
            yield self.last()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._clear_errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._database.execute("ROLLBACK")
                raise

    def append(
        self, last: Event | None, *, time: str, who: str, kind: str, body: dict[str, Any], request: int | None = None
    ) -> Event:
        """Add the event that follows ``last``, within :meth:`writing`."""
        event = next_event(last, time=time, who=who, kind=kind, request=request, body=body)
        fields = (event.number, time, who, kind, request, event.text, event.previous, event.hash)
        with self._clear_errors():
            self._database.execute(f"INSERT INTO events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", fields)
        return event

    def register(self, number: int, content: str, attempt: int, event: int) -> None:
        """Add a request under the code of its content, within :meth:`writing`; the same one twice is refused."""
        with self._clear_errors():
            self._database.execute("INSERT INTO requests VALUES (?, ?, ?, ?)", (number, content, attempt, event))

    def find(self, content: str) -> tuple[int, int] | None:
        """Return number and attempt of the latest request with this content, or None."""
        with self._clear_errors():
            sql = "SELECT number, attempt FROM requests WHERE content = ? ORDER BY attempt DESC LIMIT 1"
            found = self._database.execute(sql, (content,)).fetchone()
        return None if found is None else (int(found[0]), int(found[1]))

    def requests(self) -> list[tuple[int, str, int, int]]:
        """Return (number, content, attempt, event) of every request."""
        with self._clear_errors():
            return self._database.execute("SELECT * FROM requests ORDER BY number").fetchall()

    def last(self) -> Event | None:
        """Return the last event, or None in an empty ledger."""
        with self._clear_errors():
            sql = f"SELECT {_COLUMNS} FROM events ORDER BY number DESC LIMIT 1"
            found = self._database.execute(sql).fetchone()
        return None if found is None else Event(*found)

    def events(self, after: int = 0) -> list[Event]:
        """Return the events with numbers above ``after``, in order."""
        with self._clear_errors():
            sql = f"SELECT {_COLUMNS} FROM events WHERE number > ? ORDER BY number"
            return [Event(*row) for row in self._database.execute(sql, (after,))]

    def structure_flaw(self) -> str | None:
        """Return what is wrong with the file itself (pages, foreign keys, tables and triggers); None if nothing."""
        try:
            for (said,) in self._database.execute("PRAGMA integrity_check"):
                if said != "ok":
                    return f"the file is damaged: {said}"
            broken = self._database.execute("PRAGMA foreign_key_check").fetchone()
            sql = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
            found = [text for (text,) in self._database.execute(sql)]
        except (sqlite3.Error, UnicodeDecodeError) as error:
            return f"the file is damaged: {error}"
        if broken is not None:
            return f"a row of table {broken[0]!r} names a row of {broken[2]!r} that is not there"
        if found != _expected_schema():
            return "a table or a trigger that keeps events from being changed was altered or removed"
        return None

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except UnlearnError:
            raise
        except sqlite3.Error as error:
            raise _clear(error, self.path) from error


def _statements(script: str) -> Iterator[str]:
    part = ""
    for line in script.splitlines():
        part += line + "\n"
        if sqlite3.complete_statement(part):
            yield part.strip()
            part = ""


def _expected_schema() -> list[str]:
    """Return the statements of a fresh ledger, as SQLite gives them back."""
    with contextlib.closing(sqlite3.connect(":memory:")) as fresh:
        for script in MIGRATIONS:
            fresh.executescript(script)
        sql = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
        return [text for (text,) in fresh.execute(sql)]


def _clear(error: sqlite3.Error, path: Path) -> UnlearnError:
    """Return the one clear line of an SQLite error."""
    said, name = str(error), f"ledger {str(path)!r}"
    if "full" in said or "disk I/O" in said:
        return FolderError(f"can not write {name}: {said}; free some space, then do it again: nothing was changed")
    if "readonly" in said or "unable to open" in said:
        return FolderError(f"can not write {name}: {said}; make its folder writable: nothing was changed")
    if "locked" in said or "busy" in said:
        return FolderError(f"{name} is in use by another process for over {BUSY_SECONDS:g} s; try again")
    if "not a database" in said or "malformed" in said:
        return LedgerError(f"{name} is damaged ({said}); restore it from a copy")
    return LedgerError(f"{name} refuses: {said}; run `unlearn request audit`")
