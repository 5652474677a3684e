"""Steps that move selected weights only: GIF and its neighbours (arXiv 2312.05586).

With H the curvature with its damping, g a gradient and S the selected coordinates, the step is 0 outside S and there

    gif        argmin_x ||H[:, S] x - g||^2     the gradient that it causes on the frozen coordinates counts
    frozen     H[S, S]^-1 g_S                   as if the frozen coordinates did not exist
    projected  (H^-1 g)_S                       a part of the step that moves everything
    full       H^-1 g                           nothing is frozen

The four agree where S is everything, and only there in general. The damping is in H and the least squares has none of
its own. S is any set of coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor

from unlearn.curvature.conjugate_gradient import conjugate_gradient
from unlearn.curvature.curvature import Curvature, check_damping
from unlearn.curvature.vectors import Vector, add_scaled, norm, zeros_like
from unlearn.errors import ConvergenceError, InputError, did_you_mean

Method = Literal["gif", "frozen", "projected", "full"]
Selection = Mapping[str, Tensor]

_LSMR_FAILURES = {
    3: "the condition number passed its limit",
    6: "the columns are dependent to rounding",
    7: "the last iteration was reached",
}


class Operator(Protocol):
    """A symmetric matrix that is known by its products, such as a Curvature or a GaussNewton."""

    def matvec(self, vector: Vector) -> Vector:
        """Return the matrix times a vector."""


@dataclass(frozen=True)
class RestrictedStep:
    """A step and what it took.

    Attributes:
        step: keys and shapes of the vector; 0 outside the selection.
        products: products with the operator.
        residual: ||H step - g|| / ||g|| over all coordinates: the part of the gradient that the step does not cancel,
            with what it causes on the frozen ones. Among all steps in S that of ``gif`` has the least.
    """

    step: Vector
    products: int
    residual: float


def restricted_step(
    operator: Operator,
    vector: Vector,
    selection: Selection | None = None,
    *,
    damping: float = 0.0,
    method: Method = "gif",
    tolerance: float = 1e-6,
    iterations: int = 1000,
) -> RestrictedStep:
    """Return the step of the selected coordinates for a gradient; see :mod:`unlearn.curvature.restricted`.

    ``gif`` is LSMR (arXiv 1006.0758, two products an iteration), ``frozen`` conjugate gradients; ``projected`` and
    ``full`` are the own ``solve`` of a :class:`Curvature`, exact and without products, else conjugate gradients.

    Args:
        operator: G, any symmetric positive semidefinite operator: a Curvature, or an exact GaussNewton.
        vector: g. For a Curvature it has the covered parameters only.
        selection: a mask (bool, the parameter's shape) for each parameter that may move; parameters without one are
            frozen. None for ``full``. See :func:`unlearn.curvature.unit_selection` for whole units.
        damping: d of H = G + d; weight decay is not in G, so callers add it.
        method: ``gif``, ``frozen``, ``projected`` or ``full``.
        tolerance: of LSMR (its atol and btol) and of conjugate gradients (relative residual).
        iterations: most iterations of either.

    Raises:
        ConvergenceError: LSMR or conjugate gradients stopped short of the tolerance.
        InputError: an empty selection, a mask that does not fit, a bad option, or a vector that does not fit.

    >>> class Matrix:
    ...     def matvec(self, v):
    ...         return {"w": torch.tensor([[2.0, 1.0], [1.0, 3.0]]) @ v["w"]}
    >>> g, first = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([True, False])}
    >>> for method in ("gif", "frozen", "projected"):  # column (2, 1): 10 / 5, 3 / 2, and 1 of the solution (1, 1)
    ...     print(restricted_step(Matrix(), g, first, method=method).step["w"].round(decimals=4).tolist())
    [2.0, 0.0]
    [1.5, 0.0]
    [1.0, 0.0]
    """
    if method not in get_args(Method):
        raise InputError(f"unknown method {method!r}; {did_you_mean(method, get_args(Method))}")
    check_damping(damping)
    if not 0 <= tolerance < 1 or iterations < 1:
        raise InputError(
            f"tolerance is {tolerance} and iterations {iterations}; give a tolerance from 0 to below 1, and at least "
            "1 iteration"
        )
    if isinstance(operator, Curvature) and set(vector) != set(operator.covered):
        raise InputError(
            "the vector and the curvature differ in parameters; give the covered ones only (curvature.covered)"
        )
    size = norm(vector)
    if not math.isfinite(size):
        raise InputError("the vector has NaN or infinite values; check the rows whose gradient it is")
    mask = _mask(vector, selection, method)
    problem = _Problem(operator, vector, damping, tolerance, iterations)
    if size == 0:
        return RestrictedStep(zeros_like(vector), 0, 0.0)
    if method == "gif":
        step = problem.least_squares(mask)
    elif method == "frozen":
        step = problem.solve_within(mask)
    else:
        step = _masked(problem.solve(), mask)
    residual = norm(add_scaled(problem.product(step), -1.0, vector)) / size
    return RestrictedStep(step, problem.products, residual)


class _Problem:
    """H x = g with H = G + d, and the products spent on it."""

    def __init__(self, operator: Operator, vector: Vector, damping: float, tolerance: float, iterations: int) -> None:
        self._operator = operator
        self._vector = vector
        self._damping = damping
        self._tolerance = tolerance
        self._iterations = iterations
        self.products = 0

    def product(self, x: Vector) -> Vector:
        """Return H x."""
        self.products += 1
        return add_scaled(self._operator.matvec(x), self._damping, x)

    def least_squares(self, mask: Vector) -> Vector:
        """Return argmin_x ||H[:, S] x - g||, 0 outside S. H is symmetric: H[:, S]^T u is (H u)_S."""
        chosen = _flat(mask) > 0

        def scatter(x: npt.NDArray[np.float64]) -> Vector:
            whole = np.zeros(len(chosen))
            whole[chosen] = x.reshape(-1)
            return _unflat(whole, self._vector)

        columns = LinearOperator(
            (len(chosen), int(chosen.sum())),
            matvec=lambda x: _flat(self.product(scatter(x))),
            rmatvec=lambda u: _flat(self.product(_unflat(u.reshape(-1), self._vector)))[chosen],
            dtype=np.float64,
        )
        x, stop, steps, _, normal_residual, *_ = lsmr(
            columns,
            _flat(self._vector),
            atol=self._tolerance,
            btol=self._tolerance,
            conlim=0,
            maxiter=self._iterations,
        )
        if stop in _LSMR_FAILURES or not np.isfinite(x).all():
            raise ConvergenceError(
                f"LSMR stopped after {steps} iterations above tolerance {self._tolerance:.2g} "
                f"({_LSMR_FAILURES.get(stop, 'a value is not finite')}; ||H[:, S]^T r|| is {normal_residual:.2g}); "
                "give more iterations, damping or tolerance"
            )
        return scatter(x)

    def solve_within(self, mask: Vector) -> Vector:
        """Return H[S, S]^-1 g_S, 0 outside S."""
        return self._conjugate_gradient(lambda x: _masked(self.product(x), mask), _masked(self._vector, mask))

    def solve(self) -> Vector:
        """Return H^-1 g."""
        if isinstance(self._operator, Curvature):
            return self._operator.solve(self._vector, damping=self._damping)
        return self._conjugate_gradient(self.product, self._vector)

    def _conjugate_gradient(self, matvec: Any, rhs: Vector) -> Vector:
        result = conjugate_gradient(matvec, rhs, iterations=self._iterations, tolerance=self._tolerance)
        if not result.converged:
            why = "" if result.breakdown is None else f" ({result.breakdown})"
            raise ConvergenceError(
                f"conjugate gradients stopped after {result.iterations} iterations at a relative residual of "
                f"{result.residuals[-1]:.2g}, above tolerance {self._tolerance:.2g}{why}; give more iterations, "
                "damping or tolerance"
            )
        return result.solution


def _mask(vector: Vector, selection: Selection | None, method: Method) -> Vector:
    """Return a mask for every part of the vector, checked."""
    if method == "full":
        if selection is not None:
            raise InputError("a full step freezes nothing; leave out the selection, or take method='projected'")
        return {name: torch.ones_like(part, dtype=torch.bool) for name, part in vector.items()}
    if selection is None:
        raise InputError(f"method {method!r} moves selected coordinates only; give their masks, or method='full'")
    for name, mask in selection.items():
        if name not in vector:
            raise InputError(f"the selection names {name!r}, no part of the vector; {did_you_mean(name, vector)}")
        if mask.dtype != torch.bool or mask.shape != vector[name].shape:
            raise InputError(
                f"the mask of {name!r} is {mask.dtype} of shape {tuple(mask.shape)}; give torch.bool of shape "
                f"{tuple(vector[name].shape)}"
            )
    if not any(bool(mask.any()) for mask in selection.values()):
        raise InputError("the selection is empty, so no weight may move; select at least one coordinate")
    none = {name: torch.zeros_like(part, dtype=torch.bool) for name, part in vector.items()}
    return {name: selection[name].to(part.device) if name in selection else part for name, part in none.items()}


def _masked(vector: Vector, mask: Vector) -> Vector:
    return {name: part * mask[name] for name, part in vector.items()}


def _flat(vector: Vector) -> npt.NDArray[np.float64]:
    parts = [part.detach().reshape(-1).to("cpu", torch.float64) for part in vector.values()]
    flat: npt.NDArray[np.float64] = torch.cat(parts).numpy()
    return flat


def _unflat(flat: npt.NDArray[np.float64], like: Vector) -> Vector:
    parts = torch.split(torch.from_numpy(flat), [part.numel() for part in like.values()])
    pairs = zip(like.items(), parts, strict=True)
    return {name: part.reshape(old.shape).to(old) for (name, old), part in pairs}
