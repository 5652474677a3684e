"""Influence of training rows on query rows.

Axes: g group, b row, q query, t position, i inputs, o outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unlearn.curvature import Basis, Block, Curvature, layer_gradients
from unlearn.data import DEFAULT_BATCH, as_rows
from unlearn.detect.damped_curvature import damped_curvature
from unlearn.errors import InputError
from unlearn.tasks import Task, get_task

DEFAULT_QUERY_BATCH = 32


def influence(
    model: nn.Module,
    data: Any,
    queries: Any,
    *,
    curvature: Curvature | None = None,
    damping: float | None = None,
    weight_decay: float = 0.0,
    task: str | Task = "classification",
    batch_size: int = DEFAULT_BATCH,
    query_batch: int = DEFAULT_QUERY_BATCH,
) -> Tensor:
    """Return I(z, q) = - g_q^T (G + w + d)^-1 g_z for each query and row (arXiv 1703.04730, eq. 2).

    **Positive: the row is harmful to the query.** Giving it more weight raises the query's loss, and removing it from
    n rows changes that loss by about -I / n. Negative: the row helps. (kronfluence has the opposite sign.)

    Args:
        model: left as found; run in evaluation mode.
        data: the training rows z, with their given labels. See :func:`unlearn.data.as_rows`.
        queries: the rows q whose loss is asked about.
        curvature: G of this model's weights; fitted on ``data`` if None (EK-FAC, one sampled label for each row).
        damping: d; a tenth of the curvature's mean eigenvalue if None.
        weight_decay: w of the training objective; a coefficient of ``||theta||^2 / 2``.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time; changes time and memory, not the result.
        query_batch: queries at a time. Each takes the memory of one gradient, and each batch of them one pass over
            the rows.

    Returns:
        Shape (queries, rows), in the order of both data, on the CPU and in the type of the curvature. Parameters that
        the curvature does not cover do not count.

    Raises:
        StaleCurvatureError: the curvature belongs to other weights or another task.
        InputError: a label outside the model's classes, or a bad option.

    >>> model, x = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> data = (x, torch.tensor([0, 1, 1]))  # row 1 has a wrong label
    >>> influence(model, data, (x[:1], torch.tensor([0]))).sign().tolist()
    [[-1.0, 1.0, 0.0]]
    """
    rows, query_rows, the_task = as_rows(data), as_rows(queries), get_task(task)
    if query_batch < 1:
        raise InputError(f"query_batch is {query_batch}; give at least 1")
    damped = damped_curvature(
        model,
        rows,
        curvature=curvature,
        damping=damping,
        weight_decay=weight_decay,
        task=the_task,
        batch_size=batch_size,
    )
    blocks, layers = damped.curvature.blocks, damped.curvature.layers
    dtype = next(iter(blocks.values())).eigenvalues.dtype
    matrix = torch.zeros(len(query_rows), len(rows), dtype=dtype)
    for some_queries, query_gradients in layer_gradients(model, query_rows, the_task, layers, query_batch):
        solved = {name: _solve(blocks[name], *pair, damped.added) for name, pair in query_gradients.items()}
        for positions, gradients in layer_gradients(model, rows, the_task, layers, batch_size):
            parts = [_products(solved[name], *pair).cpu() for name, pair in gradients.items()]
            matrix[some_queries[:, None], positions] = -torch.stack(parts).sum(0).to(dtype)
    return matrix


def _solve(block: Block, a: Tensor, d: Tensor, damping: float) -> Tensor:
    """Return (curvature + damping)^-1 times each sample's gradient, shape (g, q, o, i)."""
    eigenvalues = (block.eigenvalues + damping)[:, None]
    rotated = block.basis.gradients(a.to(eigenvalues.dtype), d.to(eigenvalues.dtype))
    return torch.cat([block.basis.rotate_back(part / eigenvalues) for part in rotated], dim=1)


def _products(vectors: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """Return the inner products of vectors (g, q, o, i) with the gradients of samples, shape (q, b).

    With one position it is d^T V a, and the samples' gradients are never formed.
    """
    a, d = a.to(vectors.dtype), d.to(vectors.dtype)
    if a.shape[2] == 1:
        g, q, o, _ = vectors.shape
        half = (vectors.flatten(1, 2) @ a.squeeze(2).mT).reshape(g, q, o, -1)
        return (half * d.squeeze(2).mT[:, None]).sum((0, 2))
    flat = vectors.flatten(2)
    parts = [(flat @ part.flatten(2).mT).sum(0) for part in Basis().gradients(a, d)]
    return torch.cat(parts, dim=1)
