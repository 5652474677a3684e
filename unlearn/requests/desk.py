"""The desk: a run, its ledger, the keys, who works at it and what time it is."""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from unlearn.checkpoint import read_checkpoint
from unlearn.checkpoint.digests import sha256_of_file
from unlearn.errors import FolderError, InputError, LedgerError
from unlearn.pipeline import Run
from unlearn.requests.events import Event
from unlearn.requests.keys import Keys
from unlearn.requests.ledger import Ledger
from unlearn.requests.state import State
from unlearn.requests.transitions import take_in

FOLDER, LEDGER = "requests", "ledger.sqlite"
LONGEST_NAME = 200


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(timezone.utc)


def nothing(point: str) -> None:
    """Do nothing at a named point; tests put something here that kills the process."""


@dataclass
class Desk:
    """Where requests of one run are worked on; a context manager that closes the ledger.

    Attributes:
        run: the run folder of the model.
        ledger: its ledger.
        keys: row key and signing key; None to look only.
        who: the operator's name, noted with every event.
        clock: gives the time in UTC.
        fault: called with the name of every point at which a test may kill the process.
    """

    run: Run
    ledger: Ledger
    keys: Keys | None = None
    who: str = ""
    clock: Callable[[], datetime] = utc_now
    fault: Callable[[str], None] = nothing
    _state: State = field(default_factory=State, repr=False)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        keys: str | Path | Keys | None = None,
        who: str | None = None,
        clock: Callable[[], datetime] = utc_now,
        fault: Callable[[str], None] = nothing,
        create: bool = False,
        device: str | None = None,
    ) -> Desk:
        """Open the requests of a run.

        Args:
            folder: the run folder.
            keys: a key folder. Needed to submit and to process.
            who: the operator; the name of the login if None.
            clock: gives the time in UTC.
            fault: see above.
            create: begin a ledger where there is none.
            device: where to compute.

        Raises:
            FolderError: no run, no ledger, or no keys.
            LedgerError: the ledger belongs to another row key, or is damaged.
            InputError: a name that can not be noted.
        """
        run = Run.open(folder, device=device)
        if device is not None:
            run.build()  # a device that can not be used is refused before anything is begun
        found = Keys.load(keys, run=run.folder) if isinstance(keys, (str, Path)) else keys
        name = _checked_name(getpass.getuser() if who is None else who)
        path = run.folder / FOLDER / LEDGER
        if create and not path.exists():
            _with_row_key(found)
        ledger = Ledger(path, create=create)
        try:
            desk = cls(run, ledger, found, name, clock, fault)
            if create and desk.state().count == 0:
                desk._begin()
            if found is not None and found.rows is not None and desk.state().key is not None:
                desk.check_key()
        except BaseException:
            ledger.close()
            raise
        return desk

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close()

    @property
    def folder(self) -> Path:
        """Where everything about requests lies."""
        return self.run.folder / FOLDER

    @property
    def time(self) -> str:
        """The time in UTC, as ``2026-03-01T12:00:00Z``."""
        return self.clock().astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    @property
    def today(self) -> str:
        """The date in UTC."""
        return self.time[:10]

    def state(self) -> State:
        """Return what the ledger says now."""
        try:
            return take_in(self._state, self.ledger.events(self._state.count))
        except BaseException:
            self._state = State()
            raise

    @contextlib.contextmanager
    def writing(self) -> Iterator[tuple[State, Callable[..., Event]]]:
        """Hold the ledger: gives the state and a function that adds an event; all of it is kept, or nothing."""
        try:
            with self.ledger.writing() as last:
                state = take_in(self._state, self.ledger.events(self._state.count))

                def add(kind: str, body: dict[str, Any], request: int | None = None) -> Event:
                    nonlocal last
                    last = self.ledger.append(last, time=self.time, who=self.who, kind=kind, body=body, request=request)
                    take_in(state, [last])
                    return last

                yield state, add
        except BaseException:
            self._state = State()  # what was taken in may have been rolled back
            raise

    def record(self, kind: str, body: dict[str, Any], request: int | None = None) -> Event:
        """Add one event."""
        with self.writing() as (_, add):
            return add(kind, body, request)

    @property
    def row_key(self) -> Keys:
        """The keys, with a row key.

        Raises:
            LedgerError: there is none.
        """
        return _with_row_key(self.keys)

    def check_key(self) -> None:
        """Refuse another row key than the ledger's.

        Raises:
            LedgerError: the fingerprints differ.
        """
        known = self.state().key
        if known is None:
            raise LedgerError(
                "the row key of this ledger was destroyed, so it takes no more requests; train a new run on the "
                "data as it is now"
            )
        if known != self.row_key.fingerprint:
            raise LedgerError(
                f"the ledger was written with row key {known}, the one given is {self.row_key.fingerprint}; give the "
                "folder of the first one"
            )

    @cached_property
    def id_of(self) -> dict[str, str]:
        """Row id by code, for every row of the training data."""
        code = self.row_key.code
        return {code("row", row): row for row in self.run.data.ids}

    def _begin(self) -> None:
        """Add the first event."""
        original = self.run.folder / "original.safetensors"
        if not original.exists():
            raise FolderError(f"{str(original)!r} is not there; train first: `unlearn train RECIPE --out RUN`")
        facts = {"sha256": sha256_of_file(original), "digest": read_checkpoint(original).digest}
        key, public = self.row_key.fingerprint, self.row_key.public
        with self.writing() as (state, add):
            if state.count == 0:
                opened = {"format": 1, "key": key, "public_key": public, "original": facts}
                add("opened", {**opened, "recipe": self.run.recipe.digest, "data": self.run.data.fingerprint})


def _with_row_key(keys: Keys | None) -> Keys:
    if keys is None or keys.rows is None:
        raise LedgerError("this needs the row key; give its folder with --keys, or make one: unlearn request keygen")
    return keys


def _checked_name(who: str) -> str:
    try:
        who.encode()
    except UnicodeEncodeError:
        who = ""
    if not 0 < len(who) <= LONGEST_NAME:
        raise InputError(f"the operator's name has to have 1 to {LONGEST_NAME} characters; give one with --by")
    return who
