"""Self-influence: how much a row's own loss moves when the row gets more weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from unlearn.curvature import Curvature, layer_gradients
from unlearn.curvature.taps import TAP_BATCH
from unlearn.data import as_rows
from unlearn.detect.damped_curvature import damped_curvature
from unlearn.detect.scores import Scores
from unlearn.tasks import Task, get_task


def self_influence(
    model: nn.Module,
    data: Any,
    *,
    curvature: Curvature | None = None,
    damping: float | None = None,
    weight_decay: float = 0.0,
    task: str | Task = "classification",
    batch_size: int = TAP_BATCH,
) -> Scores:
    """Return g^T (G + w + d)^-1 g of each row, with g the gradient of its loss at its given label.

    It is minus the influence of a row on itself (arXiv 1703.04730, eq. 2), with EK-FAC for G as in
    arXiv 2308.03296, so it is never negative and large where the model had to move far to fit a row.

    Args:
        model: left as found; run in evaluation mode.
        data: the rows, with the labels to be judged. See :func:`unlearn.data.as_rows`.
        curvature: G of this model's weights; fitted on the rows if None (EK-FAC, one sampled label for each row).
        damping: d; a tenth of the curvature's mean eigenvalue if None.
        weight_decay: w of the training objective; a coefficient of ``||theta||^2 / 2``.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time; changes time and memory, not the result.

    Returns:
        Scores whose options hold ``kind``, ``damping``, ``damping_share`` (of the mean eigenvalue) and
        ``weight_decay``. Parameters that the curvature does not cover do not count.

    Raises:
        StaleCurvatureError: the curvature belongs to other weights or another task.
        InputError: a label outside the model's classes, a bad option, or a row whose score is not finite.

    >>> model, inputs = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> _ = nn.init.eye_(model.weight)
    >>> scores = self_influence(model, (inputs, torch.tensor([0, 1, 1])))  # row 1 has a wrong label
    >>> scores.top(1)[0][0]
    '1'
    """
    rows, the_task = as_rows(data), get_task(task)
    damped = damped_curvature(
        model,
        rows,
        curvature=curvature,
        damping=damping,
        weight_decay=weight_decay,
        task=the_task,
        batch_size=batch_size,
    )
    forms = {name: block.quadratic_form(damped.added) for name, block in damped.curvature.blocks.items()}
    values = torch.zeros(len(rows), dtype=torch.float64)
    for positions, gradients in layer_gradients(model, rows, the_task, damped.curvature.layers, batch_size):
        for name, (a, d) in gradients.items():
            values[positions] += forms[name](a, d).double().cpu()
    return Scores(rows.ids, values.numpy(), "self-influence", damped.options)
