"""Loss of the final model at the given label."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from unlearn.data import DEFAULT_BATCH, as_rows
from unlearn.detect.scores import Scores
from unlearn.precision import precision_option
from unlearn.predict import outputs_of
from unlearn.tasks import Task, get_task


def loss(
    model: nn.Module, data: Any, *, task: str | Task = "classification", batch_size: int = DEFAULT_BATCH
) -> Scores:
    """Return each row's loss, at its given label.

    Args:
        model: left as found; run in evaluation mode.
        data: the rows. See :func:`unlearn.data.as_rows`.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time.

    Raises:
        InputError: outputs and labels do not fit, or a loss is not finite.

    >>> model = nn.Linear(2, 2)
    >>> loss(model, (torch.eye(2), torch.tensor([0, 1]))).method
    'loss'
    """
    rows, the_task = as_rows(data), get_task(task)
    parts = []
    for _, outputs, labels in outputs_of(model, rows, batch_size=batch_size):
        the_task.check(outputs, labels)
        parts.append(the_task.loss(outputs.double(), labels))
    return Scores(rows.ids, np.asarray(torch.cat(parts).numpy(), dtype=np.float64), "loss", precision_option())
