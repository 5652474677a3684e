"""The audit finds and names every change of the ledger; a cut or rewritten one by its exported head."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3

import pytest

from benchmarks.requests.tamper import missed_in_ledger
from unlearn.errors import FolderError, LedgerError, UnlearnError
from unlearn.requests import Desk, audit, audit_passes, cancel, export_head, make_keys, submit
from unlearn.requests.heads import head_bytes, read_head
from unlearn.requests.ledger import Ledger

TRIGGERS = ("events_stay", "events_last", "requests_stay", "requests_last")


def failures(folder, **options):
    return {check.name: check.detail for check in audit(folder, **options) if check.ok is False}


@pytest.fixture
def filled(desk, folder):
    """A ledger with a few requests, closed; the triggers' text to put back."""
    rows = desk.run.data.ids
    submit(desk, ids=rows[:2], reason="a")
    submit(desk, ids=rows[:2])
    submit(desk, ids=["nobody"])
    submit(desk, ids=rows[3:4], action="relabel", label=1)
    cancel(desk, 1, reason="withdrawn")
    export_head(desk)
    desk.ledger.close()
    assert audit_passes(audit(folder))
    return folder / "requests" / "ledger.sqlite"


@contextlib.contextmanager
def altering(path):
    """A connection that changes what triggers protect, and puts the triggers back."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA foreign_keys = OFF")
        saved = [database.execute("SELECT sql FROM sqlite_master WHERE name = ?", (t,)).fetchone()[0] for t in TRIGGERS]
        for name in TRIGGERS:
            database.execute(f"DROP TRIGGER {name}")
        yield database
        for text in saved:
            database.execute(text)


def test_every_single_byte_of_every_field_of_the_ledger(filled):
    """Rejects a hash that leaves a field out, and a register that nobody compares."""
    with contextlib.closing(sqlite3.connect(filled)) as database:
        events, registered = (database.execute(f"SELECT * FROM {name}").fetchall() for name in ("events", "requests"))
    tried, missed = missed_in_ledger(events, registered)
    assert tried > 1000
    assert missed == 0


@pytest.mark.parametrize(
    ("sql", "name", "said"),
    [
        ("UPDATE events SET who = 'someone' WHERE number = 3", "chain", "event 3 was altered"),
        ("DELETE FROM events WHERE number = 4", "ledger", "names a row"),
        ("DELETE FROM events WHERE number = (SELECT max(number) FROM events)", "heads", "its end was cut off"),
        ("UPDATE requests SET content = 'x' WHERE number = 2", "requests", "request 2 is registered as something else"),
        ("DELETE FROM requests WHERE number = 2", "ledger", "names a row"),
        ("INSERT INTO requests VALUES (9, 'x', 1, 3)", "requests", "4 requests are registered, and events name 3"),
    ],
)
def test_changes_in_the_file_itself(filled, folder, sql, name, said):
    with altering(filled) as database:
        database.execute(sql)
    found = failures(folder)
    assert name in found
    assert said in found[name]


def test_a_removed_trigger_is_named(filled, folder):
    with contextlib.closing(sqlite3.connect(filled)) as database:
        database.execute("DROP TRIGGER events_last")
        database.commit()
    assert "trigger" in failures(folder)["ledger"]


def test_bytes_of_the_file_are_found_or_change_no_row(filled, folder):
    """Free space in a page says nothing; everywhere else a changed byte is found."""
    with Ledger(filled) as ledger:
        before = ledger.events(), ledger.requests()
    data, draw, found = filled.read_bytes(), random.Random(0), 0
    for _ in range(150):
        at = draw.randrange(len(data))
        filled.write_bytes(data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :])
        if failures(folder):
            found += 1
            continue
        try:
            with Ledger(filled) as ledger:
                assert (ledger.events(), ledger.requests()) == before, at
        except UnlearnError:
            raise AssertionError(f"byte {at} breaks the ledger and the audit passes") from None
    assert found > 20


def test_the_head_kept_elsewhere_finds_a_cut_and_a_rewritten_ledger(filled, folder, tmp_path, keys, clock):
    kept = tmp_path / "kept.json"
    with Desk.open(folder, keys=keys, who="dpo", clock=clock) as desk:
        submit(desk, ids=["one more"])
        export_head(desk, kept)
    shutil.rmtree(folder / "requests" / "heads")
    assert audit_passes(audit(folder, head=kept, public_key=keys.public))
    with altering(filled) as database:
        database.execute("DELETE FROM events WHERE number >= 7")
        database.execute("DELETE FROM requests WHERE event >= 7")
    assert not failures(folder)  # without the head nothing is seen, as the docs say
    assert "its end was cut off" in failures(folder, head=kept)["head"]
    filled.unlink()
    with Desk.open(folder, keys=keys, who="dpo", clock=clock, create=True) as desk:
        for k in range(20):
            submit(desk, ids=[f"row {k}"])
    assert not failures(folder)
    assert "the ledger was rewritten" in failures(folder, head=kept)["head"]


def test_every_single_byte_of_a_head(desk, tmp_path, keys):
    submit(desk, ids=["a"])
    path = export_head(desk, tmp_path / "head.json")
    data = path.read_bytes()
    assert read_head(path, public_key=keys.public)["count"] == 2
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(LedgerError, match="head"):
            read_head(path, public_key=keys.public)


def test_a_head_signed_by_somebody_else(desk, tmp_path, keys, folder):
    submit(desk, ids=["a"])
    other = make_keys(tmp_path / "other")
    path = tmp_path / "head.json"
    path.write_bytes(head_bytes(desk.ledger.last(), other))
    assert read_head(path)["count"] == 2
    assert "not signed with the public key given" in failures(folder, head=path, public_key=keys.public)["head"]


def test_no_ledger_and_an_emptied_one(folder, keys):
    with pytest.raises(FolderError, match="no ledger"):
        audit(folder)
    Desk.open(folder, keys=keys, who="dpo", create=True).ledger.close()
    with altering(folder / "requests" / "ledger.sqlite") as database:
        database.execute("DELETE FROM events")
    assert "it was emptied" in failures(folder)["ledger"]


def test_another_original_is_named(filled, folder):
    path = folder / "original.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "the original was altered" in failures(folder)["files"]
