"""Rewind, edit, replay: which snapshot, which steps, what is left as found; and the damping that goes with it."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from repair_cases import EPOCHS, ROWS, STEPS, digits, loop, same_bits, small_mlp, training, weights_of
from torch import Tensor, nn

import unlearn
from unlearn.curvature import fit_curvature
from unlearn.data import Rows
from unlearn.errors import InputError, RecordError
from unlearn.repair import RIVALS, Changes
from unlearn.repair import apply_changes as apply_by_any_method
from unlearn.repair import newton_edit as newton_module
from unlearn.repair.objective import Damping, EditedObjective
from unlearn.training import TrainingRecord

Trained = tuple[nn.Module, Rows, TrainingRecord]
apply_changes = partial(apply_by_any_method, method="newton")  # test_unrolled.py has the other one


@pytest.fixture(scope="module")
def sgd(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return training(tmp_path_factory.mktemp("sgd"))


@pytest.fixture(scope="module")
def adam(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return training(tmp_path_factory.mktemp("adam"), "adam")


def changes_of(rows: Rows) -> Changes:
    assert rows.truth is not None
    wrong = (rows.labels != rows.truth).nonzero().flatten()[:12].tolist()
    return Changes(tuple(rows.ids[i] for i in wrong[:6]), {rows.ids[i]: int(rows.truth[i]) for i in wrong[6:]})


def standing_still(monkeypatch: pytest.MonkeyPatch) -> list[EditedObjective]:
    """Make every Newton step zero; return the list to which objectives are added."""
    seen: list[EditedObjective] = []

    def none_taken(
        objective: EditedObjective, curvature: object, **limits: object
    ) -> tuple[dict[str, Tensor], list[object]]:
        seen.append(objective)
        return objective.start, []

    monkeypatch.setattr(newton_module, "newton_steps", none_taken)
    return seen


@pytest.mark.parametrize(
    ("budget", "epoch"),
    [(0, None), (0.5, None), (1, 5), (1.9, 5), (2, 4), (3.99, 4), (4, 2), (5.9, 2), (6, 2), (1e9, 2)],
)
def test_the_earliest_snapshot_within_the_budget(
    sgd: Trained, monkeypatch: pytest.MonkeyPatch, budget: float, epoch: int | None
) -> None:
    """Snapshots lie after epochs 0, 2, 4, 5 and 6 of 6; one before the first step has no horizon and is not used."""
    model, rows, record = sgd
    standing_still(monkeypatch)
    edit = apply_changes(model, rows, changes_of(rows), record=record, budget=budget)
    assert edit.start_step == (None if epoch is None else epoch * STEPS)
    assert edit.method == ("newton" if epoch is None else "rewind-newton-replay")
    assert edit.cost.replay <= budget
    if epoch is None:
        assert same_bits(edit.model, model)
    said = [note for note in edit.notes if "no snapshot lies within" in note]
    assert len(said) == (budget == 0.5)


def test_without_snapshots_the_final_weights_are_edited(sgd: Trained) -> None:
    model, rows, record = sgd
    for poorer in (replace(record, order=None, snapshots={}), replace(record, snapshots={})):
        edit = apply_changes(model, rows, changes_of(rows), record=poorer, budget=3)
        assert (edit.method, edit.start_step, edit.cost.replay) == ("newton", None, 0.0)


@pytest.mark.parametrize("epoch", [4, 2])
def test_without_a_newton_step_it_is_plain_replay(sgd: Trained, monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    model, rows, record = sgd
    changes = changes_of(rows)
    standing_still(monkeypatch)
    edit = apply_changes(model, rows, changes, record=record, budget=EPOCHS - epoch)
    wanted = loop(model, changes.apply(rows), record, epoch * STEPS, record.snapshot(epoch * STEPS))
    torch.testing.assert_close(weights_of(edit.model), weights_of(wanted), rtol=0, atol=1e-6)
    plain = RIVALS["replay"](model, rows, changes, record, setting={"epochs": EPOCHS - epoch})
    assert plain.settings["start_step"] == epoch * STEPS
    assert same_bits(edit.model, plain.model)
    unchanged = loop(model, rows, record, epoch * STEPS, record.snapshot(epoch * STEPS))
    torch.testing.assert_close(weights_of(unchanged), weights_of(model), rtol=0, atol=1e-6)  # the replay is faithful
    assert float((weights_of(edit.model) - weights_of(model)).abs().max()) > 1e-3


def test_newton_step_at_the_snapshot_is_what_the_replay_starts_from(
    sgd: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows, record = sgd
    changes = changes_of(rows)
    snapshot = record.snapshot(4 * STEPS)

    def one_up(
        objective: EditedObjective, curvature: object, **limits: object
    ) -> tuple[dict[str, Tensor], list[object]]:
        for name, value in objective.start.items():
            assert torch.equal(value, snapshot.weights[name])  # E is taken around the snapshot
        return {name: value + 0.01 for name, value in objective.start.items()}, []

    monkeypatch.setattr(newton_module, "newton_steps", one_up)
    edit = apply_changes(model, rows, changes, record=record, budget=2)
    moved = replace(snapshot, weights={name: value + 0.01 for name, value in snapshot.weights.items()})
    wanted = loop(model, changes.apply(rows), record, 4 * STEPS, moved)
    torch.testing.assert_close(weights_of(edit.model), weights_of(wanted), rtol=0, atol=1e-6)


def test_cost_by_hand(sgd: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, record = sgd
    changes = changes_of(rows)
    monkeypatch.setattr(newton_module, "LEAST_ROWS", 64)
    monkeypatch.setattr(newton_module, "MOST_ROWS", 64)
    monkeypatch.setattr(newton_module, "ITERATIONS", 2)
    edit = apply_changes(model, rows, changes, record=record, budget=2)
    (step,) = edit.steps
    assert (step.iterations, step.length) == (2, 1.0)
    m, sample, epoch = 12, 64, 3 * ROWS
    assert edit.cost.factors == pytest.approx(6 * sample / epoch)  # forward and backward twice
    assert edit.cost.solve == pytest.approx((m + 3 * m + 2 * 4 * sample + sample + (sample + m)) / epoch)
    assert edit.cost.replay == pytest.approx(2 * (ROWS - 6) / ROWS)  # the 6 removed rows cost nothing
    assert edit.cost.total == pytest.approx(edit.cost.factors + edit.cost.solve + edit.cost.replay)


@pytest.mark.parametrize("epoch", [None, 5, 2])
def test_horizon_damping_of_sgd(sgd: Trained, monkeypatch: pytest.MonkeyPatch, epoch: int | None) -> None:
    """d = 2 / T with T = lr / (1 - momentum) * steps up to the edited weights, not to the last."""
    model, rows, record = sgd
    seen = standing_still(monkeypatch)
    apply_changes(model, rows, changes_of(rows), record=record, budget=0 if epoch is None else EPOCHS - epoch)
    horizon = 0.05 / (1 - 0.9) * (epoch or EPOCHS) * STEPS
    assert seen[0].damping == pytest.approx(2 / horizon)
    assert seen[0].weight_decay == record.weight_decay == 1e-3


@pytest.mark.parametrize("epoch", [None, 4])
def test_metric_of_adam_by_hand(adam: Trained, monkeypatch: pytest.MonkeyPatch, epoch: int | None) -> None:
    """(sqrt(v / (1 - beta2^t)) + eps) / sum of t rates."""
    model, rows, record = adam
    seen = standing_still(monkeypatch)
    apply_changes(model, rows, changes_of(rows), record=record, budget=0 if epoch is None else EPOCHS - epoch)
    done = (epoch or EPOCHS) * STEPS
    state = record.snapshot(done).optimizer
    damping = seen[0].damping
    assert isinstance(damping, dict)
    assert damping.keys() == dict(model.named_parameters()).keys()
    for name, found in damping.items():
        v = state[f"exp_avg_sq/{name}"].double() / (1 - 0.999**done)
        torch.testing.assert_close(found.double(), (v.sqrt() + 1e-8) / (0.005 * done), rtol=1e-5, atol=0)


def test_adam_edits_lower_the_changed_rows_and_are_accepted(adam: Trained) -> None:
    model, rows, record = adam
    for budget in (0, 2):
        edit = apply_changes(model, rows, changes_of(rows), record=record, budget=budget)
        assert edit.steps[0].accepted
        assert edit.after["changed_phi"] < edit.before["changed_phi"]


def test_records_of_something_else_are_refused(sgd: Trained, adam: Trained) -> None:
    model, rows, record = sgd
    changes = changes_of(rows)
    other = small_mlp(seed=8).eval()
    with pytest.raises(RecordError, match="last snapshot has other weights than the model"):
        apply_changes(other, rows, changes, record=record, budget=2)
    with pytest.raises(RecordError, match="last snapshot has other weights than the model"):
        apply_changes(model, rows, changes, record=adam[2], budget=0)  # its moments would be the metric
    wider = small_mlp(width=17)
    with pytest.raises(RecordError, match="last snapshot has other weights than the model"):
        apply_changes(wider, rows, changes, record=record, budget=2)
    with pytest.raises(RecordError, match="the record is of data"):
        apply_changes(model, rows.without(rows.ids[:1]), changes, record=record, budget=2)
    with pytest.raises(RecordError, match="the record is of data"):
        apply_changes(model, changes.apply(rows), Changes((rows.ids[-1],)), record=record, budget=0)
    with pytest.raises(RecordError, match="the record is of task 'classification', the edit of 'regression'"):
        apply_changes(model, rows, changes, record=record, task="regression")


def test_altered_and_missing_snapshots_are_refused(tmp_path: Path) -> None:
    model, rows, record = training(tmp_path)
    path = tmp_path / "snapshots" / f"step-{4 * STEPS:06d}.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RecordError, match="not the one in the training record"):
        apply_changes(model, rows, changes_of(rows), record=record, budget=2)
    path.unlink()
    with pytest.raises(RecordError, match="is missing: restore it, or edit the final weights with budget=0"):
        apply_changes(model, rows, changes_of(rows), record=record, budget=2)
    assert apply_changes(model, rows, changes_of(rows), record=record, budget=0).method == "newton"


def test_skipped_layers(sgd: Trained) -> None:
    model, rows, record = sgd
    changes = changes_of(rows)
    with pytest.raises(InputError, match="a replay moves all of them; pass budget=0"):
        apply_changes(model, rows, changes, record=record, budget=2, skip=["1"])
    for skip in (["1"], "1"):  # a string was once taken letter by letter
        edit = apply_changes(model, rows, changes, record=record, budget=0, skip=skip)
        moved = {name for name, p in edit.model.named_parameters() if not torch.equal(p, model.get_parameter(name))}
        assert moved == {"3.weight", "3.bias"}
    with pytest.raises(InputError, match="'nothing' matches no module"):
        apply_changes(model, rows, changes, record=record, budget=0, skip="nothing")
    curvature = fit_curvature(model, rows)  # it would decide, and layer 1 would be edited
    with pytest.raises(InputError, match=r"fitted with skip=\[\]; fit it with skip=\['1'\]"):
        apply_changes(model, rows, changes, record=record, budget=0, skip="1", curvature=curvature)


def test_curvature_given_for_a_rewind_is_said_to_be_unused(sgd: Trained) -> None:
    model, rows, record = sgd
    curvature = fit_curvature(model, rows)
    edit = apply_changes(model, rows, changes_of(rows), record=record, budget=2, curvature=curvature)
    assert "that of the snapshot was fitted" in edit.notes[0]
    assert same_bits(edit.model, apply_changes(model, rows, changes_of(rows), record=record, budget=2).model)


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("budget", [0, 1])
def test_nothing_the_caller_owns_is_changed(tmp_path: Path, budget: float) -> None:
    rows = digits(120)
    settings = unlearn.TrainSettings(epochs=3, batch_size=40, lr=0.05)
    model, record = unlearn.train(WithDropout(), rows, settings, folder=tmp_path, snapshot_epochs=(2,))
    model.train()
    model.head.eval()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    calls: list[int] = []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    said, labels, files = record.to_dict(), rows.labels.clone(), sorted(tmp_path.rglob("*"))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    edit = unlearn.remove(model, rows, rows.ids[:5], record=record, budget=budget)
    drawn = (torch.rand(1).item(), random.random(), np.random.rand())
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    assert drawn == (torch.rand(1).item(), random.random(), np.random.rand())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [module.training for module in edit.model.modules()] == modes
    assert all(p.grad is not None and bool((p.grad == 7).all()) for p in model.parameters())
    assert len(model.head._forward_hooks) == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.body.modules())
    assert record.to_dict() == said
    assert torch.equal(rows.labels, labels)
    assert sorted(tmp_path.rglob("*")) == files
    assert edit.original is model
    assert not same_bits(edit.model, model)
    assert edit.method == ("newton" if budget == 0 else "rewind-newton-replay")


def test_same_request_same_bits(sgd: Trained) -> None:
    model, rows, record = sgd
    one, two = (apply_changes(model, rows, changes_of(rows), record=record, budget=2) for _ in range(2))
    assert same_bits(one.model, two.model)
    assert one.to_dict() == two.to_dict()


def test_measures_before_and_after(sgd: Trained) -> None:
    model, rows, record = sgd
    changes = changes_of(rows)
    edit = apply_changes(model, rows, changes, record=record, budget=2)
    for of, found in ((model, edit.before), (edit.model, edit.after)):
        inputs, labels = rows.batch(rows.positions(changes.ids))
        logits = of(inputs).detach()
        p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        assert found["changed_loss"] == pytest.approx(float(-p.log().mean()), rel=1e-4)  # at the old labels
        assert found["changed_phi"] == pytest.approx(float((p / (1 - p)).log().mean()), rel=1e-3)
        inputs, labels = rows.without(changes.ids).batch(torch.arange(ROWS - 12))
        assert found["kept_accuracy"] == pytest.approx(float((of(inputs).argmax(1) == labels).float().mean()))
    assert edit.after["changed_phi"] < edit.before["changed_phi"]


def test_the_changed_part_of_all_rows_may_be_everything() -> None:
    rows = Rows.from_tensors(torch.eye(4), torch.tensor([0, 1, 0, 1]))
    every: Damping = 0.1
    edit = unlearn.relabel(nn.Linear(4, 2), rows, {"0": 1, "1": 0, "2": 1, "3": 0}, damping=every, weight_decay=0.1)
    assert set(edit.after) == {"changed_loss", "changed_phi"}
