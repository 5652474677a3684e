"""Compressed replays: where they start, which steps they run at which rates, and what is said of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from repair_cases import EPOCHS, ROWS, STEPS, digits, distance_to, loop, same_bits, small_mlp, training, weights_of
from torch import nn

from unlearn.data import Rows, symmetric_noise
from unlearn.errors import InputError, RecordError
from unlearn.repair import Changes, apply_changes
from unlearn.repair.rewind import (
    LEAST_STEPS,
    affordable_steps,
    compressed_schedule,
    compressed_step,
    start_before_learnt,
)
from unlearn.training import BatchOrder, TrainingRecord, TrainSettings, compressed_rates, replay, train

Trained = tuple[nn.Module, Rows, TrainingRecord]


@pytest.fixture(scope="module")
def sgd(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return training(tmp_path_factory.mktemp("sgd"))


def many(rows: Rows) -> Changes:
    assert rows.truth is not None
    wrong = (rows.labels != rows.truth).nonzero().flatten().tolist()
    return Changes(tuple(rows.ids[i] for i in wrong[:6]), {rows.ids[i]: int(rows.truth[i]) for i in wrong[6:]})


@pytest.mark.parametrize("count", [LEAST_STEPS, 20, 24])
def test_the_steps_are_the_recorded_ones_at_the_compressed_rates(sgd: Trained, count: int) -> None:
    """Against the loop written out. Rejects the last recorded batches, uncompressed rates, a lost momentum."""
    model, rows, record = sgd
    start = 2 * STEPS
    snapshot, data = record.snapshot(start), many(rows).apply(rows)
    place = copy.deepcopy(model)
    snapshot.restore(place)
    schedule = compressed_schedule(record, rows, start, count / STEPS)
    found, processed = replay(place, data, record, start=start, rates=schedule, snapshot=snapshot)
    assert record.order is not None
    assert len(schedule) == count
    assert schedule == pytest.approx([0.05 * min(1.5, 24 / count)] * count)
    rates = record.rates()
    rates[start : start + count] = schedule
    order = replace(record.order, positions=record.order.positions[: start + count])
    shorter = replace(record, lr=tuple(rates[: start + count]), steps=start + count, order=order)
    torch.testing.assert_close(
        weights_of(found), weights_of(loop(model, data, shorter, start, snapshot)), rtol=0, atol=1e-6
    )
    assert processed == sum(row in data for step in range(start, start + count) for row in order.batch(step))


def test_as_many_steps_as_are_left_are_the_plain_replay(sgd: Trained) -> None:
    model, rows, record = sgd
    start, data = 2 * STEPS, many(rows).apply(rows)
    snapshot = record.snapshot(start)
    snapshot.restore(place := copy.deepcopy(model))
    schedules = (None, compressed_schedule(record, rows, start, 4))
    one, other = (replay(place, data, record, start=start, rates=rates, snapshot=snapshot)[0] for rates in schedules)
    assert same_bits(one, other)


@pytest.mark.parametrize("steps", [0, 25])
def test_steps_that_are_not_left_are_refused(sgd: Trained, steps: int) -> None:
    model, rows, record = sgd
    with pytest.raises(RecordError, match=f"a replay of {steps} steps from step 12; give 1 to the 24 that are left"):
        replay(model, rows, record, start=2 * STEPS, rates=[0.05] * steps)


def test_a_compressed_cosine_ends_where_the_recorded_one_does() -> None:
    """Rejects the first rates of the rest, which never come down."""
    settings = TrainSettings(lr=0.1, schedule="cosine", epochs=12, batch_size=10)
    record = TrainingRecord("sgd", settings.rates(80), 12 * 8)
    rates, rest = compressed_rates(record, 20, start=16), record.rates()[16:]
    assert rates[0] == rest[0]
    assert rates[-1] == pytest.approx(rest[76], rel=1e-12)
    assert (np.diff(rates) < 0).all()
    assert rates.mean() == pytest.approx(rest.mean(), rel=0.06)


@pytest.mark.parametrize(
    ("epochs", "budget", "recorded", "epoch"),
    [
        (15, 1, range(16), 5),  # .4 (15 - 2) = 5.2
        (15, 2, range(16), 4),
        (15, 3, range(16), 4),
        (15, 5, range(16), 2),
        (15, 7.5, range(16), 0),
        (15, 13, range(16), 0),
        (15, 1, (0, 12, 15), 0),
        (15, 1, (11, 15), 11),
        (15, 5, (11, 15), 11),  # within the budget, so nothing is compressed
        (15, 14, (1, 14, 15), 1),
        (15, 1, (15,), None),
        (15, 0, range(16), None),
        (15, 14 / 32, range(16), None),
    ],
)
def test_where_it_starts(epochs: int, budget: float, recorded: range, epoch: int | None) -> None:
    steps = 32
    order = torch.arange(64).reshape(32, 2).repeat(epochs, 1)
    record = TrainingRecord(
        "sgd",
        0.1,
        epochs * steps,
        order=BatchOrder(tuple(map(str, range(64))), order.int()),
        snapshots={step * steps: "" for step in recorded},
    )
    rows = Rows.from_tensors(torch.zeros(64, 1), torch.zeros(64, dtype=torch.long), classes=2)
    found = compressed_step(record, rows, budget)
    assert found == (None if epoch is None else epoch * steps)
    if found is not None:
        assert affordable_steps(record, rows, found, budget) == min(epochs * steps - found, int(budget * steps))
    assert compressed_step(None, rows, budget) is None
    assert compressed_step(replace(record, order=None, snapshots={}), rows, budget) is None


def test_what_the_snapshot_has_learnt_is_not_left_behind_by_it(sgd: Trained) -> None:
    """Rejects the labels after the change, and those that the final weights give."""
    model, rows, record = sgd
    assert rows.truth is not None
    wrong, right = (
        [row for row, a, b in zip(rows.ids, rows.labels, rows.truth, strict=True) if bool(a != b) is is_wrong]
        for is_wrong in (True, False)
    )
    for budget in (3, 6):  # starts after epoch 0
        assert compressed_step(record, rows, budget) == 0
    late = replace(record, snapshots={step: record.snapshots[step] for step in (5 * STEPS, 6 * STEPS)})
    assert start_before_learnt(model, late, rows, wrong, 3) == 5 * STEPS
    assert start_before_learnt(model, late, rows, right, 3) is None
    assert start_before_learnt(model, late, rows, wrong + right[: len(wrong) // 2], 3) == 5 * STEPS
    whole = Changes(tuple(right[:40]))
    assert apply_changes(model, rows, whole, record=late, budget=3).method == "rewind-newton-replay"


def test_many_rows_are_trained_again_from_an_early_snapshot(sgd: Trained, tmp_path: Path) -> None:
    model, rows, record = sgd
    before = copy.deepcopy(model.state_dict())
    changes, budget = many(rows), 3.5
    edit = apply_changes(model, rows, changes, record=record, budget=budget, successor=tmp_path / "next")
    assert (edit.method, edit.start_step, edit.steps, edit.curvature) == ("rewind-compressed-replay", 0, (), None)
    assert any("taken up at step 0 of 36, and its other 36 steps were compressed into 21" in n for n in edit.notes)
    assert edit.cost.factors == edit.cost.storage == 0
    assert edit.cost.replay == pytest.approx(21 / STEPS * (ROWS - 6) / ROWS, rel=0.01)
    assert edit.after["changed_phi"] < edit.before["changed_phi"]
    assert all(torch.equal(now, before[name]) for name, now in model.state_dict().items())
    assert edit.successor is not None
    assert sorted(edit.successor.snapshots) == [0, 2 * STEPS, 4 * STEPS, 5 * STEPS, 6 * STEPS]
    last = edit.successor.snapshot(EPOCHS * STEPS).weights
    assert all(torch.equal(last[name], value) for name, value in edit.model.state_dict().items())
    following = apply_changes(
        edit.model, edit.edited_data, Changes(edit.edited_data.ids[:2]), record=edit.successor, budget=1
    )
    assert following.method == "rewind-unrolled-replay"
    left = apply_changes(model, rows, changes, record=record, budget=budget, head="leave")
    assert left.method == "rewind-newton-replay"  # nothing would train the last layer again
    asked = apply_changes(model, rows, Changes(rows.ids[:1]), record=record, budget=budget, method="compressed")
    assert asked.method == "rewind-compressed-replay"


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (lambda r: replace(r, snapshots={}), {"budget": 4}, RecordError, "needs snapshots, the row order and a budget"),
        (lambda r: replace(r, snapshots={}, order=None), {"budget": 4}, RecordError, "needs snapshots"),
        (lambda r: r, {"budget": 1}, RecordError, "a budget of at least 15 steps"),
        (lambda r: r, {"budget": 4, "damping": 0.1}, InputError, "method 'compressed' takes no damping="),
        (lambda r: r, {"budget": 4, "steps": 2}, InputError, "method 'compressed' takes no steps="),
    ],
)
def test_what_it_needs(
    sgd: Trained,
    change: Callable[[TrainingRecord], TrainingRecord],
    options: dict[str, object],
    error: type[Exception],
    words: str,
) -> None:
    model, rows, record = sgd
    with pytest.raises(error, match=words):
        apply_changes(model, rows, many(rows), record=change(record), method="compressed", **options)  # type: ignore[arg-type]


def test_it_lands_nearer_than_as_long_a_replay_and_as_a_newton_edit(tmp_path: Path) -> None:
    """The bar of large repairs, reduced: wrong labels of 600 digits put right, at a budget of 3 of 15 epochs."""
    rows = symmetric_noise(digits(600), rate=0.15, seed=0)
    settings = TrainSettings(lr=0.1, epochs=15, batch_size=50, schedule="cosine")
    model, record = train(small_mlp(width=64), rows, settings, seed=3, folder=tmp_path, snapshot_epochs=range(16))
    assert rows.truth is not None
    changes = Changes(
        relabelled={row: int(b) for row, a, b in zip(rows.ids, rows.labels, rows.truth, strict=True) if a != b}
    )
    there, _ = replay(small_mlp(width=64), changes.apply(rows), record)
    distance = distance_to(there)
    ours = apply_changes(model, rows, changes, record=record, budget=3)
    assert (ours.method, ours.start_step) == ("rewind-compressed-replay", 4 * 12)
    newton = apply_changes(model, rows, changes, record=record, budget=3, method="newton")
    start = record.snapshot(12 * 12)
    start.restore(place := copy.deepcopy(model))
    plain, _ = replay(place, changes.apply(rows), record, start=12 * 12, snapshot=start)
    assert distance(ours.model) < min(distance(newton.model), distance(plain), distance(model))
