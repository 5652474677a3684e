"""Processing: what is released, what is held, what never comes back; certificates that say what was done."""

from __future__ import annotations

import json
import os
import shutil
import time
from fnmatch import fnmatch

import pytest

from benchmarks.requests.stories import in_child, write_recipe
from unlearn.errors import FolderError, InputError, LedgerError, LockedError
from unlearn.requests import (
    Desk,
    approve,
    audit,
    audit_passes,
    make_keys,
    plan_purge,
    process,
    purge,
    refuse,
    rollback,
    submit,
    verify_certificate,
)
from unlearn.requests.answer import changes_of, model_after, rows_after
from unlearn.requests.lock import working
from unlearn.requests.named_files import model_path

NO_REFERENCES = {"references = 2": "references = 0"}


@pytest.fixture
def held_run(folder):
    """A run whose edits are always held: without references no verdict is reached."""
    write_recipe(folder, NO_REFERENCES)
    return folder


@pytest.fixture
def held_desk(held_run, keys, clock):
    with Desk.open(held_run, keys=keys, who="dpo", clock=clock, create=True) as opened:
        yield opened


def certificates(desk):
    place = desk.folder / "certificates"
    return {path.name[:6]: json.loads(path.read_text()) for path in sorted(place.glob("*.json"))}


def failing(checks):
    return [check.name for check in checks if check.ok is False]


def test_an_undecided_edit_is_held_then_approved(held_desk, keys):
    rows = held_desk.run.data
    submit(held_desk, ids=rows.ids[:3], reason="x")
    submit(held_desk, ids=["nobody"])
    state = process(held_desk)
    assert state.held is not None
    assert state.current == 0
    assert [request.status for request in state.requests.values()] == ["held", "in work"]
    pointer = json.loads((held_desk.folder / "current.json").read_text())
    assert (pointer["batch"], pointer["checkpoint"]) == (0, "original.safetensors")
    submit(held_desk, ids=rows.ids[10:11])
    assert len(process(held_desk).batches) == 1  # a held batch stops: nothing is built on it
    with pytest.raises(InputError, match="R-0003 is received; only what is held"):
        approve(held_desk, 3, reason="x")
    with pytest.raises(InputError, match="for a reason"):
        approve(held_desk, 1, reason="")

    state = approve(held_desk, 1, reason="seen")
    assert [state.requests[k].status for k in (1, 2, 3)] == ["released", "not held", "received"]
    pointer = json.loads((held_desk.folder / "current.json").read_text())
    assert pointer["checkpoint"] == "requests/batches/0001/batch-0001.safetensors"
    found = certificates(held_desk)
    assert set(found) == {"R-0001", "R-0002"}
    assert [row["done"] for row in found["R-0001"]["rows"]] == ["removed"] * 3
    assert {row["row"] for row in found["R-0001"]["rows"]} == {keys.code("row", row) for row in rows.ids[:3]}
    assert found["R-0001"]["verdict"]["outcome"] == "undecided"
    assert found["R-0002"]["answer"] == "not held"
    assert len(found["R-0002"]["not_held"]) == 1
    for path in sorted((held_desk.folder / "certificates").glob("*.json")):
        assert not failing(verify_certificate(path, public_key=keys.public))
    assert audit_passes(audit(held_desk.run.folder, public_key=keys.public))


def test_a_refused_edit_is_answered_by_a_retrain_that_never_saw_the_rows(held_desk):
    rows = held_desk.run.data
    submit(held_desk, ids=rows.ids[:3])
    process(held_desk)
    state = refuse(held_desk, 1, reason="undecided")
    assert state.current == 0
    assert state.requests[1].status == "received"
    state = process(held_desk)
    assert state.batches[2].method == "retrain"
    assert state.requests[1].status == "released"
    _, record = model_after(held_desk.run, 2, state)
    assert not set(rows.ids[:3]) & set(record.order.ids)
    assert set(record.order.ids) == set(rows.ids[3:])
    # the next edit starts from the retrain, and leaves out what is gone: asked for again, a row is no work
    submit(held_desk, ids=rows.ids[2:5])
    process(held_desk)
    state = approve(held_desk, 2, reason="seen")
    assert state.batches[3].base == 2
    assert len(state.batches[3].removed) == 2
    assert set(rows_after(held_desk, state.stack, state).ids) == set(rows.ids[5:])
    done = {row["done"] for row in certificates(held_desk)["R-0002"]["rows"]}
    assert done == {"removed", "removed before, by batch 2"}


def test_a_scheduled_retrain_can_not_bring_rows_back(held_desk):
    rows = held_desk.run.data.ids
    submit(held_desk, ids=rows[:2])
    process(held_desk)
    approve(held_desk, 1, reason="seen")
    state = process(held_desk, retrain=True)
    assert state.batches[2].method == "retrain"
    assert state.batches[2].requests == []
    _, record = model_after(held_desk.run, 2, state)
    assert set(record.order.ids) == set(rows[2:])
    assert state.drift() == 0


def test_removal_wins_over_relabel_and_a_later_label_over_an_earlier(held_desk):
    rows = held_desk.run.data
    by_label = {label: row for row, label in zip(rows.ids, rows.labels.tolist(), strict=True)}
    submit(held_desk, ids=[by_label[1]], action="relabel", label=7)
    submit(held_desk, ids=[by_label[1]], action="relabel", label=9)
    submit(held_desk, ids=[by_label[2]], action="relabel", label=7)
    submit(held_desk, ids=[by_label[2]])
    submit(held_desk, ids=[by_label[3]], action="relabel", label=3)  # its label already
    batch = process(held_desk).batches[1]
    changes = changes_of(held_desk, [batch])
    assert changes.relabelled == {by_label[1]: 9}
    assert changes.removed == (by_label[2],)


def test_rollback_needs_a_word_and_puts_requests_back(held_desk):
    submit(held_desk, ids=held_desk.run.data.ids[:2])
    process(held_desk)
    approve(held_desk, 1, reason="seen")
    path = next((held_desk.folder / "certificates").glob("R-0001*.json"))
    with pytest.raises(InputError, match="knows rows that were deleted since"):
        rollback(held_desk, 0, reason="outage")
    with pytest.raises(InputError, match="no earlier model 7 to go back to; known: 0"):
        rollback(held_desk, 7, reason="outage", knows_deleted=True)
    state = rollback(held_desk, 0, reason="outage", knows_deleted=True)
    assert (state.current, state.requests[1].status) == (0, "received")
    assert json.loads((held_desk.folder / "current.json").read_text())["batch"] == 0
    checks = {check.name: check for check in verify_certificate(path)}
    assert "was rolled back" in checks["record"].detail
    assert audit_passes(audit(held_desk.run.folder))


def test_every_byte_of_a_certificate_and_what_else_it_stands_on(held_desk, keys, tmp_path):
    submit(held_desk, ids=held_desk.run.data.ids[:2])
    process(held_desk)
    approve(held_desk, 1, reason="seen")
    place = held_desk.folder / "certificates"
    path = next(place.glob("*.json"))
    data = path.read_bytes()
    for at in range(0, len(data), 7):  # the benchmark changes every byte
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert failing(verify_certificate(path, public_key=keys.public))[0] in ("form", "signature"), at
    assert "files" in failing(audit(held_desk.run.folder))
    path.write_bytes(data)
    outside = tmp_path / path.name
    shutil.copy(path, outside)
    assert [check.ok for check in verify_certificate(outside)] == [True, True, None, None, None]
    assert not failing(verify_certificate(outside, run=held_desk.run.folder))
    assert failing(verify_certificate(path, public_key="00" * 32)) == ["signature"]
    model = model_path(held_desk.run.folder, 1)
    weights = bytearray(model.read_bytes())
    weights[-1] ^= 1
    model.write_bytes(weights)
    assert failing(verify_certificate(path)) == ["digests"]
    assert "the checkpoint of batch 1 was altered" in str(audit(held_desk.run.folder))
    with pytest.raises(LedgerError, match="not what the ledger says"):
        process(held_desk, retrain=False) if not submit(held_desk, ids=held_desk.run.data.ids[5:6]) else process(
            held_desk
        )
    page = next(place.glob("*.html")).read_text()
    assert "<script" not in page
    assert "What it does not prove" in page


def test_a_purge_lists_removes_and_names_what_is_out_of_reach(held_desk, clock):
    assert plan_purge(held_desk).removes == ()
    submit(held_desk, ids=held_desk.run.data.ids[:2])
    process(held_desk)
    approve(held_desk, 1, reason="seen")
    (held_desk.run.folder / "scores-gif.csv").write_text("ids")
    (held_desk.run.folder / "notes.txt").write_text("mine")
    plan = plan_purge(held_desk)
    names = {item.path for item in plan.removes}
    assert {"snapshots", "trajectory.safetensors", "scores-gif.csv"} <= names
    assert [item.path for item in plan.keeps] == ["original.safetensors"]
    assert plan.unknown == ("notes.txt",)
    assert "source data set" in plan.out_of_reach[0]
    assert (held_desk.run.folder / "snapshots").exists()  # listing removes nothing

    with pytest.raises(InputError, match="2 deleted rows are still in the source data"):
        purge(held_desk, destroy_key=True)
    purge(held_desk)
    assert not any((held_desk.run.folder / name).exists() for name in names)
    assert (held_desk.run.folder / "notes.txt").exists()
    clock.pass_days(31)
    assert "original.safetensors" in {item.path for item in purge(held_desk).removes}
    assert not (held_desk.run.folder / "original.safetensors").exists()
    assert audit_passes(audit(held_desk.run.folder)), audit(held_desk.run.folder)
    submit(held_desk, ids=held_desk.run.data.ids[4:6])  # and edits go on
    process(held_desk)
    state = approve(held_desk, 2, reason="seen")
    assert state.current == 2
    assert audit_passes(audit(held_desk.run.folder))


def test_the_row_key_is_destroyed_when_the_source_is_clean(held_run, tmp_path, clock, monkeypatch):
    made = make_keys(tmp_path / "own")
    with Desk.open(held_run, keys=made, who="dpo", clock=clock, create=True) as desk:
        rows = desk.run.data.ids
        submit(desk, ids=rows[:2])
        process(desk)
        approve(desk, 1, reason="seen")
    with Desk.open(held_run, keys=made, who="dpo", clock=clock) as desk:
        monkeypatch.setitem(vars(desk.run), "data", desk.run.data.without(rows[:2]))
        purge(desk, destroy_key=True)
        assert not (made.folder / "rows.key").exists()
        assert desk.state().key is None
    with Desk.open(held_run, keys=made.folder, who="dpo", clock=clock) as desk:
        assert audit_passes(audit(held_run))
        with pytest.raises(LedgerError, match="was destroyed"):
            submit(desk, ids=rows[2:3])
        with pytest.raises(LedgerError, match="was destroyed"):
            process(desk)
        clock.pass_days(31)  # retention ends after the key is gone: the original goes without a row key
        assert "original.safetensors" in {item.path for item in purge(desk, destroy_key=True).removes}
        assert audit_passes(audit(held_run))


def test_a_key_that_was_given_up_and_not_destroyed_goes_with_the_next_work(held_run, tmp_path, clock):
    """Rejects a restart that refuses before it has destroyed the file."""
    made = make_keys(tmp_path / "own")
    with Desk.open(held_run, keys=made.folder, who="dpo", clock=clock, create=True) as desk:
        desk.record("key", {"key": None})
    with Desk.open(held_run, keys=made.folder, who="dpo", clock=clock) as desk:
        with pytest.raises(LedgerError, match="was destroyed"):
            process(desk)
        assert not (made.folder / "rows.key").exists()


def test_the_row_key_stays_while_it_is_needed(held_desk):
    submit(held_desk, ids=["nobody"])
    with pytest.raises(InputError, match="1 requests wait"):
        purge(held_desk, destroy_key=True)
    with pytest.raises(LedgerError, match="requests wait for the row key"):
        held_desk.record("key", {"key": None})
    with pytest.raises(LedgerError, match="never exchanged"):
        held_desk.record("key", {"key": "another"})


def test_all_rows_can_not_be_removed(held_desk):
    submit(held_desk, ids=held_desk.run.data.ids)
    with pytest.raises(InputError, match="would remove all 1438 rows"):
        process(held_desk)
    assert held_desk.state().requests[1].status == "received"


def test_copies_of_deleted_rows_are_reported(held_desk, monkeypatch, keys):
    rows = held_desk.run.data
    write_recipe(held_desk.run.folder, {"drift_limit = 0.5": "drift_limit = 0.5, duplicate_similarity = 0.9"})
    with Desk.open(held_desk.run.folder, keys=keys, who="dpo") as desk:
        submit(desk, ids=rows.ids[:5])
        near = process(desk).batches[1].edited["near_duplicates"]
    assert near["rows_left"] > 0
    gone = {keys.code("row", row) for row in rows.ids[:5]}
    assert all(pair["removed"] in gone and pair["left"] not in gone for pair in near["nearest"])
    assert all(0.9 <= pair["similarity"] <= 1 for pair in near["nearest"])


def test_the_lock_says_who_and_a_dead_process_holds_none(held_desk, keys, tmp_path):
    path = held_desk.folder / "lock"

    def hold_and_die():
        with working(path, who="night\x1b[31m shift"):
            (tmp_path / "held").write_text("")
            time.sleep(30)

    child = os.fork()
    if child == 0:
        hold_and_die()
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(LockedError, match=rf"process {child} \(night\\x1b\[31m shift\) works on these requests"):
        process(held_desk)
    submit(held_desk, ids=["a"])  # submitting needs no lock
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert process(held_desk).requests[1].status == "not held"


def test_a_full_disk_gives_one_clear_line_and_changes_nothing(held_run, keys, clock):
    import resource

    with Desk.open(held_run, keys=keys, who="dpo", clock=clock, create=True) as desk:
        submit(desk, ids=desk.run.data.ids[:2])
        before = desk.ledger.events()

    def full():
        with Desk.open(held_run, keys=keys, who="dpo", clock=clock) as desk:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
            try:
                process(desk)
            except FolderError as error:
                if "\n" not in str(error) and "can not write" in str(error):
                    os._exit(7)
                raise

    assert in_child(full) == 7
    with Desk.open(held_run, keys=keys, who="dpo", clock=clock) as desk:
        assert desk.ledger.events()[: len(before)] == before
        assert desk.state().current == 0
        assert audit_passes(audit(held_run))
        assert process(desk).held is not None  # with space again it goes on


@pytest.mark.parametrize("number", ["ENOSPC", "EROFS"])
def test_a_full_or_read_only_folder_at_the_write_layer(number, held_desk, monkeypatch):
    import errno

    submit(held_desk, ids=held_desk.run.data.ids[:2])
    process(held_desk)
    files = {path: path.read_bytes() for path in held_desk.folder.rglob("*.json")}

    def refuse_write(*_):
        raise OSError(getattr(errno, number), "no")

    with monkeypatch.context() as patched:
        patched.setattr("unlearn.atomic.os.replace", refuse_write)
        with pytest.raises(FolderError, match=r"disk is full|disk is read-only"):
            approve(held_desk, 1, reason="seen")
    assert {path: path.read_bytes() for path in held_desk.folder.rglob("*.json")} == files
    assert process(held_desk).requests[1].status == "released"  # the word was given; the release is finished


def test_a_purge_knows_every_file_that_a_run_can_leave(tiny_run):
    """Rejects a list that a new stage was forgotten in: its file would stay, named as somebody else's."""
    from unlearn.pipeline.audit import AUDIT_FILE
    from unlearn.pipeline.certified import ACCOUNT_FILE, HEAD_FILE
    from unlearn.pipeline.evidence import EVIDENCE_FILE
    from unlearn.pipeline.flagged import NAME
    from unlearn.requests.purge import HOLDING, KEPT
    from unlearn.review.review import BEFORE, DECISIONS, JOURNAL

    names = [AUDIT_FILE, ACCOUNT_FILE, HEAD_FILE, EVIDENCE_FILE, NAME, BEFORE, DECISIONS, JOURNAL]
    names += [path.name for path in tiny_run.iterdir()]
    assert len(names) > 20
    assert [name for name in names if name not in KEPT and not any(fnmatch(name, one) for one in HOLDING)] == []
