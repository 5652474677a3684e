"""Steps on the edited objective in which only some units may move, and their neighbours (arXiv 2312.05586).

With r = -dE/dtheta, which is the right-hand side of math.md 3 at the first step, and H = G + w + d at the present
weights, a step is what :mod:`unlearn.curvature.restricted` makes of r: ``gif``, ``frozen``, ``projected``, ``full``; or
``second-order``, the full step with the term of :mod:`unlearn.repair.second_order`. A step is taken at the first of
``HALVINGS`` halved lengths at which E falls by ``FAIR`` of what its slope promises; the next step tries twice that
length first. Where a sample of rows stands for all, every step draws its own: the one sample of many steps would be
fitted, and the other rows forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from unlearn.curvature import Curvature, RestrictedStep, Vector, gauss_newton, restricted_step
from unlearn.curvature.restricted import Method
from unlearn.curvature.restricted_kfac import restricted_kfac_step
from unlearn.curvature.vectors import add_scaled, dot, norm
from unlearn.data import Rows
from unlearn.repair.newton import FAIR, Step, with_weights
from unlearn.repair.sampled_objective import SampledObjective
from unlearn.repair.second_order import change_of_hessian

HALVINGS = 12

EditMethod = Literal["gif", "frozen", "projected", "full", "second-order"]


class Solve(Protocol):
    """How H x = r is solved at some weights, and the data term of H."""

    def at(self, weights: Vector) -> None:
        """Move to these weights."""

    def step(self, right: Vector, method: Method) -> RestrictedStep:
        """Return the step for a right-hand side."""

    def matvec(self, vector: Vector) -> Vector:
        """Return G v."""


@dataclass
class ExactSolve:
    """Products with the exact Gauss-Newton matrix, renewed at every step.

    Attributes:
        objective: gives w and d; its cost grows.
        rows: whose mean loss G belongs to.
        selection: masks of what may move; None for all.
        tolerance: of LSMR and conjugate gradients.
        iterations: most of them.
    """

    objective: SampledObjective
    rows: Rows
    selection: Vector | None
    tolerance: float
    iterations: int

    def at(self, weights: Vector) -> None:
        """Move to these weights."""
        objective = self.objective
        model = with_weights(objective.model, weights)
        self._data_term = gauss_newton(model, self.rows, task=objective.task, parameters=objective.names)

    def step(self, right: Vector, method: Method) -> RestrictedStep:
        """Return the step for a right-hand side; the damping may be a metric, so it is inside the operator."""
        operator = _Regularised(self)
        selection = None if method == "full" else self.selection
        return restricted_step(
            operator, right, selection, method=method, tolerance=self.tolerance, iterations=self.iterations
        )

    def matvec(self, vector: Vector) -> Vector:
        """Return G v."""
        before = self._data_term.cost
        found = self._data_term.matvec(vector)
        self.objective.cost += self._data_term.cost - before
        return found


@dataclass
class _Regularised:
    solve: ExactSolve

    def matvec(self, vector: Vector) -> Vector:
        """Return (G + w + d) v."""
        return add_scaled(self.solve.matvec(vector), 1.0, self.solve.objective.regulariser(vector))


@dataclass
class KfacSolve:
    """The closed form on damped K-FAC factors, which stay those of theta_0.

    Attributes:
        curvature: fitted at theta_0.
        units: of each layer; None for all.
        damping: w + d.
    """

    curvature: Curvature
    units: dict[str, Tensor] | None
    damping: float

    def at(self, weights: Vector) -> None:
        """Stay."""

    def step(self, right: Vector, method: Method) -> RestrictedStep:
        """Return the step for a right-hand side."""
        units = None if method == "full" else self.units
        return restricted_kfac_step(self.curvature, right, units, damping=self.damping, method=method)

    def matvec(self, vector: Vector) -> Vector:
        """Return G v in the approximation."""
        return self.curvature.matvec(vector)


def restricted_steps(
    objective: SampledObjective, solve: Solve, *, method: EditMethod, steps: int, length: float, damping: float
) -> tuple[Vector, list[Step]]:
    """Take steps from theta_0 and return the last accepted weights and the numbers of every step.

    Args:
        objective: E.
        solve: of H x = r.
        method: what of the solution is taken.
        steps: most steps; one that is not accepted is the last.
        length: the longest tried, as a factor of the step; the first step starts with it.
        damping: d as a number, for the report.
    """
    weights, taken, first = objective.start, [], length
    for k in range(steps):
        before = objective.cost
        if k > 0 and objective.sampled:
            objective.draw(seed=k)
        value, gradient = objective.at_start() if k == 0 else objective.value_and_gradient(weights)
        size = norm(gradient)
        if size == 0:
            break
        found = _direction(objective, solve, weights, gradient, method)
        slope = dot(gradient, found.step)
        taken_length, actual = _backtrack(objective, weights, found.step, value, slope, first)
        taken.append(
            Step(
                damping=damping,
                weight_decay=objective.weight_decay,
                iterations=found.products,
                residual=found.residual,
                breakdown=None if slope < 0 else "the step does not lead down the objective",
                predicted=slope * taken_length,
                actual=actual,
                length=taken_length,
                accepted=taken_length > 0,
                gradient_norm=size,
                step_norm=taken_length * norm(found.step),
                cost=objective.cost - before,
            )
        )
        if taken_length == 0:
            break
        weights, first = add_scaled(weights, taken_length, found.step), min(length, 2 * taken_length)
    return weights, taken


def _direction(
    objective: SampledObjective, solve: Solve, weights: Vector, gradient: Vector, method: EditMethod
) -> RestrictedStep:
    right = {name: -part for name, part in gradient.items()}
    solve.at(weights)
    if method != "second-order":
        return solve.step(right, method)
    first = solve.step(right, "full")
    second = solve.step(change_of_hessian(objective, weights, solve, first.step), "full")
    return RestrictedStep(add_scaled(first.step, -1.0, second.step), first.products + second.products, first.residual)


def _backtrack(
    objective: SampledObjective, weights: Vector, step: Vector, value: float, slope: float, length: float
) -> tuple[float, float]:
    """Return the first length at which E falls by ``FAIR`` of half the slope, and the change; length 0 for none."""
    for _ in range(HALVINGS if slope < 0 else 0):
        change = objective.value(add_scaled(weights, length, step)) - value
        if math.isfinite(change) and change <= 0.5 * FAIR * slope * length:
            return length, change
        length /= 2
    return 0.0, 0.0
