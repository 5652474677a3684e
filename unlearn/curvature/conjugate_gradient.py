"""Preconditioned conjugate gradients on parameter vectors (Hestenes and Stiefel 1952; Saad 2003, algorithm 9.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from unlearn.curvature.vectors import Vector, add_scaled, add_scaled_, dot, norm, zeros_like
from unlearn.errors import InputError


@dataclass(frozen=True)
class CGResult:
    """What conjugate gradients found.

    Attributes:
        solution: the last iterate, always finite.
        iterations: steps taken, each one product with the operator.
        residuals: ||b - A x|| / ||b|| at the start (1) and after each step, as updated by the recurrence.
        converged: whether the last residual is within the tolerance.
        breakdown: why it stopped before its end (the operator or preconditioner is not positive definite, or gave
            values that are not finite); None where it did not.
    """

    solution: Vector
    iterations: int
    residuals: list[float]
    converged: bool
    breakdown: str | None = None


def conjugate_gradient(
    matvec: Callable[[Vector], Vector],
    rhs: Vector,
    *,
    preconditioner: Callable[[Vector], Vector] | None = None,
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> CGResult:
    """Solve A x = b for a symmetric positive definite operator, from x = 0.

    Args:
        matvec: v to A v.
        rhs: b.
        preconditioner: r to an approximation of A^-1 r, itself symmetric and positive definite.
        iterations: most steps to take.
        tolerance: relative residual at which to stop.

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
    x, r = zeros_like(rhs), rhs  # beside the right-hand side there are x, r, p, and one of z and A p
    scale = norm(rhs)
    if not math.isfinite(scale):
        raise InputError("the right-hand side has NaN or infinite values; check the rows whose gradient it is")
    if scale == 0:
        return CGResult(x, 0, [0.0], converged=True)
    residuals = [1.0]
    p: Vector | None = None
    rz = 1.0
    while len(residuals) <= iterations and residuals[-1] > tolerance:
        z = r if preconditioner is None else preconditioner(r)
        rz_before, rz = rz, dot(r, z)
        if not (math.isfinite(rz) and rz > 0):
            return _broken(
                x, residuals, tolerance, f"r^T M r = {rz:.3g}: the preconditioner M is not positive definite"
            )
        if p is None:
            p = {name: part.clone() for name, part in z.items()}
        else:
            for name, part in p.items():
                torch.add(z[name], part, alpha=rz / rz_before, out=part)
        del z
        Ap = matvec(p)
        curvature = dot(p, Ap)
        if not (math.isfinite(curvature) and curvature > 0):
            return _broken(x, residuals, tolerance, f"p^T A p = {curvature:.3g}: the operator is not positive definite")
        step = rz / curvature
        r = add_scaled(r, -step, Ap) if r is rhs else add_scaled_(r, -step, Ap)
        del Ap
        residual = norm(r) / scale
        if not math.isfinite(residual):
            return _broken(x, residuals, tolerance, f"the residual is {residual}: the operator is not finite")
        add_scaled_(x, step, p)
        residuals.append(residual)
    return CGResult(x, len(residuals) - 1, residuals, converged=residuals[-1] <= tolerance)


def _broken(x: Vector, residuals: list[float], tolerance: float, reason: str) -> CGResult:
    return CGResult(x, len(residuals) - 1, residuals, residuals[-1] <= tolerance, reason)
