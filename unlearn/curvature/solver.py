"""Solvers of the damped system: one interface, and the two solvers that need no matrix of their own.

``solve(v, damping=d)`` is (G + d)^-1 v with G the Gauss-Newton matrix of a mean loss; weight decay is not in G, so
callers add it to the damping. A :class:`unlearn.curvature.Curvature` is a solver in its approximation of G; the solvers
of the exact G agree with each other within their tolerances, or raise.
"""

from __future__ import annotations

from typing import Protocol

from unlearn.curvature.conjugate_gradient import CGResult, conjugate_gradient
from unlearn.curvature.curvature import Curvature, check_damping
from unlearn.curvature.gauss_newton import GaussNewton
from unlearn.curvature.vectors import Vector, add_scaled
from unlearn.errors import ConvergenceError, InputError, some


class Solver(Protocol):
    """Anything that solves the damped system."""

    def solve(self, vector: Vector, *, damping: float) -> Vector:
        """Return (G + damping)^-1 v, with the keys, shapes and types of v."""


class IdentitySolver:
    """The solver without curvature: G = 0, so the answer is v / damping.

    It is what every solver tends to where the damping is far above the eigenvalues; the scores that it gives rank rows
    by plain products of gradients.

    >>> import torch
    >>> IdentitySolver().solve({"w": torch.tensor([1.0, 2.0])}, damping=0.5)
    {'w': tensor([2., 4.])}
    """

    def solve(self, vector: Vector, *, damping: float) -> Vector:
        """Return v / damping.

        Raises:
            InputError: damping is not a finite number above 0.
        """
        check_damping(damping)
        if damping == 0:
            raise InputError("damping is 0 and the identity solver has no curvature beside it; give damping > 0")
        return {name: part / damping for name, part in vector.items()}


class ConjugateGradientSolver:
    """Conjugate gradients on the exact G + damping; see :func:`unlearn.curvature.conjugate_gradient`.

    Each iteration is one product with G. An answer short of the tolerance is an error; :meth:`run` returns it with its
    residuals instead.

    Args:
        operator: the exact G, of :func:`unlearn.curvature.gauss_newton`.
        preconditioner: a curvature of the same model; its ``solve`` with the same damping is the preconditioner.
        iterations: most iterations of a solve.
        tolerance: relative residual ||v - (G + damping) x|| / ||v|| of an answer.

    Raises:
        InputError: the operator acts on parameters that the preconditioner does not cover.

    >>> import torch
    >>> from unlearn.curvature.gauss_newton import gauss_newton
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # x^T x / 2 = diag(0.5, 2)
    >>> G = gauss_newton(torch.nn.Linear(2, 1, bias=False), (x, torch.zeros(2)), task="regression")
    >>> solver = ConjugateGradientSolver(G)
    >>> solver.solve({"weight": torch.tensor([[3.0, 3.0]])}, damping=1.0)["weight"].round(decimals=4)
    tensor([[2., 1.]])
    >>> solver.cost  # two iterations on two rows
    16
    """

    def __init__(
        self,
        operator: GaussNewton,
        *,
        preconditioner: Curvature | None = None,
        iterations: int = 1000,
        tolerance: float = 1e-6,
    ) -> None:
        if preconditioner is not None:
            covered = set(preconditioner.covered)
            missing = [name for name in operator.parameters if name not in covered]
            if missing:
                raise InputError(
                    f"the preconditioner does not cover the parameters {some(map(repr, missing))}; make the operator "
                    "with parameters=curvature.covered, or fit the curvature without skip"
                )
        self._operator = operator
        self._preconditioner = preconditioner
        self._iterations = iterations
        self._tolerance = tolerance

    @property
    def cost(self) -> int:
        """What the operator's products cost so far, per row; see :class:`unlearn.curvature.GaussNewton`."""
        return self._operator.cost

    def run(self, vector: Vector, *, damping: float) -> CGResult:
        """Return the last iterate with its residuals, converged or not.

        Raises:
            InputError: damping is negative or not finite, or the vector does not fit.
        """
        check_damping(damping)
        curvature = self._preconditioner
        return conjugate_gradient(
            lambda v: add_scaled(self._operator.matvec(v), damping, v),
            vector,
            preconditioner=None if curvature is None else lambda r: curvature.solve(r, damping=damping),
            iterations=self._iterations,
            tolerance=self._tolerance,
        )

    def solve(self, vector: Vector, *, damping: float) -> Vector:
        """Return (G + damping)^-1 v to the tolerance.

        Raises:
            ConvergenceError: the residual is above the tolerance after the last iteration, or the iteration broke down.
            InputError: damping is negative or not finite, or the vector does not fit.
        """
        result = self.run(vector, damping=damping)
        if not result.converged:
            why = "" if result.breakdown is None else f" ({result.breakdown})"
            raise ConvergenceError(
                f"conjugate gradients stopped after {result.iterations} iterations at a relative residual of "
                f"{result.residuals[-1]:.2g}, above tolerance {self._tolerance:.2g}{why}; give a preconditioner, more "
                "iterations, or more damping or tolerance"
            )
        return result.solution
