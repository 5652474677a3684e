"""The unrolled edit of a snapshot: unroll the recorded training up to it, correct the change, apply it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from unlearn.data import Rows
from unlearn.repair.changes import Changes
from unlearn.repair.correction import corrected
from unlearn.repair.newton_edit import FACTOR_SHARE, REPLAY_SHARE, sample_size
from unlearn.repair.objective import Damping
from unlearn.repair.rounding import rounding_notes
from unlearn.repair.trajectory import Segment, Trajectory
from unlearn.repair.unrolled import unroll
from unlearn.tasks import Task
from unlearn.training import Snapshot, Successor, TrainingRecord


@dataclass(frozen=True)
class UnrolledEdit:
    """Edited weights and optimizer state, and what they cost in row passes.

    Attributes:
        model: a copy with the edited weights.
        snapshot: these weights with the edited momentum.
        cost: row passes of the request.
        factor_rows: rows that factors were fitted on for this edit.
        storage: bytes of all factors.
        notes: what rounding took, where the weights are half precision.
    """

    model: nn.Module
    snapshot: Snapshot
    cost: int
    factor_rows: int
    storage: int
    notes: tuple[str, ...] = ()


def unrolled_edit(
    place: nn.Module,
    snapshot: Snapshot,
    rows: Rows,
    changes: Changes,
    task: Task,
    *,
    record: TrainingRecord,
    segments: tuple[Segment, ...],
    weight_decay: float,
    damping: Damping,
    factors: str | Path | None = None,
    successor: Successor | None = None,
) -> UnrolledEdit:
    """Move the weights of ``place`` to where training on the changed data would have been.

    Args:
        place: the model to edit; not changed.
        snapshot: its weights and optimizer state, at the end of the last segment.
        rows: rows before the change.
        changes: the change.
        task: the task.
        record: of the training.
        segments: that lead to the snapshot.
        weight_decay: w.
        damping: d of the correction, a number or a metric.
        factors: folder of factors that requests share, fitted on all rows; fitted on a share of them where None.
        successor: takes the moved snapshots between segments.
    """
    sample = rows if factors is not None else rows.sample(sample_size(len(rows), FACTOR_SHARE), 0, "factor-rows")
    trajectory = Trajectory(place, record, sample, task, None if factors is None else Path(factors))
    found = unroll(trajectory, rows, changes, segments, take=None if successor is None else successor.take)
    edited = changes.apply(rows)
    change, more = corrected(
        found.change,
        place,
        edited.sample(sample_size(len(edited), REPLAY_SHARE), 0, "operator-rows"),
        task,
        found.curvature,
        scale=found.scale,
        weight_decay=weight_decay,
        damping=damping,
    )
    moved_snapshot, model = replace(found, change=change).on(snapshot), copy.deepcopy(place)
    moved_snapshot.restore(model)
    goal = {name: place.get_parameter(name).detach().to(part) + part for name, part in change.items()}
    notes = rounding_notes(place, goal)
    return UnrolledEdit(model, moved_snapshot, found.cost + more, trajectory.fitted, found.storage, notes)
