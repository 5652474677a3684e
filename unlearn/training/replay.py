"""Running recorded steps again on changed data: the coupled retrain, and the replay after a rewind."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
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
    rates: Sequence[float] | None = None,
    snapshot: Snapshot | None = None,
    take: Callable[[int, Snapshot], None] | None = None,
    copied: bool = True,
    description: str = "replaying",
) -> tuple[nn.Module, int]:
    """Run the recorded steps from ``start`` to the last on changed data, starting from the model's weights.

    The recorded order, learning rates and settings are used; a removed row leaves its place in the batch empty and
    the loss is the mean over those left (math.md 0). With ``start=0`` and the initial weights this is the coupled
    retrain. With rates for fewer steps than are left (:func:`compressed_rates`) it is a compressed replay, of as many
    recorded batches from ``start`` on.

    Several ranks share each batch out where its rows stand apart in training (no batch norm, no dropout); else each
    does the same.

    Args:
        model: weights to start from.
        data: changed rows.
        record: of the original training, with its row order.
        start: first step to run.
        rates: learning rates of the steps to run; the recorded ones of all that are left if None.
        snapshot: whose optimizer state to start with; None for a fresh optimizer.
        take: called with a snapshot at the start, at each later step at which the record has one, and at the last; of a
            compressed schedule as far along it, under the recorded step.
        copied: leave the model as it is and train a copy; False trains the model itself, which saves one.
        description: of the progress bar.

    Returns:
        The trained model, in eval mode, and the number of rows processed.

    Raises:
        RecordError: the record has no row order, rows of the data are not in it, the start is not one of its steps,
            rates for more steps than are left, or the snapshot is of another architecture.
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
    left, schedule = record.steps - start, record.rates()
    steps = left if rates is None else len(rates)
    if not min(1, left) <= steps <= left:
        raise RecordError(f"a replay of {steps} steps from step {start}; give 1 to the {left} that are left")
    if rates is not None:
        schedule[start : start + steps] = rates
    scale = steps / left if left else 1.0
    recorded = {step for step in record.snapshots if take is not None and step > start} | {record.steps}
    names = {start + max(min(1, left), round((step - start) * scale)): step for step in sorted(recorded)}
    model = copy.deepcopy(model) if copied else model
    optimizer = optimizer_of(model, record)
    if snapshot is not None:
        snapshot.restore_optimizer(model, optimizer)
    processed = 0
    if take is not None:
        take(start, Snapshot.take(model, optimizer))
    for begin, stop in itertools.pairwise((start, *sorted(names))):
        processed += run_steps(
            model,
            optimizer,
            data,
            record.order,
            schedule.tolist(),
            task=get_task(record.task),
            start=begin,
            stop=stop,
            seed=record.seed or 0,
            shared=True,
            description=description,
        )
        if take is not None:
            take(names[stop], Snapshot.take(model, optimizer))
    return model.eval(), processed


def compressed_rates(record: TrainingRecord, steps: int, start: int = 0) -> npt.NDArray[np.float64]:
    """Return the recorded schedule from a step on in ``steps`` steps: s takes the rate recorded s / steps of the way.

    Rates between two recorded steps lie on the line between them.

    >>> compressed_rates(TrainingRecord("sgd", [0.4, 0.3, 0.2, 0.1], 4), 2).tolist()
    [0.4, 0.2]
    >>> compressed_rates(TrainingRecord("sgd", [0.4, 0.3, 0.2, 0.1], 4), 1, start=2).tolist()
    [0.2]
    """
    recorded = record.rates()[start:]
    return np.interp(np.arange(steps) * len(recorded) / steps, np.arange(len(recorded)), recorded)
