"""Harm: the influence of each training row on the mean loss of rows that are trusted.

Axes: g group, b row, t position, i inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.curvature import Curvature, Layer, Solver, Vector, find_layers, layer_gradients, loss_gradient
from unlearn.curvature.make_solver import SolverKind
from unlearn.data import DEFAULT_BATCH, Rows, as_rows
from unlearn.detect.damped_solver import damped_solver
from unlearn.detect.scores import Scores
from unlearn.ranks import sum_over_ranks
from unlearn.tasks import Task, get_task


def harm(
    model: nn.Module,
    data: Any,
    trusted: Any,
    *,
    curvature: Curvature | None = None,
    solver: SolverKind | Solver | None = None,
    damping: float | None = None,
    weight_decay: float = 0.0,
    task: str | Task = "classification",
    batch_size: int = DEFAULT_BATCH,
) -> Scores:
    """Return - g_q^T (G + w + d)^-1 g_z of each row z, with g_q the mean gradient of the trusted rows.

    It is the mean over the trusted rows of :func:`unlearn.detect.influence` with **one** solve and one pass, so any
    solver is affordable. **Positive: the row is harmful**: giving it more weight raises the mean loss of the trusted
    rows, and removing it from n rows changes that loss by about minus the score / n (arXiv 1703.04730, eq. 2).

    The labels of the trusted rows must be right. The rows should be drawn like those that the model will meet, and not
    be training rows: a row on both sides helps itself, whatever its label.

    Args:
        model: left as found; run in evaluation mode.
        data: the training rows z, with their given labels. See :func:`unlearn.data.as_rows`.
        trusted: rows with right labels that were not trained on.
        curvature: G of this model's weights; fitted on ``data`` if None (EK-FAC, one sampled label for each row).
        solver: in place of a curvature, a solver or the name of one; see :func:`unlearn.curvature.make_solver`.
        damping: d; a tenth of the curvature's mean eigenvalue if None. Other solvers need a number.
        weight_decay: w of the training objective; a coefficient of ``||theta||^2 / 2``.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time; changes time and memory, not the result.

    Returns:
        Scores of the method ``harm``, whose options hold ``trusted_rows``, ``kind``, ``damping``, ``damping_share``,
        ``weight_decay`` and ``cost_epochs``. Parameters that the curvature does not cover do not count.

    Raises:
        StaleCurvatureError: the curvature belongs to other weights or another task.
        ConvergenceError: an iterative solver ended short of its tolerance.
        InputError: a label outside the model's classes, a bad option, or a row whose score is not finite.

    >>> model, x = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> data = (x, torch.tensor([0, 1, 1]))  # row 1 has a wrong label
    >>> scores = harm(model, data, (torch.eye(2), torch.tensor([0, 1])))
    >>> scores.top(1)[0][0], (scores.values > 0).tolist()
    ('1', [False, True, False])
    """
    rows, trusted_rows, the_task = as_rows(data), as_rows(trusted), get_task(task)
    damped = damped_solver(
        model,
        rows,
        curvature=curvature,
        solver=solver,
        damping=damping,
        weight_decay=weight_decay,
        task=the_task,
        batch_size=batch_size,
    )
    covered = None if damped.curvature is None else damped.curvature.covered
    pull = damped.solver.solve(mean_gradient(model, trusted_rows, the_task, covered, batch_size), damping=damped.added)
    values = torch.zeros(len(rows), dtype=torch.float64)
    layers = find_layers(model, rows).layers if damped.curvature is None else damped.curvature.layers
    for positions, parts in gradient_products(model, rows, the_task, layers, pull, batch_size, shared=True):
        values[positions] = -torch.stack(list(parts.values())).sum(0)
    sum_over_ranks(values)
    options = {
        "trusted_rows": len(trusted_rows),
        **damped.options,
        "cost_epochs": 1 + len(trusted_rows) / len(rows) + damped.epochs(len(rows)),
    }
    return Scores(rows.ids, values.numpy(), "harm", options)


def mean_gradient(
    model: nn.Module, rows: Rows, task: Task, parameters: Sequence[str] | None, batch_size: int
) -> Vector:
    """Return the gradient of the mean loss of rows, in the named parameters or all that are trained."""
    total = loss_gradient(model, rows, task=task, parameters=parameters, batch_size=batch_size)
    return {name: part / len(rows) for name, part in total.items()}


def gradient_products(
    model: nn.Module,
    rows: Rows,
    task: Task,
    layers: Sequence[Layer],
    vector: Vector,
    batch_size: int,
    *,
    shared: bool = False,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield positions, and by layer the inner products of a vector with each row's gradient, (b,) in float64."""
    blocks = {layer.name: layer.block(vector) for layer in layers}
    for positions, gradients in layer_gradients(model, rows, task, layers, batch_size, shared=shared):
        yield positions, {name: _products(blocks[name], *pair).double().cpu() for name, pair in gradients.items()}


def _products(block: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """Return sum_t d_t^T V a_t of a block V (g, o, i) with each sample, shape (b,)."""
    a, d = a.to(block.dtype), d.to(block.dtype)
    along = (a.flatten(1, 2) @ block.mT).reshape(d.shape)
    return (along * d).sum((2, 3), dtype=torch.float64).sum(0)
