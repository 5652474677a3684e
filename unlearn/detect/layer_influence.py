"""Self-influence and harm layer by layer: the curvature is block-diagonal, so the score is a sum over layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from unlearn.curvature import Curvature, layer_gradients
from unlearn.curvature.taps import TAP_BATCH
from unlearn.data import DEFAULT_BATCH, as_rows
from unlearn.detect.damped_curvature import damped_curvature
from unlearn.detect.damped_solver import FIT_EPOCHS
from unlearn.detect.harm import gradient_products, mean_gradient
from unlearn.detect.layer_scores import LayerScores
from unlearn.tasks import Task, get_task


def layer_self_influence(
    model: nn.Module,
    data: Any,
    *,
    curvature: Curvature | None = None,
    damping: float | None = None,
    weight_decay: float = 0.0,
    task: str | Task = "classification",
    batch_size: int = TAP_BATCH,
) -> LayerScores:
    """Return what each layer adds to :func:`unlearn.detect.self_influence`, at the same cost.

    The total is the score, bit for bit. No part is negative.

    Args:
        model: left as found; run in evaluation mode.
        data: the rows, with the labels to be judged. See :func:`unlearn.data.as_rows`.
        curvature: G of this model's weights; fitted on the rows if None (EK-FAC, one sampled label for each row).
        damping: d, the same for all layers; a tenth of the curvature's mean eigenvalue if None.
        weight_decay: w of the training objective; a coefficient of ``||theta||^2 / 2``.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time; changes time and memory, not the result.

    Raises:
        StaleCurvatureError: the curvature belongs to other weights or another task.
        InputError: a label outside the model's classes, or a bad option.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    >>> table = layer_self_influence(model, (torch.eye(2), torch.tensor([0, 1])))
    >>> table.layers, table.values.shape, bool((table.values >= 0).all())
    (('0', '2'), (2, 2), True)
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
    blocks = damped.curvature.blocks
    forms = damped.curvature.per_layer(lambda block: block.quadratic_form(damped.added))
    values = torch.zeros(len(rows), len(blocks), dtype=torch.float64)
    for positions, gradients in layer_gradients(model, rows, the_task, damped.curvature.layers, batch_size):
        for column, name in enumerate(blocks):
            values[positions, column] = forms[name](*gradients[name]).double().cpu()
    options = {**damped.options, "cost_epochs": 1 + (0 if curvature else FIT_EPOCHS["ekfac"])}
    return LayerScores(rows.ids, tuple(blocks), values.numpy(), "self-influence", options)


def layer_harm(
    model: nn.Module,
    data: Any,
    trusted: Any,
    *,
    curvature: Curvature | None = None,
    damping: float | None = None,
    weight_decay: float = 0.0,
    task: str | Task = "classification",
    batch_size: int = DEFAULT_BATCH,
) -> LayerScores:
    """Return what each layer adds to :func:`unlearn.detect.harm`, at the same cost: which layers carry the harm.

    A part is positive where the row's gradient in that layer raises the trusted rows' loss.

    Args:
        model: left as found; run in evaluation mode.
        data: the training rows, with their given labels. See :func:`unlearn.data.as_rows`.
        trusted: rows with right labels that were not trained on.
        curvature: G of this model's weights; fitted on ``data`` if None (EK-FAC, one sampled label for each row).
        damping: d, the same for all layers; a tenth of the curvature's mean eigenvalue if None.
        weight_decay: w of the training objective; a coefficient of ``||theta||^2 / 2``.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time; changes time and memory, not the result.

    Raises:
        StaleCurvatureError: the curvature belongs to other weights or another task.
        InputError: a label outside the model's classes, or a bad option.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    >>> table = layer_harm(model, (torch.eye(2), torch.tensor([0, 1])), (torch.eye(2), torch.tensor([1, 0])))
    >>> table.of_layers().keys(), bool(table.total().values.sum() > 0)
    (dict_keys(['0', '2']), True)
    """
    rows, trusted_rows, the_task = as_rows(data), as_rows(trusted), get_task(task)
    damped = damped_curvature(
        model,
        rows,
        curvature=curvature,
        damping=damping,
        weight_decay=weight_decay,
        task=the_task,
        batch_size=batch_size,
    )
    layers = damped.curvature.layers
    gradient = mean_gradient(model, trusted_rows, the_task, damped.curvature.covered, batch_size)
    pull = damped.curvature.solve(gradient, damping=damped.added)
    values = torch.zeros(len(rows), len(layers), dtype=torch.float64)
    for positions, parts in gradient_products(model, rows, the_task, layers, pull, batch_size):
        for column, layer in enumerate(layers):
            values[positions, column] = -parts[layer.name]
    cost = 1 + len(trusted_rows) / len(rows) + (0 if curvature else FIT_EPOCHS["ekfac"])
    options = {"trusted_rows": len(trusted_rows), **damped.options, "cost_epochs": cost}
    return LayerScores(rows.ids, tuple(layer.name for layer in layers), values.numpy(), "harm", options)
