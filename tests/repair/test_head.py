"""The head, trained again on the features of the edited body."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from repair_cases import EPOCHS, digits, distance_to, loop, small_mlp, training, weights_of
from torch import nn

from unlearn.data import Rows, symmetric_noise
from unlearn.errors import InputError
from unlearn.repair import Changes, apply_changes
from unlearn.repair import head as head_module
from unlearn.repair.head import head_epochs, head_of, replay_head, replayable_head
from unlearn.tasks import get_task
from unlearn.training import BatchOrder, TrainingRecord, TrainSettings, replay, train

Trained = tuple[nn.Module, Rows, TrainingRecord]
TASK = get_task("classification")


@pytest.fixture(scope="module")
def sgd(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return training(tmp_path_factory.mktemp("sgd"))


def changes_of(rows: Rows) -> Changes:
    """More than one row in twenty."""
    return Changes((*rows.ids[:6], *rows.ids[20:34]), {rows.ids[9]: (int(rows.labels[9]) + 1) % 10})


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_with_a_body_that_never_moved_it_is_the_coupled_retrain(tmp_path: Path, optimizer: str) -> None:
    """Rejects other first weights, rates, order, momentum or weight decay, and features of another model."""
    rows, model = digits(), small_mlp()
    model.get_submodule("1").requires_grad_(False)
    settings = TrainSettings(optimizer=optimizer, lr=0.02, epochs=EPOCHS, batch_size=50, schedule="cosine")  # type: ignore[arg-type]
    trained, record = train(model, rows, settings, seed=3, folder=tmp_path, snapshot_epochs=(0,))
    changed = changes_of(rows).apply(rows)
    wanted, _ = coupled(trained, changed, record)
    found = replay_head(trained, changed, record, TASK, "3")
    assert found.name == "3"
    torch.testing.assert_close(weights_of(found.model), weights_of(wanted), rtol=0, atol=2e-6)
    assert float((weights_of(wanted) - weights_of(trained)).abs().max()) > 1e-3
    assert all(p.grad is None for p in found.model.parameters())


def coupled(model: nn.Module, rows: Rows, record: TrainingRecord) -> tuple[nn.Module, int]:
    start = copy.deepcopy(model)
    record.snapshot(0).restore(start)
    return replay(start, rows, record)


def test_steps_on_features_of_the_edited_body(sgd: Trained) -> None:
    """By the recorded steps written out; without a first snapshot they begin at zeros."""
    model, rows, record = sgd
    changed = changes_of(rows).apply(rows)
    edited = copy.deepcopy(model)
    edited.get_submodule("1").weight.data += 0.01
    inputs, labels = changed.batch(torch.arange(len(changed)))
    with torch.no_grad():
        features = Rows.from_tensors(edited[:3](inputs), labels, ids=changed.ids, classes=10)
    first = {part: record.snapshot(0).weights[f"3.{part}"] for part in ("weight", "bias")}
    for start, known in (
        (first, record),
        ({name: torch.zeros_like(part) for name, part in first.items()}, replace(record, snapshots={})),
    ):
        head = copy.deepcopy(model[3])
        head.load_state_dict(start)
        wanted = loop(head, features, record)
        found = replay_head(edited, changed, known, TASK, "3").model
        torch.testing.assert_close(weights_of(found[3]), weights_of(wanted), rtol=0, atol=2e-6)
        assert torch.equal(found[1].weight, edited[1].weight)


def test_without_a_row_order_as_many_steps_are_run_in_a_drawn_one(sgd: Trained) -> None:
    """By the steps written out, in batches of 128; rejects fewer or more of them, and rates of another step."""
    model, rows, record = sgd
    changed = changes_of(rows).apply(rows)
    bare = replace(record, order=None, snapshots={}, lr=tuple(0.05 / (1 + k) for k in range(record.steps)))
    inputs, labels = changed.batch(torch.arange(len(changed)))
    with torch.no_grad():
        features = Rows.from_tensors(model[:3](inputs), labels, ids=changed.ids, classes=10)
    head = copy.deepcopy(model[3])
    for part in head.parameters():
        nn.init.zeros_(part)
    drawn = BatchOrder.shuffled(changed.ids, epochs=12, batch_size=128, seed=3)
    assert record.steps == len(drawn) == 36
    wanted = loop(head, features, replace(bare, order=drawn))
    found = replay_head(model, changed, bare, TASK, "3")
    torch.testing.assert_close(weights_of(found.model[3]), weights_of(wanted), rtol=0, atol=2e-6)
    assert head_epochs(model, "3", bare, changed) == pytest.approx(12 * head_epochs(model, "3", record, rows) / EPOCHS)


def test_a_removed_class_is_forgotten(sgd: Trained) -> None:
    """The bar of class removal, reduced: no step along one quadratic gets there."""
    model, rows, record = sgd
    changes = Changes(removed_classes=(3,))
    edits = {
        rule: apply_changes(model, rows, changes, record=record, budget=0, head=rule) for rule in ("replay", "leave")
    }  # type: ignore[arg-type]
    for budget in (0, 2):
        edit = apply_changes(model, rows, changes, record=record, budget=budget)
        assert edit.head == "3"
        assert edit.to_dict()["head"] == "3"
        gone = rows.only(edit.changes.on(rows).removed)
        others = edit.edited_data
        with torch.no_grad():
            inputs, labels = gone.batch(torch.arange(len(gone)))
            assert float((edit.model(inputs).argmax(1) == labels).double().mean()) <= 0.005
            inputs, labels = others.batch(torch.arange(len(others)))
            now, before = ((m(inputs).argmax(1) == labels).double().mean() for m in (edit.model, model))
            assert float(now) >= float(before) - 0.005
    assert edits["replay"].after["changed_phi"] < edits["leave"].after["changed_phi"] - 2
    assert edits["leave"].head is None


def wrong(rows: Rows) -> list[str]:
    assert rows.truth is not None
    return [row for row, a, b in zip(rows.ids, rows.labels, rows.truth, strict=True) if a != b]


@pytest.mark.parametrize("budget", [0, 3])
def test_many_right_rows_leave_the_head_and_wrong_ones_do_not(tmp_path: Path, budget: int) -> None:
    """A tenth of all rows, rightly labelled, is removed: rejects a head that is trained again whatever the labels were.

    It was so once: the edit then stood farther from retraining than the unedited model.
    """
    rows = symmetric_noise(digits(600), rate=0.1, seed=0)
    settings = TrainSettings(lr=0.1, epochs=7, batch_size=50, schedule="cosine")
    start = small_mlp(width=64)
    model, record = train(start, rows, settings, seed=3, folder=tmp_path, snapshot_epochs=range(8))
    right = [row for row in rows.ids if row not in wrong(rows)][::9]
    edit = apply_changes(model, rows, Changes(tuple(right)), record=record, budget=budget)
    assert edit.head is None
    assert any(
        "'3', was not trained again: most changed rows are still given their old labels" in n for n in edit.notes
    )
    there, _ = replay(start, edit.edited_data, record)
    distance = distance_to(there)
    assert distance(edit.model) < distance(model)
    assert distance(edit.model) < 0.5 * distance(replay_head(edit.model, edit.edited_data, record, TASK, "3").model)
    for changes in (
        Changes(tuple(wrong(rows))),
        Changes((), {row: (int(rows.truth[int(rows.ids.index(row))])) for row in wrong(rows)}),
    ):
        found = apply_changes(model, rows, changes, record=record, budget=budget, method="newton")
        assert found.head == "3", found.notes
        assert (
            found.cost.solve
            > apply_changes(
                model, rows, changes, record=record, budget=budget, method="newton", head="leave"
            ).cost.solve
        )


def test_a_model_that_knows_few_rows_tells_nothing_of_wrong_labels(tmp_path: Path) -> None:
    """Rejects rows taken for wrong because a weak model gives no row its class."""
    rows, start = digits(600), small_mlp(width=64)
    weak, record = train(start, rows, TrainSettings(lr=0.001, epochs=2, batch_size=50), folder=tmp_path)
    edit = apply_changes(weak, rows, Changes(rows.ids[::10]), record=record, budget=0)
    assert edit.head is None
    assert any("it can not be told whether labels were wrong" in note for note in edit.notes)


def test_without_classes_the_head_is_left(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = Rows.from_tensors(torch.randn(60, 8, generator=generator), torch.randn(60, generator=generator))
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1))
    model, record = train(
        model, rows, TrainSettings(epochs=3, batch_size=20), task="regression", folder=tmp_path, snapshot_epochs=(0, 2)
    )
    edit = apply_changes(model, rows, Changes(rows.ids[:9]), record=record, budget=1, task="regression")
    assert edit.head is None
    assert any("it can not be told whether labels were wrong, without classes" in note for note in edit.notes)


def test_cost_by_hand(sgd: Trained) -> None:
    model, rows, record = sgd
    changed = rows.without(rows.ids[:6])
    share = (16 * 10 + 10) / (64 * 16 + 16 + 16 * 10 + 10)
    assert head_epochs(model, "3", record, rows) == pytest.approx(EPOCHS * share)
    assert replay_head(model, changed, record, TASK, "3").cost == pytest.approx(
        len(changed) + 3 * share * EPOCHS * len(changed)
    )


def test_a_large_head_is_left_and_said_so(sgd: Trained) -> None:
    model, rows, record = sgd
    assert replayable_head(model, rows, record, most=0.9) == ("3", ())
    found, notes = replayable_head(model, rows, record, most=0.1)
    assert found is None
    assert "the head '3' was not replayed: with 14% of the weights that would cost 0.8 training epochs" in notes[0]


def test_which_layer_is_the_head(sgd: Trained) -> None:
    model, rows, _ = sgd
    assert head_of(model, rows) == "3"
    assert head_of(nn.Sequential(*model, nn.Softmax(1)), rows) is None
    assert head_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 10)), rows) == "2"
    frozen = copy.deepcopy(model)
    frozen[3].bias.requires_grad_(False)
    assert head_of(frozen, rows) is None
    tied = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64))
    tied[2].weight = tied[1].weight
    assert head_of(tied, rows) is None
    twice = nn.Sequential(nn.Flatten(), shared := nn.Linear(64, 64), shared)
    assert head_of(twice, rows) is None
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_the_next_edit_starts_from_the_new_head(sgd: Trained, tmp_path: Path) -> None:
    """Rejects a successor whose last snapshot still has the head that was replaced."""
    model, rows, record = sgd
    for budget in (0, 2):
        folder = tmp_path / str(budget)
        edit = apply_changes(model, rows, changes_of(rows), record=record, budget=budget, successor=folder)
        assert edit.head == "3"
        assert edit.successor is not None
        last = edit.successor.snapshot(record.steps)
        assert all(torch.equal(value, edit.model.state_dict()[name]) for name, value in last.weights.items())
        assert last.optimizer
        apply_changes(edit.model, edit.edited_data, Changes(rows.ids[40:41]), record=edit.successor, budget=1)


def test_what_asks_for_a_step_of_its_own_leaves_the_head(sgd: Trained) -> None:
    model, rows, record = sgd
    for options in ({"damping": 1.0}, {"layers": "3"}, {"steps": 1}, {"skip": "1"}):
        assert apply_changes(model, rows, changes_of(rows), record=record, budget=0, **options).head is None  # type: ignore[arg-type]
    few = Changes(rows.ids[:6])
    assert apply_changes(model, rows, few, record=record, budget=0).head is None
    with pytest.raises(InputError, match="unknown head 'keep'"):
        apply_changes(model, rows, changes_of(rows), record=record, head="keep")  # type: ignore[arg-type]


def test_a_head_that_diverges_leaves_the_edit(sgd: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, record = sgd
    monkeypatch.setattr(head_module, "_features", lambda model, head, rows: torch.full((len(rows), 16), float("inf")))
    edit = apply_changes(model, rows, changes_of(rows), record=record, budget=0)
    assert edit.head is None
    assert any(note.startswith("failed: the head '3' was left as it was: ") for note in edit.notes)
    assert bool(torch.isfinite(weights_of(edit.model)).all())
