"""Training steps from given weights over a given order, counted; every rival that trains is these."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from unlearn.data import Rows
from unlearn.errors import RecordError
from unlearn.modes import copy_modes
from unlearn.tasks import get_task
from unlearn.training import BatchOrder, TrainingRecord, optimizer_of, run_steps
from unlearn.training.trainer import Objective

BATCH_SIZE = 128
RATES = (0.2, 0.4, 1.0, 2.0)


def descend(
    model: nn.Module,
    rows: Rows,
    order: BatchOrder,
    rates: Sequence[float],
    record: TrainingRecord,
    *,
    seed: int,
    objective: Objective | None = None,
    description: str,
) -> tuple[nn.Module, int]:
    """Train a copy with the record's optimizer, afresh; return it, in the model's modes, and the rows processed.

    Raises:
        InputError: the training diverged.
        RecordError: the record is of a training to the optimum, which has no steps to run.
    """
    if record.optimizer == "lbfgs":
        raise RecordError("the record is of a training to the optimum (lbfgs); retrain instead, it has no steps to run")
    moved = copy.deepcopy(model)
    optimizer = optimizer_of(moved, record)
    processed = run_steps(
        moved,
        optimizer,
        rows,
        order,
        rates,
        task=get_task(record.task),
        seed=seed,
        objective=objective,
        description=description,
    )
    copy_modes(model, moved)
    return moved, processed


def shuffled(rows: Rows, record: TrainingRecord, epochs: float, seed: int) -> BatchOrder:
    """Return a new random order of so many epochs, which need not be whole, in the recorded batch size.

    >>> from unlearn.data import Rows
    >>> import torch
    >>> rows = Rows.from_tensors(torch.eye(300), torch.arange(300))
    >>> len(shuffled(rows, TrainingRecord("sgd", 0.1, 9), 1.67, seed=0))
    5
    """
    whole = math.ceil(epochs)
    order = BatchOrder.shuffled(rows.ids, epochs=whole, batch_size=batch_size(record), seed=seed)
    return BatchOrder(order.ids, order.positions[: max(1, round(epochs * len(order) / whole))])


def batch_size(record: TrainingRecord) -> int:
    """Return the recorded batch size."""
    return BATCH_SIZE if record.order is None else record.order.positions.shape[1]


def usual_rate(record: TrainingRecord) -> float:
    """Return the median of the recorded learning rates: after a cosine schedule the last is next to nothing."""
    return float(np.median(record.rates()))


def rates_to_try(record: TrainingRecord) -> list[float]:
    """Return the grid of learning rates, the same for every rival: multiples of the recorded peak.

    >>> rates_to_try(TrainingRecord("sgd", 0.05, 480))
    [0.01, 0.02, 0.05, 0.1]
    """
    return [round(share * float(record.rates().max()), 12) for share in RATES]
