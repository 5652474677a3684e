"""Where to rewind to, and whether the record is that of this model and data."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import nn

from unlearn.data import Rows
from unlearn.errors import RecordError
from unlearn.repair.old_answers import learnt_less
from unlearn.tasks import Task
from unlearn.training import Snapshot, TrainingRecord, compressed_rates


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


COMPRESSED_START = 0.4
"""How far into the training a compressed replay of the smallest budget starts."""
HASTE = 1.5
"""How much higher than recorded the rates of a compressed replay may be, towards the recorded sum of them."""
LEAST_STEPS = 15
"""Fewer steps, of which momentum alone spans ten, do not stand for the rest of a training."""


def compressed_step(record: TrainingRecord | None, rows: Rows, budget: float) -> int | None:
    """Return the snapshot from which many changed rows are trained again, the rest of the schedule in fewer epochs.

    It is the recorded one nearest to a share .4 (1 - 2 b) of the training, where the budget pays for a share b of it:
    two fifths of the way for the smallest budget, the beginning for half of the training; or an earlier one, where the
    budget pays for a replay from there that is not compressed. None where nothing can be replayed, or too few steps.

    The rule was found on two seeds of ``mnist5k-relabel`` (docs/limits.md). The earlier the start, the less the weights
    have learnt from the old labels; the later, the less is compressed.
    """
    whole = rewind_step(record, rows, budget)
    if record is None or record.order is None or affordable_steps(record, rows, 0, budget) < LEAST_STEPS:
        return None
    share = COMPRESSED_START * (1 - 2 * min(0.5, budget * len(rows) / float(record.order.rows_left()[0])))
    before = [step for step in sorted(record.snapshots) if step < record.steps]
    if not before:
        return None
    nearest = min(before, key=lambda step: abs(step - share * record.steps))
    return nearest if whole is None else min(nearest, whole)


def start_before_learnt(
    model: nn.Module, record: TrainingRecord | None, rows: Rows, changed: Collection[str], budget: float
) -> int | None:
    """Return :func:`compressed_step` if the changed rows are learnt later than the others.

    That is asked of the first snapshot from there on that gives most of the other rows their class: it must give most
    of the changed rows another class than their old. Wrong labels are learnt last (arXiv 1706.05394), so a training
    that is taken up early hardly knows them. What is learnt with the rest, such as a whole class, it would have to
    unlearn in few steps; None there, and without classes.
    """
    start = compressed_step(record, rows, budget)
    if record is None or start is None:
        return None
    check_final_weights(record, model)
    place = copy.deepcopy(model)
    for step in sorted(step for step in record.snapshots if step >= start):
        record.snapshot(step).restore(place)
        late = learnt_less(place, rows, changed)
        if late is not None:
            return start if late else None
    return None


def compressed_schedule(record: TrainingRecord, rows: Rows, start: int, budget: float) -> list[float]:
    """Return the rates of the steps from ``start`` on that the budget pays for: the rest of the schedule, in a haste.

    Rates are raised so that their sum is that of the rest, but no more than ``HASTE`` times: weights that have seen
    less training are less sure of themselves than those of a retrain.
    """
    steps, left = affordable_steps(record, rows, start, budget), record.steps - start
    rates: list[float] = (compressed_rates(record, steps, start) * min(HASTE, left / steps)).tolist()
    return rates


def affordable_steps(record: TrainingRecord, rows: Rows, start: int, budget: float) -> int:
    """Return how many recorded steps from ``start`` on the budget pays for."""
    if record.order is None:
        return 0
    left = record.order.rows_left()[start:]
    seen = left[0] - torch.cat([left[1:], left.new_zeros(1)])
    return int((seen <= budget * len(rows)).sum())


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


def rewound(
    model: nn.Module, record: TrainingRecord | None, start: int | None, *, needed: bool
) -> tuple[nn.Module, Snapshot | None]:
    """Return the model with the weights to edit, and their snapshot where the edit needs its optimizer state."""
    if record is None or (start is None and not needed):
        return model, None
    snapshot = last_snapshot(record) if start is None else record.snapshot(start)
    check_final_weights(record, model)
    if start is None:
        return model, snapshot
    place = copy.deepcopy(model)
    snapshot.restore(place)
    return place, snapshot if needed else None


def last_snapshot(record: TrainingRecord) -> Snapshot:
    """Return the snapshot of the final weights, for Adam's second moments."""
    if record.steps not in record.snapshots or record.folder is None:
        raise RecordError(
            "the damping of Adam needs the last snapshot with its second moments; record it, or give damping="
        )
    return record.snapshot(record.steps)
