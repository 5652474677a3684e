"""The most helpful and the most harmful rows of each query, without the whole matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unlearn.curvature import Curvature
from unlearn.data import DEFAULT_BATCH
from unlearn.data.row_ids import text_order
from unlearn.detect.influence import DEFAULT_QUERY_BATCH, InfluencePair
from unlearn.detect.relative import Relative
from unlearn.errors import InputError
from unlearn.tasks import Task


@dataclass(frozen=True)
class TopInfluence:
    """The ends of each query's row of the influence matrix.

    Attributes:
        queries: ids of the queries, (q,).
        harmful: ids of the k rows of largest influence on each query, the most harmful first.
        harmful_values: their influences, (q, k). Values of 0 and below are no harm: fewer than k rows harm the query.
        helpful: ids of the k rows of smallest influence, the most helpful first.
        helpful_values: their influences, (q, k), negative where a row helps.
    """

    queries: tuple[str, ...]
    harmful: tuple[tuple[str, ...], ...]
    harmful_values: Tensor
    helpful: tuple[tuple[str, ...], ...]
    helpful_values: Tensor


def top_influence(
    model: nn.Module,
    data: Any,
    queries: Any,
    k: int,
    *,
    curvature: Curvature | None = None,
    relative: Relative | None = None,
    damping: float | None = None,
    weight_decay: float = 0.0,
    task: str | Task = "classification",
    batch_size: int = DEFAULT_BATCH,
    query_batch: int = DEFAULT_QUERY_BATCH,
) -> TopInfluence:
    """Return the k most harmful and the k most helpful rows of each query.

    They are those of :func:`unlearn.detect.influence` with the same options, equal values in the order of the row ids,
    and no more than ``query_batch`` by ``batch_size + 2 k`` influences are held at a time. The cost is the same: a pass
    over the rows (one training epoch) for each batch of queries.

    Args:
        model: left as found; run in evaluation mode.
        data: the training rows, with their given labels. See :func:`unlearn.data.as_rows`.
        queries: the rows whose loss is asked about.
        k: rows at each end, from 1 to their number.
        curvature: G of this model's weights; fitted on ``data`` if None (EK-FAC, one sampled label for each row).
        relative: as in :func:`unlearn.detect.influence`.
        damping: d; a tenth of the curvature's mean eigenvalue if None.
        weight_decay: w of the training objective; a coefficient of ``||theta||^2 / 2``.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time.
        query_batch: queries at a time.

    Raises:
        StaleCurvatureError: the curvature belongs to other weights or another task.
        InputError: k outside its range, a label outside the model's classes, a bad option, or an influence that is not
            finite.

    >>> model, x = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> data = (x, torch.tensor([0, 1, 1]))  # row 1 has a wrong label
    >>> top = top_influence(model, data, (x[:1], torch.tensor([0])), k=1)
    >>> top.harmful, top.helpful
    ((('1',),), (('0',),))
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
    if not 1 <= k <= len(pair.rows):
        raise InputError(f"k is {k} and there are {len(pair.rows)} rows; give a number from 1 to {len(pair.rows)}")
    by_id = text_order(pair.rows.ids)
    rank = torch.from_numpy(np.argsort(by_id))
    ends: list[list[_Largest]] = [[], []]
    for some_queries, tiles in pair.tiles():
        harmful, helpful = (_Largest(len(some_queries), k, pair.dtype) for _ in range(2))
        for positions, tile in tiles:
            harmful.add(tile, rank[positions])
            helpful.add(-tile, rank[positions])
        ends[0].append(harmful)
        ends[1].append(helpful)
    (harmful_ids, harmful_values), (helpful_ids, helpful_values) = (
        (
            tuple(tuple(pair.rows.ids[by_id[i]] for i in row) for end in side for row in end.ranks.tolist()),
            torch.cat([end.values for end in side]),
        )
        for side in ends
    )
    return TopInfluence(tuple(pair.queries.ids), harmful_ids, harmful_values, helpful_ids, -helpful_values)


class _Largest:
    """The k largest of values that come in batches, for each query; of equal values those of the lowest rank."""

    def __init__(self, queries: int, k: int, dtype: torch.dtype) -> None:
        self._k = k
        self.values = torch.empty(queries, 0, dtype=dtype)
        self.ranks = torch.empty(queries, 0, dtype=torch.long)

    def add(self, values: Tensor, ranks: Tensor) -> None:
        """Take values (q, b) of the rows of these ranks (b,)."""
        values = torch.cat([self.values, values], dim=1)
        ranks = torch.cat([self.ranks, ranks.expand(len(values), -1)], dim=1)
        by_rank = ranks.argsort(dim=1)
        values, ranks = values.gather(1, by_rank), ranks.gather(1, by_rank)
        best = values.sort(dim=1, descending=True, stable=True).indices[:, : self._k]
        self.values, self.ranks = values.gather(1, best), ranks.gather(1, best)
