"""Replay without an edit: rewind to a snapshot and run the recorded steps from there on the changed data."""

from __future__ import annotations

import copy

from torch import nn

from unlearn.data import Rows
from unlearn.errors import RecordError
from unlearn.modes import copy_modes
from unlearn.repair.changes import Changes
from unlearn.repair.rivals.rival import Rival, RivalEdit, epochs_of
from unlearn.training import TrainingRecord, replay


def plain_replay(
    model: nn.Module, data: Rows, changes: Changes, record: TrainingRecord, setting: dict[str, float], seed: int
) -> RivalEdit:
    """Rewind to the latest snapshot at least ``epochs`` before the end and run the recorded steps without an edit.

    Raises:
        RecordError: there is no row order, or no snapshot lies that far back.
    """
    epochs = setting["epochs"]
    if record.order is None:
        raise RecordError("the training record has no row order, so nothing can be replayed")
    left = record.order.rows_left()
    far = [step for step in _inner_snapshots(record) if left[step] >= epochs * len(record.order.ids)]
    if not far:
        raise RecordError(f"no snapshot lies {epochs:g} epochs before the end; there are {sorted(record.snapshots)}")
    snapshot = record.snapshot(far[-1])
    start = copy.deepcopy(model)
    snapshot.restore(start)
    replayed, processed = replay(start, changes.apply(data), record, start=far[-1], snapshot=snapshot)
    copy_modes(model, replayed)
    return RivalEdit(replayed, epochs_of(processed, data), {**setting, "start_step": float(far[-1])})


def _inner_snapshots(record: TrainingRecord) -> list[int]:
    return [step for step in sorted(record.snapshots) if step < record.steps]


def grid(data: Rows, changes: Changes, record: TrainingRecord, cost: float) -> list[dict[str, float]]:
    """Return the longest replay that may be afforded; none where no snapshot is late enough."""
    if record.order is None:
        return []
    epochs = record.order.rows_left() / len(record.order.ids)
    near = [float(epochs[step]) for step in _inner_snapshots(record) if epochs[step] <= cost]
    return [{"epochs": near[0]}] if near else []


PLAIN_REPLAY = Rival("replay", plain_replay, grid, required=("epochs",), needs="snapshots")
