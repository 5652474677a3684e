"""Make a solver by its name."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import nn

from unlearn.curvature.dense import DenseSolver
from unlearn.curvature.fit import fit_curvature
from unlearn.curvature.gauss_newton import gauss_newton
from unlearn.curvature.lissa import LissaSolver
from unlearn.curvature.solver import ConjugateGradientSolver, IdentitySolver, Solver
from unlearn.data import DEFAULT_BATCH, as_rows
from unlearn.errors import InputError, did_you_mean
from unlearn.tasks import Task

SolverKind = Literal["ekfac", "kfac", "diagonal", "identity", "cg", "pcg", "lissa", "dense"]


def make_solver(
    kind: SolverKind,
    model: nn.Module,
    data: Any,
    *,
    task: str | Task = "classification",
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
) -> Solver:
    """Return a solver of the damped system of a model and its rows, with the default options of its class.

    Args:
        kind: ``ekfac``, ``kfac`` or ``diagonal``: a fitted :class:`unlearn.curvature.Curvature`, no product in a solve;
            ``identity``: no curvature, v / damping; and of the exact matrix ``cg``: conjugate gradients, ``pcg``: the
            same with EK-FAC as preconditioner (closer in the first iterations, not always sooner at a small tolerance),
            ``lissa``: a stochastic series, noisy, ``dense``: the whole matrix, for at most 4,096 parameters.
        model: any module for ``identity``, ``cg``, ``lissa`` and ``dense``; else see
            :func:`unlearn.curvature.fit_curvature`. Left as found.
        data: the rows; labels are not used. See :func:`unlearn.data.as_rows`.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        seed: seed of sampled labels (``ekfac``, ``kfac``, ``diagonal``, ``pcg``) and of drawn rows (``lissa``).
        batch_size: rows at a time; changes time and memory, not the result.

    Raises:
        InputError: an unknown kind, or input that the solver refuses.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # x^T x / 2 = diag(0.5, 2)
    >>> model, data = nn.Linear(2, 1, bias=False), (x, torch.zeros(2))
    >>> v = {"weight": torch.tensor([[3.0, 3.0]])}
    >>> for kind in ("cg", "pcg", "dense"):
    ...     x = make_solver(kind, model, data, task="regression").solve(v, damping=1.0)
    ...     assert torch.allclose(x["weight"], torch.tensor([[2.0, 1.0]]))
    """
    if kind not in get_args(SolverKind):
        raise InputError(f"unknown solver {kind!r}; {did_you_mean(kind, get_args(SolverKind))}")
    if kind == "identity":
        return IdentitySolver()
    rows = as_rows(data)
    if kind == "dense":
        return DenseSolver(model, rows, task=task, batch_size=batch_size)
    if kind == "lissa":
        return LissaSolver(model, rows, task=task, seed=seed, batch_size=batch_size)
    if kind == "cg":
        return ConjugateGradientSolver(gauss_newton(model, rows, task=task, batch_size=batch_size))
    if kind == "pcg":
        curvature = fit_curvature(model, rows, task=task, seed=seed, batch_size=batch_size)
        operator = gauss_newton(model, rows, task=task, batch_size=batch_size)
        return ConjugateGradientSolver(operator, preconditioner=curvature)
    return fit_curvature(model, rows, task=task, kind=kind, seed=seed, batch_size=batch_size)
