"""The unrolled edit, corrected by the exact Gauss-Newton matrix.

To the curvature that it was unrolled with, the change D is the answer to a source s = (c K + w + d) D: what the changed
rows pushed, as far as it is not forgotten within the horizon 1 / d. The corrected change is the exact matrix's answer
to the same source, (G + w + d) D' = s. It takes back the overshoot along directions in which the layers of a row act
together, which K, block by block, does not see. A few conjugate-gradient iterations from D, preconditioned by K.
"""

from __future__ import annotations

from torch import nn

from unlearn.curvature import Curvature, Vector, conjugate_gradient, gauss_newton
from unlearn.curvature.vectors import add_scaled
from unlearn.data import Rows
from unlearn.repair.objective import Damping, mean_damping, regularised
from unlearn.tasks import Task

ITERATIONS = 3


def corrected(
    change: Vector,
    model: nn.Module,
    rows: Rows,
    task: Task,
    curvature: Curvature,
    *,
    scale: float,
    weight_decay: float,
    damping: Damping,
    iterations: int = ITERATIONS,
) -> tuple[Vector, int]:
    """Return the corrected change, and what it cost in row passes.

    Args:
        change: D, of the covered parameters.
        model: at the weights that D is added to; not changed.
        rows: a sample of the changed data, which G is the mean over.
        task: the task.
        curvature: K.
        scale: c, what K's eigenvalues were taken times.
        weight_decay: w.
        damping: d, 2 / T of the training up to these weights, or Adam's metric (math.md 3).
        iterations: most of conjugate gradients.

    >>> import torch
    >>> from unlearn.curvature import fit_curvature
    >>> from unlearn.tasks import get_task
    >>> model, data = nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1]))
    >>> rows, task = Rows.from_tensors(*data), get_task("classification")
    >>> D = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    >>> found, cost = corrected(
    ...     D, model, rows, task, fit_curvature(model, rows), scale=1.0, weight_decay=0.0, damping=0.1
    ... )
    >>> sorted(found), cost > 0
    (['bias', 'weight'], True)
    """
    operator = gauss_newton(model, rows, task=task, parameters=list(change))

    def product(v: Vector) -> Vector:
        return add_scaled(operator.matvec(v), 1.0, regularised(v, weight_decay, damping))

    known, more = curvature.matvec(change), regularised(change, weight_decay, damping)
    rest = {name: scale * known[name] + more[name] - part for name, part in product(change).items()}
    number = weight_decay + mean_damping(damping, change)
    result = conjugate_gradient(
        product,
        rest,
        preconditioner=lambda r: curvature.solve(r, damping=number),
        iterations=iterations,
        tolerance=1e-3,
    )
    return add_scaled(change, 1.0, result.solution), operator.cost
