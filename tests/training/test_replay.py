"""Replays: the same steps on the same data give the same bits; on changed data, the coupled retrain."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from training_cases import ADAM, SETTINGS, SGD, network, plain_loop, rows_of, same

from unlearn.data import Rows
from unlearn.errors import InputError, RecordError
from unlearn.training import BatchOrder, TrainingRecord, TrainSettings, replay, train

each_optimizer = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())


def batches_of(record: TrainingRecord) -> list[list[str]]:
    assert record.order is not None
    return [record.order.batch(step) for step in range(record.steps)]


@each_optimizer
@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_a_replay_on_unchanged_data_gives_the_final_weights_bit_by_bit(
    settings: TrainSettings, epoch: int, tmp_path: Path
):
    # rejects a lost momentum, a lost step count of Adam, another rate, a start one step off
    rows = rows_of()
    model, record = train(network(), rows, settings, folder=tmp_path, snapshot_epochs=range(4))
    record = TrainingRecord.from_dict(record.to_dict(), folder=tmp_path)  # as read from a run's folder
    snapshot = record.snapshot(4 * epoch)
    start = network(seed=9)
    snapshot.restore(start)
    again, processed = replay(start, rows, record, start=4 * epoch, snapshot=snapshot)
    assert same(again, model)
    assert processed == 20 * (3 - epoch)
    if epoch in (1, 2):  # the test can tell: without the optimizer's state the weights differ
        assert not same(replay(start, rows, record, start=4 * epoch)[0], model)
        assert not same(replay(start, rows, record, start=4 * epoch + 1, snapshot=snapshot)[0], model)


def test_a_replay_from_the_middle_draws_the_dropout_of_the_training(tmp_path: Path):
    # rejects one stream of random numbers from the start of the training
    start = nn.Sequential(*network(), nn.Dropout(0.3))
    model, record = train(start, rows_of(), SGD, seed=3, folder=tmp_path, snapshot_epochs=[1])
    snapshot = record.snapshot(4)
    snapshot.restore(start)
    assert same(replay(start, rows_of(), record, start=4, snapshot=snapshot)[0], model)


@each_optimizer
def test_a_replay_from_the_start_without_rows_is_the_coupled_retrain(settings: TrainSettings):
    # rejects refilled batches, a mean over the old batch size, and fewer steps
    rows = rows_of()
    _, record = train(network(), rows, settings)
    kept = rows.without(["r3", "r11", "r12"]).relabelled({"r5": 2})
    retrained, processed = replay(network(), kept, record)
    assert same(retrained, plain_loop(network(), kept, batches_of(record), settings.rates(20), settings))
    assert processed == 3 * 17


@each_optimizer
@pytest.mark.parametrize("emptied", [0, 3, 11], ids=["first", "middle", "last"])
def test_a_batch_without_rows_still_takes_its_momentum_and_decay_step(settings: TrainSettings, emptied: int):
    # rejects skipping the step, which would shift rates and lose the decay
    rows = rows_of()
    _, record = train(network(), rows, settings)
    kept = rows.without(batches_of(record)[emptied])
    retrained, _ = replay(network(), kept, record)
    assert same(retrained, plain_loop(network(), kept, batches_of(record), settings.rates(20), settings))


def test_labels_are_checked_even_where_the_first_batch_is_empty():
    # rejects a check in the first step alone
    rows = rows_of()
    order = BatchOrder.from_batches([["r0"], ["r1"]])
    record = TrainingRecord(optimizer="sgd", lr=0.1, steps=2, order=order)
    bad = Rows.from_tensors(rows.batch(torch.tensor([1]))[0], torch.tensor([3]), ids=["r1"])
    with pytest.raises(InputError, match="label 3 is outside the model's 3 classes"):
        replay(network(), bad, record)


def test_rows_may_come_in_any_order():
    # rejects places by position instead of id
    rows = rows_of()
    model, record = train(network(), rows, SGD)
    shuffled = rows.at(torch.randperm(20, generator=torch.Generator().manual_seed(0)))
    assert same(replay(network(), shuffled, record)[0], model)


def test_the_callers_model_and_the_snapshot_are_left_as_found(tmp_path: Path):
    # rejects an optimizer that works on the snapshot's own tensors
    _, record = train(network(), rows_of(), ADAM, folder=tmp_path, snapshot_epochs=[1])
    snapshot = record.snapshot(4)
    model = network()
    snapshot.restore(model)
    before = copy.deepcopy((snapshot.weights, snapshot.optimizer, dict(model.state_dict())))
    state = torch.get_rng_state()
    one, _ = replay(model, rows_of(), record, start=4, snapshot=snapshot)
    two, _ = replay(model, rows_of(), record, start=4, snapshot=snapshot)
    assert same(one, two)
    assert torch.equal(torch.get_rng_state(), state)
    for old, new in zip(before, (snapshot.weights, snapshot.optimizer, model.state_dict()), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)
    assert all(p.grad is None for p in model.parameters())


def refused(record: TrainingRecord, message: str, **options: int) -> None:
    with pytest.raises(RecordError, match=message):
        replay(network(), rows_of(), record, **options)  # type: ignore[arg-type]


def test_what_can_not_be_replayed_is_refused(tmp_path: Path):
    model, record = train(network(), rows_of(), SGD, folder=tmp_path)
    refused(TrainingRecord(optimizer="sgd", lr=0.1, steps=5), "has no row order")
    small: Sequence[Sequence[str]] = [["r0", "r1"]]
    refused(replace(record, steps=1, lr=0.1, order=BatchOrder.from_batches(small)), "18 rows were not in the recorded")
    refused(record, r"would start at step 13; the recorded training has steps 0\.\.12", start=13)
    refused(record, "would start at step -1", start=-1)
    other = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    with pytest.raises(RecordError, match="a snapshot does not fit the model"):
        replay(other, rows_of(), record, start=12, snapshot=record.snapshot(12))
    with pytest.raises(RecordError, match=r"a snapshot does not fit the model: it has momentum_buffer of .* for "):
        replay(nn.Linear(4, 3), rows_of(), record, start=12, snapshot=record.snapshot(12))
    with pytest.raises(RecordError, match="a snapshot does not fit the model"):
        record.snapshot(12).restore(other)
    assert same(replay(model, rows_of(), record, start=12)[0], model)  # nothing left to replay
