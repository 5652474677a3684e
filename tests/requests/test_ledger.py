"""The ledger: events are only added, each follows from the last, and errors of the disk change nothing."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace

import pytest

from unlearn.errors import FolderError, LedgerError
from unlearn.requests import ledger as ledger_module
from unlearn.requests.events import START, first_flaw, next_event
from unlearn.requests.ledger import MIGRATIONS, Ledger
from unlearn.requests.state import State
from unlearn.requests.transitions import take_in


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def add(ledger, kind="opened", **more):
    with ledger.writing() as last:
        return ledger.append(last, time="2026-03-01T12:00:00Z", who="dpo", kind=kind, body={"x": 1}, **more)


def add_two(ledger, who):
    with ledger.writing() as last:
        for _ in range(2):
            last = ledger.append(last, time="2026-03-01T12:00:00Z", who=who, kind="k", body={})


def test_wal_foreign_keys_and_schema_version(path):
    with Ledger(path, create=True) as ledger:
        pragma = {
            name: ledger._database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "foreign_keys", "user_version", "synchronous")
        }
    assert pragma == {"journal_mode": "wal", "foreign_keys": 1, "user_version": len(MIGRATIONS), "synchronous": 2}


def test_events_are_chained_and_any_other_field_is_seen(path):
    with Ledger(path, create=True) as ledger:
        for _ in range(3):
            add(ledger)
        events = ledger.events()
    assert events[0].previous == START
    assert [e.previous for e in events[1:]] == [e.hash for e in events[:-1]]
    assert first_flaw(events) is None
    for field, value in (
        ("number", 9), ("time", "2026-03-01T12:00:01Z"), ("who", "dp0"), ("kind", "opemed"), ("request", 1),
        ("text", '{"x":2}'), ("previous", START), ("hash", START),
    ):  # fmt: skip
        altered = [events[0], replace(events[1], **{field: value}), events[2]]
        assert first_flaw(altered) is not None, field
    assert first_flaw([events[0], events[2]]) == "event 2 is missing (event 3 stands in its place)"


def test_events_and_requests_can_not_be_changed_or_deleted(path):
    with Ledger(path, create=True) as ledger:
        with ledger.writing() as last:
            event = ledger.append(last, time="t", who="w", kind="submitted", body={}, request=1)
            ledger.register(1, "content", 1, event.number)
        for sql, said in (
            ("UPDATE events SET who = 'x'", "events are never changed"),
            ("DELETE FROM events", "events are never deleted"),
            ("UPDATE requests SET content = 'x'", "requests are never changed"),
            ("DELETE FROM requests", "requests are never deleted"),
        ):
            with pytest.raises(sqlite3.IntegrityError, match=said):
                ledger._database.execute(sql)


def test_an_event_of_a_request_that_is_not_there_is_refused(path):
    with Ledger(path, create=True) as ledger:
        with pytest.raises(LedgerError, match="FOREIGN KEY"):
            add(ledger, request=7)
        assert ledger.events() == []


def test_the_same_content_twice_is_refused_by_the_database_itself(path):
    with Ledger(path, create=True) as ledger, ledger.writing() as last:
        first = ledger.append(last, time="t", who="w", kind="submitted", body={}, request=1)
        ledger.register(1, "content", 1, first.number)
        second = ledger.append(first, time="t", who="w", kind="submitted", body={}, request=2)
        with pytest.raises(LedgerError, match="UNIQUE"):
            ledger.register(2, "content", 1, second.number)
        ledger.register(2, "content", 2, second.number)


def test_an_older_schema_is_brought_up_to_date(path):
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript(MIGRATIONS[0] + "PRAGMA user_version = 1;")
    with Ledger(path) as ledger:
        assert ledger.structure_flaw() is None
        add(ledger)


def test_a_newer_schema_is_refused_by_name(path):
    with contextlib.closing(sqlite3.connect(path)) as new:
        new.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="schema 99, written by a newer version"):
        Ledger(path)


def test_a_missing_trigger_is_seen(path):
    with Ledger(path, create=True) as ledger:
        ledger._database.execute("DROP TRIGGER events_stay")
        assert "trigger" in ledger.structure_flaw()


def test_a_file_that_is_no_ledger_and_a_missing_one(path, tmp_path):
    with pytest.raises(FolderError, match="there is no ledger"):
        Ledger(path)
    path.write_text("not a database, but long enough to be read as one" * 100)
    with pytest.raises(LedgerError, match="is damaged"):
        Ledger(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="can not create folder"):
        Ledger(tmp_path / "file" / "ledger.sqlite", create=True)


@pytest.mark.parametrize(
    ("said", "kind", "line"),
    [
        ("database or disk is full", FolderError, "free some space"),
        ("disk I/O error", FolderError, "free some space"),
        ("attempt to write a readonly database", FolderError, "make its folder writable"),
        ("unable to open database file", FolderError, "make its folder writable"),
        ("database is locked", FolderError, "in use by another process"),
        ("database disk image is malformed", LedgerError, "is damaged"),
    ],
)
def test_errors_of_sqlite_become_one_clear_line(said, kind, line, path):
    found = ledger_module._clear(sqlite3.OperationalError(said), path)
    assert type(found) is kind
    assert line in str(found)


def test_a_full_ledger_takes_no_part_of_a_write(path):
    with Ledger(path, create=True) as ledger:
        add(ledger)
        pages = ledger._database.execute("PRAGMA page_count").fetchone()[0]
        ledger._database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(FolderError, match="free some space, then do it again: nothing was changed"):
            add_two(ledger, "w" * 5000)
        assert len(ledger.events()) == 1
        ledger._database.execute(f"PRAGMA max_page_count = {pages + 1000}")
        add(ledger)
        assert first_flaw(ledger.events()) is None


def test_an_event_that_can_not_follow_is_refused():
    event = next_event(None, time="t", who="w", kind="released", request=None, body={"batch": 1})
    with pytest.raises(LedgerError, match="event 1 \\(released\\) can not follow"):
        take_in(State(), [event])
    event = next_event(None, time="t", who="w", kind="something", request=None, body={})
    with pytest.raises(LedgerError, match="unknown kind 'something'"):
        take_in(State(), [event])
