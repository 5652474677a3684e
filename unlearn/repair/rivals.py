"""What a user would do instead: fine-tune on what is left, or replay without an edit. Measured beside every repair."""

from __future__ import annotations

import copy

import numpy as np
from torch import nn

from unlearn.data import Rows
from unlearn.errors import RecordError
from unlearn.training import TrainingRecord, TrainSettings, replay, train


def fine_tune(
    model: nn.Module, data: Rows, record: TrainingRecord, *, epochs: int, seed: int = 0, lr: float | None = None
) -> nn.Module:
    """Go on training on the changed data with the record's optimizer, afresh.

    Args:
        model: the trained model; not changed.
        data: changed rows.
        record: gives optimizer, weight decay, batch size and, by default, the median of its learning rates.
        epochs: passes over the data.
        seed: of the row order.
        lr: learning rate instead of the record's.
    """
    settings = TrainSettings(
        optimizer="adam" if record.optimizer == "adam" else "sgd",
        lr=float(np.median(record.rates())) if lr is None else lr,
        momentum=record.momentum,
        weight_decay=record.weight_decay,
        betas=record.betas,
        eps=record.eps,
        epochs=epochs,
        batch_size=128 if record.order is None else record.order.positions.shape[1],
    )
    return train(model, data, settings, seed=seed, task=record.task, description="fine-tuning")[0]


def plain_replay(model: nn.Module, data: Rows, record: TrainingRecord, *, epochs: float) -> tuple[nn.Module, int]:
    """Rewind to the latest snapshot at least ``epochs`` before the end and run the recorded steps without an edit.

    Returns:
        The replayed model and the step it started from.

    Raises:
        RecordError: no snapshot lies that far back.
    """
    if record.order is None:
        raise RecordError("the training record has no row order, so nothing can be replayed")
    left = record.order.rows_left()
    rows = len(record.order.ids)
    far = [step for step in sorted(record.snapshots) if step < record.steps and left[step] >= epochs * rows]
    if not far:
        raise RecordError(f"no snapshot lies {epochs:g} epochs before the end; there are {sorted(record.snapshots)}")
    snapshot = record.snapshot(far[-1])
    start = copy.deepcopy(model)
    snapshot.restore(start)
    return replay(start, data, record, start=far[-1], snapshot=snapshot)[0], far[-1]
