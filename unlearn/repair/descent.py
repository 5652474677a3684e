"""Training steps from given weights, counted: every rival that trains is these, and the descent from final weights.

Where many labels were wrong and no earlier snapshot is there, no small step of the final weights takes back what they
taught. Training on the changed data does better (measured in :mod:`benchmarks.repair`), at rates that fall from the
recorded peak to 0, so that it ends as the recorded training did; the head is trained again behind it
(:mod:`unlearn.repair.head`).
"""

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


def descent(model: nn.Module, changed: Rows, record: TrainingRecord, epochs: float) -> tuple[nn.Module, int]:
    """Train a copy on the changed rows for so many epochs, at falling rates; return it, and the rows processed.

    Raises:
        InputError: the training diverged.
    """
    order = shuffled(changed, record, epochs, record.seed or 0)
    rates = np.linspace(float(record.rates().max()), 0.0, len(order), endpoint=False)
    return descend(model, changed, order, rates.tolist(), record, seed=record.seed or 0, description="descending")


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
        shared=True,
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
