"""Chains: each edit starts from the last one's weights, rows, snapshots; nothing that is gone comes back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from repair_cases import STEPS, loop, same_bits, small_mlp, tiny, training, weights_of
from torch import Tensor, nn

import unlearn
from unlearn.checkpoint import read_checkpoint
from unlearn.data import Rows
from unlearn.errors import CheckpointError, InputError, RecordError, RowNotFoundError
from unlearn.predict import predict
from unlearn.repair import Changes, Drift, EditChain, apply_changes
from unlearn.repair import chain as chain_module
from unlearn.repair import newton_edit as newton_module
from unlearn.repair.objective import EditedObjective
from unlearn.training import TrainingRecord

Trained = tuple[nn.Module, Rows, TrainingRecord]
SPEC = {"name": "mlp", "options": {"inputs": 64, "classes": 10, "widths": [16]}}


@pytest.fixture(scope="module")
def sgd(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return training(tmp_path_factory.mktemp("sgd"))


def none_taken(
    objective: EditedObjective, curvature: object, **limits: object
) -> tuple[dict[str, Tensor], list[object]]:
    return objective.start, []


def test_replays_alone_compose_to_one_replay(sgd: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Newton steps two edits are one replay without both; rejects old snapshots, momentum or order."""
    model, rows, record = sgd
    monkeypatch.setattr(newton_module, "newton_steps", none_taken)
    chain = EditChain(model, rows, record=record, folder=tmp_path, budget=2)
    one, two = list(rows.ids[:3]), [rows.ids[7], rows.ids[9]]
    first = chain.remove(one)
    second = chain.edit(Changes((two[0],), {two[1]: (int(rows.labels[9]) + 1) % 10}))
    assert second.original is first.model
    assert second.data.ids == rows.without(one).ids
    both = second.changes.apply(rows.without(one))
    wanted = loop(model, both, record, 4 * STEPS, record.snapshot(4 * STEPS))
    torch.testing.assert_close(weights_of(second.model), weights_of(wanted), rtol=0, atol=1e-6)
    assert (first.start_step, second.start_step) == (4 * STEPS, 4 * STEPS)


def test_the_record_after_an_edit(sgd: Trained, tmp_path: Path) -> None:
    """Rejects snapshots that still know the rows, and an order that names them."""
    model, rows, record = sgd
    gone = ["digits-removed", *rows.ids[1:3]]
    rows = Rows(rows._source, rows._index, [gone[0], *rows.ids[1:]], rows.labels, classes=10)  # an id that is no prefix
    order = replace(record.order, ids=tuple(gone[0] if i == sgd[1].ids[0] else i for i in record.order.ids))  # type: ignore[type-var, union-attr]
    record = replace(record, order=order, data_fingerprint=rows.fingerprint)
    edit = apply_changes(
        model, rows, Changes(tuple(gone)), record=record, budget=2, method="newton", successor=tmp_path / "next"
    )
    after = edit.successor
    assert after is not None
    assert sorted(after.snapshots) == [0, 4 * STEPS, 5 * STEPS, 6 * STEPS]
    assert after.data_fingerprint == edit.edited_data.fingerprint
    last = after.snapshot(6 * STEPS)
    assert all(torch.equal(last.weights[name], value) for name, value in edit.model.state_dict().items())
    assert after.snapshots[0] == record.snapshots[0]
    assert after.snapshots[4 * STEPS] != record.snapshots[4 * STEPS]
    assert after.order is not None
    assert not set(gone) & set(after.order.ids)
    assert after.order.batch(7) == [row for row in order.batch(7) if row not in gone]
    assert len(after.order) == record.steps
    assert not any(gone[0].encode() in path.read_bytes() for path in (tmp_path / "next").rglob("*") if path.is_file())
    plain = apply_changes(model, rows, Changes(tuple(gone)), record=record, budget=2, method="newton")
    assert same_bits(plain.model, edit.model)
    assert plain.successor is None
    assert record.snapshot(4 * STEPS).weights.keys() == last.weights.keys()  # the old snapshots are whole


def test_its_own_folder_is_not_written_over(sgd: Trained) -> None:
    model, rows, record = sgd
    assert record.folder is not None
    with pytest.raises(RecordError, match="holds the snapshots that are edited; give another folder"):
        apply_changes(model, rows, Changes((rows.ids[0],)), record=record, successor=record.folder)
    record.snapshot(4 * STEPS)


@pytest.mark.parametrize("budget", [0, 2])
def test_a_chain_goes_on_from_its_checkpoint(sgd: Trained, tmp_path: Path, budget: float) -> None:
    model, rows, record = sgd
    chain = EditChain(model, rows, record=record, folder=tmp_path / "chain", budget=budget, limit=7.0)
    first = chain.remove(rows.ids[:3])
    path = tmp_path / "chain" / "edit-0001" / "model.safetensors"
    unlearn.save_checkpoint(path, first.model, edit=first, record=first.successor, spec=SPEC)
    later = EditChain.resume(path, chain.data, folder=tmp_path / "later", budget=budget)
    assert later.drift == chain.drift == first.drift
    assert later.drift.limit == 7.0
    later.factors = chain.factors  # the only thing not in the checkpoint
    one, two = chain.remove(rows.ids[5:7]), later.remove(rows.ids[5:7])
    assert same_bits(one.model, two.model)
    assert one.drift == two.drift
    assert one.method == two.method == ("rewind-newton-replay" if budget else "newton")
    said = read_checkpoint(path).edit
    assert said is not None
    assert said["drift"]["edits"] == 1
    assert Drift.from_dict(said["drift"]) == first.drift


def test_adam_keeps_the_second_moments_of_its_metric(tmp_path: Path) -> None:
    model, rows, record = training(tmp_path / "run", "adam")
    chain = EditChain(model, rows, record=record, folder=tmp_path / "chain", budget=0)
    chain.remove(rows.ids[:2])
    assert chain.record is not None
    was, now = record.snapshot(record.steps), chain.record.snapshot(record.steps)
    assert was.optimizer.keys() == now.optimizer.keys()
    assert all(torch.equal(was.optimizer[name], now.optimizer[name]) for name in was.optimizer)
    assert chain.remove(rows.ids[4:6]).steps[0].accepted


def test_drift_by_hand_and_its_limit() -> None:
    """The sum over edits of KL(before || after) on the rows that no edit changed."""
    model, rows = tiny()
    chain = EditChain(model, rows, damping=0.1, weight_decay=0.01, limit=1e-3)
    moved, before = 0.0, model
    for row in ("row-1", "row-4", "row-7"):
        edit = chain.remove([row], allow_empty_class=True)
        kept = edit.edited_data
        p, q = (predict(m, kept).log_softmax(1) for m in (before, edit.model))
        moved += float((p.exp() * (p - q)).sum(1).mean())
        before = edit.model
        assert edit.drift is not None
        assert edit.drift.moved == pytest.approx(moved)
        assert edit.retrain_advised == (moved > 1e-3)
        assert any("train again" in note for note in edit.notes) == (moved > 1e-3)
    assert (chain.drift.edits, chain.drift.rows) == (3, 3)
    assert chain.drift.retrain_advised
    relabelled = EditChain(model, rows, damping=0.1, weight_decay=0.01).edit(Changes(relabelled={"row-0": 1}))
    p, q = (predict(m, rows.without(["row-0"])).log_softmax(1) for m in (model, relabelled.model))
    assert relabelled.drift is not None
    assert relabelled.drift.moved == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()))


def test_a_refused_edit_moves_nothing(sgd: Trained, tmp_path: Path) -> None:
    model, rows, record = sgd
    chain = EditChain(model, rows, record=record, folder=tmp_path)
    chain.remove(rows.ids[:2])
    before = (chain.model, chain.data, chain.record, chain.drift)
    with pytest.raises(RowNotFoundError, match=rows.ids[0]):
        chain.remove([rows.ids[0]])
    assert (chain.model, chain.data, chain.record, chain.drift) == before


def test_factors_are_kept_until_the_solve_suffers(
    sgd: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows, record = sgd
    chain = EditChain(model, rows, record=record, folder=tmp_path, budget=1)
    monkeypatch.setattr(chain_module, "STALE", math.inf)
    costs = [chain.remove([row]).cost.factors for row in rows.ids[:3]]
    assert costs[0] > 0
    assert costs[1:] == [0, 0]
    monkeypatch.setattr(chain_module, "STALE", 0.0)
    costs = [chain.remove([row]).cost.factors for row in rows.ids[3:6]]
    assert costs[0] == 0  # the edit that finds them stale
    assert costs[1] > 0
    given = unlearn.fit_curvature(chain.model, chain.data)
    assert "of other weights than the snapshot" in chain.remove([rows.ids[7]], curvature=given).notes[0]


def test_what_a_chain_can_not_be(sgd: Trained, tmp_path: Path) -> None:
    model, rows, record = sgd
    with pytest.raises(InputError, match="give it a folder="):
        EditChain(model, rows, record=record)
    for limit in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="the drift limit is"):
            EditChain(model, rows, damping=1.0, weight_decay=0.0, limit=limit)
    unlearn.save_checkpoint(tmp_path / "a.safetensors", small_mlp(), spec=SPEC)
    with pytest.raises(CheckpointError, match=r"has no training record; save it with record=edit\.successor"):
        EditChain.resume(tmp_path / "a.safetensors", rows)
    with pytest.raises(InputError, match="the drift of a chain lacks 'moved'"):
        Drift.from_dict({"edits": 1, "rows": 2, "limit": None})
    endless = Drift(limit=math.inf)
    assert Drift.from_dict(endless.to_dict()) == endless
