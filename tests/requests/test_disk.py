"""A full disk and a folder that can not be written: one clear line, and nothing is changed."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import tempfile
from pathlib import Path

import pytest

from benchmarks.requests.stories import in_child, write_recipe
from unlearn.errors import FolderError
from unlearn.requests import (
    Desk,
    Keys,
    approve,
    audit,
    audit_passes,
    cancel,
    export_events,
    export_head,
    make_keys,
    process,
    purge,
    submit,
)

CLEAR = 7
NOBODY = 65534
ACTS = {
    "submit": lambda desk: submit(desk, ids=["one more"]),
    "cancel": lambda desk: cancel(desk, 2, reason="withdrawn"),
    "approve": lambda desk: approve(desk, 1, reason="seen"),
    "process": lambda desk: process(desk),
    "purge": lambda desk: purge(desk),
    "export the head": lambda desk: export_head(desk, desk.run.folder / "head.json"),
    "export events": lambda desk: export_events(desk, desk.run.folder / "events.jsonl"),
}


@pytest.fixture
def place():
    """A folder outside pytest's, which only its owner may enter."""
    made = Path(tempfile.mkdtemp(prefix="unlearn-disk-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def held(trained, place, keys, clock):
    """A run with one held request and one that waits."""
    shutil.copytree(trained, place / "run")
    write_recipe(place / "run", {"references = 2": "references = 0"})
    with Desk.open(place / "run", keys=keys, who="dpo", clock=clock, create=True) as desk:
        submit(desk, ids=desk.run.data.ids[:2])
        process(desk)
        submit(desk, ids=["nobody"])
    return place / "run"


def contents(folder):
    with Desk.open(folder, who="auditor") as desk:
        events = desk.ledger.events()
    skipped = ("ledger.sqlite", "lock")
    return events, {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(skipped)
    }


def clear_line(work):
    """Run it in a child; exit with CLEAR for one clear line of a typed error."""
    try:
        work()
    except FolderError as error:
        text = str(error)
        assert "\n" not in text
        assert any(word in text for word in ("can not", "is full", "writable", "permission denied")), text
        os._exit(CLEAR)


@pytest.mark.parametrize("name", ACTS)
def test_a_folder_that_can_not_be_written(name, held, keys, clock):
    before = contents(held)
    paths = [held, *held.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}

    def work():
        if os.geteuid() == 0:
            os.seteuid(NOBODY)  # root may write everywhere
        with Desk.open(held, keys=keys, who="dpo", clock=clock) as desk:
            ACTS[name](desk)

    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        status = in_child(lambda: clear_line(work))
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert status == CLEAR
    assert contents(held) == before
    with Desk.open(held, keys=keys, who="dpo", clock=clock) as desk:
        ACTS[name](desk) if name != "purge" else None  # and with a right to write it goes on
    assert audit_passes(audit(held))


@pytest.mark.parametrize(("name", "room"), [("submit", 30_000), ("export events", 500), ("approve", 2_000)])
def test_a_full_disk(name, room, held, keys, clock):
    events, files = contents(held)

    def work():
        with Desk.open(held, keys=keys, who="dpo" * 60, clock=clock) as desk:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            for _ in range(40):  # until the write-ahead log has no room left
                ACTS[name](desk) if name != "submit" else submit(desk, ids=[f"row {desk.state().count}"])

    assert in_child(lambda: clear_line(work)) == CLEAR
    found, left = contents(held)
    assert found[: len(events)] == events
    assert not [path for path in left if path.name.endswith(".part")]
    assert {path: data for path, data in left.items() if path in files and path.name != "current.json"} == {
        path: data for path, data in files.items() if path.name != "current.json"
    }
    assert audit_passes(audit(held))
    with Desk.open(held, keys=keys, who="dpo", clock=clock) as desk:
        process(desk)  # with space again it goes on
    assert audit_passes(audit(held))


def test_keys_are_whole_or_not_there(place):
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (70, resource.RLIM_INFINITY))  # the row key fits, the next does not
        make_keys(place / "keys")

    assert in_child(lambda: clear_line(full)) == CLEAR
    assert not list((place / "keys").iterdir())
    (place / "closed").mkdir(mode=0o555)

    def closed():
        if os.geteuid() == 0:
            os.seteuid(NOBODY)
        make_keys(place / "closed" / "keys")

    assert in_child(lambda: clear_line(closed)) == CLEAR
    with contextlib.suppress(FolderError):
        Keys.load(place / "closed" / "keys")
    assert not (place / "closed" / "keys").exists()
