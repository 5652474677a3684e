"""Running recorded steps again on changed data: the coupled retrain, and the replay after a rewind."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

from torch import nn

from unlearn.data import Rows
from unlearn.errors import RecordError
from unlearn.tasks import get_task
from unlearn.training.record import TrainingRecord, optimizer_of
from unlearn.training.snapshots import Snapshot
from unlearn.training.trainer import run_steps


def replay(
    model: nn.Module,
    data: Rows,
    record: TrainingRecord,
    *,
    start: int = 0,
    snapshot: Snapshot | None = None,
    take: Callable[[int, Snapshot], None] | None = None,
    description: str = "replaying",
) -> tuple[nn.Module, int]:
    """Run the recorded steps from ``start`` to the last on changed data, starting from the model's weights.

    The recorded order, learning rates and settings are used; a removed row leaves its place in the batch empty and
    the loss is the mean over those left (math.md 0). With ``start=0`` and the initial weights this is the coupled
    retrain.

    Args:
        model: weights to start from; not changed.
        data: changed rows.
        record: of the original training, with its row order.
        start: first step to run.
        snapshot: whose optimizer state to start with; None for a fresh optimizer.
        take: called with a snapshot at the start, at each later step at which the record has one, and at the last.
        description: of the progress bar.

    Returns:
        The trained copy, in eval mode, and the number of rows processed.

    Raises:
        RecordError: the record has no row order, rows of the data are not in it, the start is not one of its steps,
            or the snapshot is of another architecture.
    """
    if record.order is None:
        raise RecordError(
            "the training record has no row order, so nothing can be replayed; record it, or use budget=0"
        )
    unknown = set(data.ids) - set(record.order.ids)
    if unknown:
        raise RecordError(
            f"{len(unknown)} rows were not in the recorded training, {min(unknown)!r} first; pass its rows"
        )
    if not 0 <= start <= record.steps:
        raise RecordError(f"the replay would start at step {start}; the recorded training has steps 0..{record.steps}")
    model = copy.deepcopy(model)
    optimizer = optimizer_of(model, record)
    if snapshot is not None:
        snapshot.restore_optimizer(model, optimizer)
    stops = sorted({step for step in record.snapshots if take is not None and step > start} | {record.steps})
    processed = 0
    if take is not None:
        take(start, Snapshot.take(model, optimizer))
    for begin, stop in itertools.pairwise((start, *stops)):
        processed += run_steps(
            model,
            optimizer,
            data,
            record.order,
            record.rates().tolist(),
            task=get_task(record.task),
            start=begin,
            stop=stop,
            seed=record.seed or 0,
            description=description,
        )
        if take is not None:
            take(stop, Snapshot.take(model, optimizer))
    return model.eval(), processed
