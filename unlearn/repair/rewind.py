"""Where to rewind to, and whether the record is that of this model and data."""

from __future__ import annotations

import torch
from torch import nn

from unlearn.data import Rows
from unlearn.errors import RecordError
from unlearn.tasks import Task
from unlearn.training import Snapshot, TrainingRecord


def check_record(record: TrainingRecord | None, rows: Rows, task: Task) -> None:
    """Refuse a record of another task or of other data.

    Raises:
        RecordError: what differs.
    """
    if record is None:
        return
    if record.task != task.name:
        raise RecordError(
            f"the record is of task {record.task!r}, the edit of {task.name!r}; pass task={record.task!r}"
        )
    if record.data_fingerprint not in (None, rows.fingerprint):
        raise RecordError(
            f"the record is of data {str(record.data_fingerprint)[:12]}, this data is {rows.fingerprint[:12]}; pass "
            "the rows as they were in training, with their old labels"
        )


def rewind_step(record: TrainingRecord | None, rows: Rows, budget: float) -> int | None:
    """Return the earliest snapshot from which a replay stays within the budget; None to edit the final weights.

    Raises:
        RecordError: snapshots were recorded, but the row order is missing.
    """
    if record is None or budget == 0:
        return None
    if record.order is None:
        if len(record.snapshots) > 1:
            raise RecordError(
                "snapshots were recorded, but their folder with the row order is missing: put snapshots/ beside the "
                "checkpoint, or edit the final weights with budget=0"
            )
        return None
    left = record.order.rows_left()
    within = [step for step in sorted(record.snapshots) if 0 < step < record.steps and left[step] <= budget * len(rows)]
    return within[0] if within else None


def check_final_weights(record: TrainingRecord, model: nn.Module) -> None:
    """Refuse to rewind a training whose last weights are not those of the model."""
    last = record.snapshot(record.steps).weights
    own = model.state_dict()
    if last.keys() != own.keys() and {name.replace("_orig_mod.", "") for name in own} == last.keys():
        raise RecordError("the record is of this model before torch.compile; pass the plain model, its _orig_mod")
    if last.keys() != own.keys() or not all(torch.equal(last[name].to(own[name]), own[name]) for name in own):
        raise RecordError(
            "the record's last snapshot has other weights than the model, so it is the record of another one; pass "
            "its own record"
        )


def last_snapshot(record: TrainingRecord) -> Snapshot:
    """Return the snapshot of the final weights, for Adam's second moments."""
    if record.steps not in record.snapshots or record.folder is None:
        raise RecordError(
            "the damping of Adam needs the last snapshot with its second moments; record it, or give damping="
        )
    return record.snapshot(record.steps)
