"""The descent from final weights: its steps, when it is chosen, and what is said of it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from repair_cases import digits, distance_to, loop, small_mlp, weights_of
from torch import nn

from unlearn.data import Rows, symmetric_noise
from unlearn.errors import InputError, RecordError
from unlearn.repair import Changes, apply_changes
from unlearn.repair.descent import descent
from unlearn.training import BatchOrder, TrainingRecord, TrainSettings, replay, train

Trained = tuple[nn.Module, nn.Module, Rows, TrainingRecord]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """First weights, trained ones, rows of which a tenth is wrong, and a record without snapshots or row order."""
    rows, start = symmetric_noise(digits(600), rate=0.15, seed=0), small_mlp(width=64)
    settings = TrainSettings(lr=0.1, epochs=12, batch_size=32, schedule="cosine")
    model, record = train(start, rows, settings, seed=3, folder=tmp_path_factory.mktemp("run"), snapshot_epochs=(0,))
    return start, model, rows, record


def bare(record: TrainingRecord) -> TrainingRecord:
    """What is known of weights from elsewhere; of 57 steps, that the head may be trained again."""
    return replace(record, order=None, snapshots={}, folder=None, steps=57, lr=record.rates()[:57].tolist())


def wrong(rows: Rows) -> Changes:
    assert rows.truth is not None
    found = (rows.labels != rows.truth).nonzero().flatten().tolist()
    return Changes(tuple(rows.ids[i] for i in found[:6]), {rows.ids[i]: int(rows.truth[i]) for i in found[6:]})


def test_the_steps_are_those_of_the_recorded_optimizer_at_falling_rates(trained: Trained) -> None:
    """By the steps written out: rejects rates that do not fall, a kept momentum, and the old labels."""
    _, model, rows, record = trained
    known, changed = bare(record), wrong(rows).apply(rows)
    order = BatchOrder.shuffled(changed.ids, epochs=2, batch_size=128, seed=3)
    rates = [0.1 * (1 - k / len(order)) for k in range(len(order))]
    wanted = loop(model, changed, replace(known, order=order, steps=len(order), lr=rates))
    before = copy.deepcopy(model.state_dict())
    found, processed = descent(model, changed, known, 2.0)
    torch.testing.assert_close(weights_of(found), weights_of(wanted), rtol=0, atol=2e-5)
    assert processed == 2 * len(changed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_where_it_is_chosen(trained: Trained) -> None:
    _, model, rows, record = trained
    known, changes = bare(record), wrong(rows)
    edit = apply_changes(model, rows, changes, record=known, budget=4)
    assert (edit.method, edit.head, edit.start_step, edit.steps) == ("descent", "3", None, ())
    assert edit.cost.replay == pytest.approx(4 * len(edit.edited_data) / len(rows))
    assert any(
        "trained on the changed data for 4 epochs, at rates falling from 0.1 to 0" in note for note in edit.notes
    )
    few = apply_changes(model, rows, changes, record=known, budget=2)
    assert few.method == "newton"
    assert any("with a budget of at least 15 steps the final weights would be trained on" in note for note in few.notes)
    right = Changes(tuple(row for row in rows.ids if row not in changes.ids)[::9])
    for other in (right, Changes(changes.removed)):
        assert apply_changes(model, rows, other, record=known, budget=4).method == "newton"
    assert apply_changes(model, rows, changes, record=known, budget=4, damping=0.1).method == "newton"
    assert apply_changes(model, rows, changes, record=known, budget=4, head="leave").method == "newton"
    assert apply_changes(model, rows, right, record=known, budget=4, method="descent").method == "descent"


def test_adam_needs_no_snapshot_for_it(trained: Trained) -> None:
    _, model, rows, record = trained
    known = replace(bare(record), optimizer="adam", lr=0.003)
    for method in ("auto", "descent"):
        edit = apply_changes(model, rows, wrong(rows), record=known, budget=4, method=method)  # type: ignore[arg-type]
        assert (edit.method, edit.head) == ("descent", "3")


def test_it_moves_running_statistics_and_does_not_where_they_are_frozen(trained: Trained) -> None:
    _, _, rows, record = trained
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    model, _ = train(model, rows, TrainSettings(lr=0.1, epochs=6, batch_size=32), seed=1)
    options = {"record": bare(record), "budget": 4, "method": "descent"}
    edit = apply_changes(model, rows, wrong(rows), **options)  # type: ignore[arg-type]
    assert not torch.equal(edit.model.get_buffer("2.running_mean"), model.get_buffer("2.running_mean"))
    with pytest.raises(InputError, match="batch_norm='freeze' keeps running statistics"):
        apply_changes(model, rows, wrong(rows), batch_norm="freeze", **options)  # type: ignore[arg-type]


def test_steps_are_counted_of_the_rows_that_are_left(trained: Trained) -> None:
    _, model, rows, record = trained
    changes = wrong(rows)
    most = Changes((*changes.ids, *[row for row in rows.ids if row not in changes.ids][:230]))
    with pytest.raises(RecordError, match="at least 15 steps"):
        apply_changes(model, rows, most, record=bare(record), budget=3, method="descent")


def test_what_it_needs(trained: Trained) -> None:
    _, model, rows, record = trained
    known, changes = bare(record), wrong(rows)
    for given, budget in ((known, 2), (replace(known, optimizer="lbfgs"), 4)):
        with pytest.raises(
            RecordError, match="method 'descent' needs the record of an SGD or Adam training and a budget"
        ):
            apply_changes(model, rows, changes, record=given, budget=budget, method="descent")
    with pytest.raises(InputError, match="method 'descent' takes no damping="):
        apply_changes(model, rows, changes, record=known, budget=4, method="descent", damping=0.1)


def test_it_lands_nearer_than_fine_tuning_and_than_a_newton_step(trained: Trained) -> None:
    """The bar of large repairs from the final weights, reduced: wrong labels of 600 digits put right."""
    start, model, rows, record = trained
    changes = wrong(rows)
    there, _ = replay(start, changes.apply(rows), record)
    distance = distance_to(there)
    known = bare(record)
    ours = distance(apply_changes(model, rows, changes, record=known, budget=4).model)
    newton = distance(apply_changes(model, rows, changes, record=known, budget=4, method="newton", head="leave").model)
    tuned = [
        distance(
            loop(
                model,
                changes.apply(rows),
                replace(
                    known,
                    order=BatchOrder.shuffled(changes.apply(rows).ids, epochs=5, batch_size=128, seed=4),
                    lr=rate,
                    steps=25,
                ),
            )
        )
        for rate in (0.02, 0.05, 0.1, 0.2)
    ]
    assert ours < min(newton, *tuned) < distance(model)
