"""Preconditioned conjugate gradients on parameter vectors (Hestenes and Stiefel 1952; Saad 2003, algorithm 9.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from unlearn.curvature.vectors import Vector, add_scaled_, dot, norm, zeros_like
from unlearn.errors import InputError


@dataclass(frozen=True)
class CGResult:
    """What conjugate gradients found.

    Attributes:
        solution: the last iterate, always finite.
        iterations: steps taken, each one product with the operator.
        residuals: ||b - A x|| / ||b|| at the start (1) and after each step, as updated by the recurrence.
        projection: b^T x, from the recurrence too: each step adds step times r^T z (Hestenes and Stiefel 1952, theorem
            6:1; that finite precision leaves it right: Strakos and Tichy 2002).
        converged: whether the last residual is within the tolerance.
        breakdown: why it stopped before its end (the operator or preconditioner is not positive definite, or gave
            values that are not finite); None where it did not.
    """

    solution: Vector
    iterations: int
    residuals: list[float]
    projection: float
    converged: bool
    breakdown: str | None = None


def conjugate_gradient(
    matvec: Callable[[Vector], Vector],
    rhs: Vector,
    *,
    preconditioner: Callable[[Vector], Vector] | None = None,
    iterations: int = 100,
    tolerance: float = 1e-6,
    overwrite_rhs: bool = False,
) -> CGResult:
    """Solve A x = b for a symmetric positive definite operator, from x = 0.

    Args:
        matvec: v to A v.
        rhs: b.
        preconditioner: r to an approximation of A^-1 r, itself symmetric and positive definite.
        iterations: most steps to take.
        tolerance: relative residual at which to stop.
        overwrite_rhs: whether b may become the residual, which saves a vector.

    Raises:
        InputError: the right-hand side is not finite, or iterations or tolerance is negative.

    >>> import torch
    >>> A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> result = conjugate_gradient(lambda v: {"w": A @ v["w"]}, {"w": torch.tensor([3.0, 4.0])})
    >>> result.iterations, result.converged, result.solution["w"].round(decimals=4).tolist()
    (2, True, [1.0, 1.0])
    """
    if iterations < 0 or not tolerance >= 0:
        raise InputError(f"iterations is {iterations} and tolerance {tolerance}; give numbers of at least 0")
    x = zeros_like(rhs)  # beside the right-hand side there are x, r, p, and one of z and A p
    r = rhs if overwrite_rhs else {name: part.clone() for name, part in rhs.items()}
    scale = norm(rhs)
    if not math.isfinite(scale):
        raise InputError("the right-hand side has NaN or infinite values; check the rows whose gradient it is")
    if scale == 0:
        return CGResult(x, 0, [0.0], 0.0, converged=True)
    residuals, projection, broken = [1.0], 0.0, None
    p: Vector | None = None
    rz = 1.0
    while len(residuals) <= iterations and residuals[-1] > tolerance:
        z = r if preconditioner is None else preconditioner(r)
        rz_before, rz = rz, dot(r, z)
        if not (math.isfinite(rz) and rz > 0):
            broken = f"r^T M r = {rz:.3g}: the preconditioner M is not positive definite"
            break
        if p is None:
            p = {name: part.clone() for name, part in z.items()}
        else:
            for name, part in p.items():
                torch.add(z[name], part, alpha=rz / rz_before, out=part)
        del z
        Ap = matvec(p)
        curvature = dot(p, Ap)
        if not (math.isfinite(curvature) and curvature > 0):
            broken = f"p^T A p = {curvature:.3g}: the operator is not positive definite"
            break
        step = rz / curvature
        add_scaled_(r, -step, Ap)
        del Ap
        residual = norm(r) / scale
        if not math.isfinite(residual):
            broken = f"the residual is {residual}: the operator is not finite"
            break
        add_scaled_(x, step, p)
        projection += step * rz
        residuals.append(residual)
    return CGResult(x, len(residuals) - 1, residuals, projection, residuals[-1] <= tolerance, broken)
