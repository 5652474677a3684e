"""Influence of training rows on query rows.

Axes: g group, b row, q query, t position, i inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor, nn

from unlearn.curvature import Basis, Block, Curvature, layer_gradients
from unlearn.data import DEFAULT_BATCH, Rows, as_rows
from unlearn.detect.damped_curvature import DampedCurvature, damped_curvature
from unlearn.detect.relative import Relative, divided, row_norms
from unlearn.errors import InputError, did_you_mean
from unlearn.ranks import sum_over_ranks
from unlearn.tasks import Task, get_task

DEFAULT_QUERY_BATCH = 32


def influence(
    model: nn.Module,
    data: Any,
    queries: Any,
    *,
    curvature: Curvature | None = None,
    relative: Relative | None = None,
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
        relative: divide each row's influences by the length of its gradient, and each query's by that of its own
            (``gradient``, arXiv 2201.10055), or by ||H^-1 g_z|| (``parameters``) or sqrt(g_z^T H^-1 g_z) (``loss``;
            theta- and l-RelatIF of arXiv 2003.11630, H = G + w + d), so that rows of large gradients are not the
            answer to every query. A row without gradient has 0.
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
        InputError: a label outside the model's classes, a bad option, or an influence that is not finite.

    >>> model, x = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> data = (x, torch.tensor([0, 1, 1]))  # row 1 has a wrong label
    >>> influence(model, data, (x[:1], torch.tensor([0]))).sign().tolist()
    [[-1.0, 1.0, 0.0]]
    """
    pair = InfluencePair.make(
        model,
        data,
        queries,
        curvature=curvature,
        relative=relative,
        damping=damping,
        weight_decay=weight_decay,
        task=task,
        batch_size=batch_size,
        query_batch=query_batch,
    )
    matrix = torch.zeros(len(pair.queries), len(pair.rows), dtype=pair.dtype)
    for some_queries, tiles in pair.tiles(shared=True):
        for positions, tile in tiles:
            matrix[some_queries[:, None], positions] = tile
    sum_over_ranks(matrix)
    return matrix


@dataclass(frozen=True)
class InfluencePair:
    """Rows, queries and the curvature between them: the influence matrix, a tile at a time."""

    model: nn.Module
    rows: Rows
    queries: Rows
    task: Task
    damped: DampedCurvature
    relative: Relative | None
    batch_size: int
    query_batch: int

    @classmethod
    def make(
        cls,
        model: nn.Module,
        data: Any,
        queries: Any,
        *,
        curvature: Curvature | None,
        relative: Relative | None,
        damping: float | None,
        weight_decay: float,
        task: str | Task,
        batch_size: int,
        query_batch: int,
    ) -> InfluencePair:
        """Return the pair, checked; see :func:`influence`."""
        rows, query_rows, the_task = as_rows(data), as_rows(queries), get_task(task)
        if query_batch < 1:
            raise InputError(f"query_batch is {query_batch}; give at least 1")
        if relative is not None and relative not in get_args(Relative):
            raise InputError(f"unknown relative {relative!r}; {did_you_mean(relative, get_args(Relative))}")
        damped = damped_curvature(
            model,
            rows,
            curvature=curvature,
            damping=damping,
            weight_decay=weight_decay,
            task=the_task,
            batch_size=batch_size,
        )
        return cls(model, rows, query_rows, the_task, damped, relative, batch_size, query_batch)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Type of the curvature, and of the influences."""
        return next(iter(self.damped.curvature.blocks.values())).eigenvalues.dtype

    def tiles(self, *, shared: bool = False) -> Iterator[tuple[Tensor, Iterator[tuple[Tensor, Tensor]]]]:
        """Yield (positions of some queries, (positions of some rows, their influences (q, b)) for all rows).

        Shared, only this rank's rows; the caller adds up.
        """
        blocks, layers = self.damped.curvature.blocks, self.damped.curvature.layers
        lengths = None
        if self.relative == "gradient":
            lengths = row_norms(self.damped.curvature, self.damped.added, "gradient")
        for some_queries, found in layer_gradients(self.model, self.queries, self.task, layers, self.query_batch):
            solved = {name: _solve(blocks[name], *pair, self.damped.added) for name, pair in found.items()}
            yield some_queries, self._row(some_queries, solved, None if lengths is None else lengths(found), shared)

    def _row(
        self, some_queries: Tensor, solved: dict[str, Tensor], lengths: Tensor | None, shared: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the tiles of some queries, whose solves these are."""
        curvature = self.damped.curvature
        norms = None if self.relative is None else row_norms(curvature, self.damped.added, self.relative)
        for positions, gradients in layer_gradients(
            self.model, self.rows, self.task, curvature.layers, self.batch_size, shared=shared
        ):
            parts = [_products(solved[name], *pair).cpu() for name, pair in gradients.items()]
            tile = -torch.stack(parts).sum(0).to(self.dtype)
            if norms is not None:
                tile = divided(tile, norms(gradients).to(self.dtype))
            if lengths is not None:
                tile = divided(tile, lengths[:, None].to(self.dtype))
            if not torch.isfinite(tile).all():
                query, row = (~torch.isfinite(tile)).nonzero()[0].tolist()
                raise InputError(
                    f"the influence of row {self.rows.ids[int(positions[row])]!r} on query "
                    f"{self.queries.ids[int(some_queries[query])]!r} is {float(tile[query, row])}; check their "
                    "inputs, or give more damping"
                )
            yield positions, tile


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
