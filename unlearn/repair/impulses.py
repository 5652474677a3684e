"""What the changed rows pushed in each step of a segment: their gradients, at the steps at which training saw them.

In step t the loss of the edited training is the mean over the rows left in the batch, so its gradient differs from the
recorded one by minus

    p_t = (1/left_t) sum over changed rows i in the batch of (gradient at the old label - gradient at the new one)

(nothing for the new label of a removed row). The rest of the batch keeps its mean: that m removed rows also raise the
weight of the others by m / left is left out. Gradients are taken once a segment, half-way through it.

Axes: k bin of steps, b row, g group, t position, i inputs, o outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unlearn.curvature import Curvature
from unlearn.curvature.per_sample import layer_gradients
from unlearn.data import Rows
from unlearn.repair.changes import Changes
from unlearn.repair.trajectory import Segment
from unlearn.tasks import Task
from unlearn.training.order import EMPTY, BatchOrder

Blocks = dict[str, Tensor]


def bins_of(segment: Segment, most: int) -> Tensor:
    """Return the bin of each step of a segment, (steps,): at most ``most`` runs of equal length, but for the first.

    >>> bins_of(Segment(0, 5), 2).tolist(), bins_of(Segment(0, 3), 8).tolist()
    ([0, 0, 1, 1, 1], [0, 1, 2])
    """
    steps = segment.stop - segment.start
    width = -(-steps // most)
    bins = -(-steps // width)
    return bins - 1 - torch.arange(steps - 1, -1, -1) // width


def impulses(
    model: nn.Module,
    curvature: Curvature,
    data: Rows,
    changes: Changes,
    task: Task,
    order: BatchOrder,
    segment: Segment,
    bins: Tensor,
) -> list[Blocks]:
    """Return p of each bin of steps in the curvature's eigenbases: for each bin the sum over its steps.

    Args:
        model: at the weights that stand for the segment.
        curvature: there; of its bases only.
        data: rows before the change.
        changes: the change.
        task: the task.
        order: recorded row order.
        segment: which steps.
        bins: of :func:`bins_of`.

    Returns:
        For each bin, rotated blocks (g, o, i) by layer name.
    """
    left = _rows_left(order, data, changes, segment)
    count = int(bins.max()) + 1
    found = [
        {name: torch.zeros_like(block.eigenvalues) for name, block in curvature.blocks.items()} for _ in range(count)
    ]

    def add(rows: Rows, sign: float) -> None:
        weights = sign * _visit_weights(order, rows, segment, bins, left)
        for positions, gradients in layer_gradients(model, rows, task, curvature.layers):
            for k, weight in enumerate(weights[:, positions]):
                seen = weight.nonzero().squeeze(1)
                for name, (a, d) in gradients.items() if len(seen) else ():
                    scale = weight[seen].to(d)[None, :, None, None]
                    basis, dtype = curvature.blocks[name].basis, found[k][name].dtype
                    found[k][name] += basis.outer_sum(a[:, seen].to(dtype), (d[:, seen] * scale).to(dtype))

    add(data.only(changes.ids), 1.0)
    if changes.relabelled:
        add(data.only(changes.relabelled).relabelled(changes.relabelled), -1.0)
    return found


def _rows_left(order: BatchOrder, data: Rows, changes: Changes, segment: Segment) -> Tensor:
    """Return how many rows of each step the changed data still has, (steps,); at least 1."""
    steps = order.positions[segment.start : segment.stop]
    here = BatchOrder(order.ids, steps)
    left = (steps != EMPTY).sum(1)
    if changes.removed:
        left = left - (here.on(data.only(changes.removed)) != EMPTY).sum(1)
    return left.clamp(min=1)


def _visit_weights(order: BatchOrder, rows: Rows, segment: Segment, bins: Tensor, left: Tensor) -> Tensor:
    """Return for each bin and row the sum of 1 / left over the steps that saw the row, (k, b), in float64."""
    seen = BatchOrder(order.ids, order.positions[segment.start : segment.stop]).on(rows)
    step, place = (seen != EMPTY).nonzero(as_tuple=True)
    weights = torch.zeros(int(bins.max()) + 1, len(rows), dtype=torch.float64)
    weights.index_put_((bins[step], seen[step, place]), 1 / left[step].double(), accumulate=True)
    return weights
