"""What a repair is measured beside: fine-tuning and plain replay."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from repair_cases import EPOCHS, ROWS, STEPS, loop, same_bits, training, weights_of
from torch import nn

from unlearn.data import Rows
from unlearn.errors import RecordError
from unlearn.repair import fine_tune, plain_replay
from unlearn.training import BatchOrder, TrainingRecord

Trained = tuple[nn.Module, Rows, TrainingRecord]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return training(tmp_path_factory.mktemp("rivals"))


@pytest.mark.parametrize("lr", [None, 0.01])
def test_fine_tuning_is_training_on_the_changed_rows_alone(trained: Trained, lr: float | None) -> None:
    """A fresh optimizer from the final weights, the record's settings, new row order, no removed row in it."""
    model, rows, record = trained
    changed = rows.without(rows.ids[:30]).relabelled({rows.ids[40]: (int(rows.labels[40]) + 1) % 10})
    before = copy.deepcopy(model)
    tuned = fine_tune(model, changed, record, epochs=2, seed=5, lr=lr)
    order = BatchOrder.shuffled(changed.ids, epochs=2, batch_size=ROWS // STEPS, seed=5)
    assert set(order.ids).isdisjoint(rows.ids[:30])
    by_hand = replace(record, lr=lr or 0.05, steps=len(order), order=order, snapshots={})
    torch.testing.assert_close(weights_of(tuned), weights_of(loop(model, changed, by_hand)), rtol=0, atol=1e-6)
    assert same_bits(model, before)
    assert not same_bits(tuned, model)


def test_fine_tuning_takes_the_median_rate(trained: Trained) -> None:
    """Rejects the last rate: after a cosine schedule it is next to nothing, and the rival would stand still."""
    model, rows, record = trained
    falling = replace(record, lr=[0.1] * (record.steps - 2) + [0.02, 0.0])
    wanted = fine_tune(model, rows, record, epochs=1, lr=0.1)
    assert same_bits(fine_tune(model, rows, falling, epochs=1), wanted)


@pytest.mark.parametrize(("epochs", "epoch"), [(0.5, 5), (1, 5), (1.5, 4), (2, 4), (3, 2), (4, 2), (5, 0), (6, 0)])
def test_plain_replay_starts_at_the_latest_snapshot_that_far_back(trained: Trained, epochs: float, epoch: int) -> None:
    model, rows, record = trained
    changed = rows.without(rows.ids[:30])
    replayed, start = plain_replay(model, changed, record, epochs=epochs)
    assert start == epoch * STEPS
    wanted = loop(model, changed, record, start, record.snapshot(start))
    torch.testing.assert_close(weights_of(replayed), weights_of(wanted), rtol=0, atol=2e-6)


def test_plain_replay_of_what_was_not_recorded(trained: Trained) -> None:
    model, rows, record = trained
    with pytest.raises(RecordError, match="no snapshot lies 7 epochs before the end"):
        plain_replay(model, rows, record, epochs=EPOCHS + 1)
    with pytest.raises(RecordError, match="no row order"):
        plain_replay(model, rows, replace(record, order=None), epochs=1)
