"""Newton steps on the edited objective: conjugate gradients on the exact Gauss-Newton matrix, EK-FAC preconditioned.

A step is taken at full length if the objective falls by a fair part of what the quadratic model promised (on 20-row
edits a length that minimises the objective along the step landed farther from retraining than the full one). Else
shorter lengths are tried, and after ``REFUSALS`` of them the weights stay as they were.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from unlearn.curvature import Curvature, GaussNewton, Vector, conjugate_gradient
from unlearn.curvature.vectors import add_scaled, norm
from unlearn.precision import type_of_passes
from unlearn.repair.objective import EditedObjective, mean_damping

FAIR = 0.1
REFUSALS = 6


@dataclass(frozen=True)
class Step:
    """Numbers of one Newton step.

    Attributes:
        damping: d, as a number (the mean entry, for a metric).
        weight_decay: w.
        iterations: of conjugate gradients.
        residual: relative residual of the solve.
        breakdown: why the solve stopped early, or None.
        predicted: change of E by the quadratic model, at the length taken.
        actual: change of E.
        length: factor of the step taken: 1, 1/2, ...; 0 if not accepted.
        accepted: whether the weights moved.
        gradient_norm: of E before the step.
        step_norm: of the step taken.
        cost: rows-passes: forward 1, backward 2, product 4 for each row.
    """

    damping: float
    weight_decay: float
    iterations: int
    residual: float
    breakdown: str | None
    predicted: float
    actual: float
    length: float
    accepted: bool
    gradient_norm: float
    step_norm: float
    cost: int

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON-able data."""
        return asdict(self)


def newton_steps(
    objective: EditedObjective,
    curvature: Curvature,
    *,
    steps: int = 1,
    iterations: int = 5,
    tolerance: float = 1e-2,
) -> tuple[Vector, list[Step]]:
    """Take Newton steps from theta_0.

    Args:
        objective: E.
        curvature: the preconditioner, (curvature + w + d)^-1.
        steps: most steps.
        iterations: most conjugate-gradient iterations of a step.
        tolerance: relative residual at which a solve stops.

    Returns:
        The last accepted weights and the numbers of every step. A step whose promised fall is below the rounding of E
        is taken unmeasured, with the promise as its change, and is the last.
    """
    weights = objective.start
    taken: list[Step] = []
    damping = mean_damping(objective.damping, objective.names)
    for k in range(steps):
        before = objective.cost
        value, gradient = objective.at_start() if k == 0 else objective.value_and_gradient(weights)
        size = norm(gradient)
        if size == 0:
            break
        if k and not (math.isfinite(size) and math.isfinite(value)):
            taken.append(_refused(objective, damping, objective.cost - before, "E or its gradient is not finite here"))
            break
        there = with_weights(objective.model, weights)
        operator = GaussNewton(there, objective.rows, objective.task, objective.names, copied=False)

        def product(v: Vector, operator: GaussNewton = operator) -> Vector:
            return objective.add_regularised(operator.matvec(v), v)

        result = conjugate_gradient(  # for the gradient itself: of the step, every number of it is the negative
            product,
            gradient,
            preconditioner=lambda r: curvature.solve(r, damping=objective.weight_decay + damping),
            iterations=iterations,
            tolerance=tolerance,
            overwrite_rhs=True,
        )
        objective.cost += operator.cost
        del operator, there, product, gradient  # which is overwritten
        step = {name: part.neg_() for name, part in result.solution.items()}
        slope = -result.projection
        measurable = not 0 < -slope <= _rounding(weights, value)
        if measurable:
            length, actual = _line_search(objective, weights, step, value, slope)
        else:
            length, actual = 1.0, 0.5 * slope
        taken.append(
            Step(
                damping=damping,
                weight_decay=objective.weight_decay,
                iterations=result.iterations,
                residual=result.residuals[-1],
                breakdown=result.breakdown,
                predicted=slope * (length - 0.5 * length**2),
                actual=actual,
                length=length,
                accepted=length > 0,
                gradient_norm=size,
                step_norm=length * norm(step),
                cost=objective.cost - before,
            )
        )
        if length == 0:
            break
        weights = add_scaled(weights, length, step)
        if not measurable:
            break
    return weights, taken


def _refused(objective: EditedObjective, damping: float, cost: int, why: str) -> Step:
    """Return the numbers of a step that could not be tried."""
    return Step(
        damping=damping,
        weight_decay=objective.weight_decay,
        iterations=0,
        residual=1.0,
        breakdown=why,
        predicted=0.0,
        actual=0.0,
        length=0.0,
        accepted=False,
        gradient_norm=0.0,
        step_norm=0.0,
        cost=cost,
    )


def _line_search(
    objective: EditedObjective, weights: Vector, step: Vector, value: float, slope: float
) -> tuple[float, float]:
    """Return the first length at which E falls by ``FAIR`` of the promise, and the change; length 0 for none.

    Lengths are tried from 1; each next one is the minimum of the parabola through E, its slope and the last try.
    """
    length = 1.0
    for _ in range(REFUSALS):
        if not slope < 0:
            break
        change = objective.value(add_scaled(weights, length, step)) - value
        if math.isfinite(change) and change <= FAIR * slope * (length - 0.5 * length**2):
            return length, change
        length = _parabola_minimum(slope, length, change)
    return 0.0, 0.0


def _rounding(weights: Vector, value: float) -> float:
    """Return how large the rounding of a change of E may be; log-probabilities, its terms, are of order 1."""
    dtype = type_of_passes() or next(iter(weights.values())).dtype
    return torch.finfo(dtype).eps * max(1.0, 10 * abs(value))


def _parabola_minimum(slope: float, length: float, change: float) -> float:
    """Return where the parabola with this slope at 0 and this change at ``length`` is lowest: 0.1 to 0.5 of ``length``.

    >>> _parabola_minimum(-1.0, 1.0, 1.0), _parabola_minimum(-1.0, 1.0, 0.0), _parabola_minimum(-1.0, 1.0, math.nan)
    (0.25, 0.5, 0.1)
    """
    if not math.isfinite(change):
        return 0.1 * length
    bend = (change - slope * length) / length**2
    return min(max(-slope / (2 * bend), 0.1 * length), 0.5 * length) if bend > 0 else 0.5 * length


def with_weights(model: nn.Module, weights: Vector) -> nn.Module:
    """Return the model itself at its own weights, or a copy at other ones."""
    own = dict(model.named_parameters())
    if all(torch.equal(own[name], value) for name, value in weights.items()):
        return model
    return load_weights(model, weights)


def load_weights(model: nn.Module, weights: Vector) -> nn.Module:
    """Return a copy of the model with these weights in place of its own."""
    moved = copy.deepcopy(model)
    parameters = dict(moved.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    return moved
