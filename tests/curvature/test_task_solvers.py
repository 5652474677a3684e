"""Every task with every deterministic solver against the Hessian of the mean loss by autograd, in float64.

The model is linear in its parameters, so the Gauss-Newton matrix is the Hessian.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian

from unlearn.curvature import ConjugateGradientSolver, DenseSolver, fit_curvature, gauss_newton
from unlearn.data import Rows
from unlearn.tasks import OwnLoss, Task, get_task

N = 8


def weighted(z: Tensor, y: Tensor) -> Tensor:
    return (1 + y) * nn.functional.cross_entropy(z, y, reduction="none")


def rows_of(name: str) -> tuple[Task, Rows]:
    generator = torch.Generator().manual_seed(0)
    shape = (N, 4, 3) if name == "language-modelling" else (N, 3)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, 2, (N,), generator=generator)
    tokens = torch.randint(0, 2, (N, 4), generator=generator)
    tokens[torch.arange(N) % 2 == 0, 2:] = -100
    labels = {
        "regression": torch.randn(N, 2, generator=generator, dtype=torch.float64),
        "multi-label": torch.randint(0, 2, (N, 2), generator=generator).double(),
        "binary": torch.randint(0, 2, (N, 2), generator=generator).double(),
        "language-modelling": tokens,
    }.get(name, classes)
    return OwnLoss(weighted) if name == "own-loss" else get_task(name), Rows.from_tensors(x, labels)


TASKS = ["classification", "regression", "binary", "multi-label", "language-modelling", "own-loss"]


@pytest.mark.parametrize("name", TASKS)
def test_exact_solvers_solve_the_hessian(name: str) -> None:
    # a Fisher scaled by positions squared, by the batch, or with padding in it would show
    task, rows = rows_of(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(3, 2).double()
    inputs, labels = rows.batch(torch.arange(N))

    def mean_loss(flat: Tensor) -> Tensor:
        weights = {"weight": flat[:6].reshape(2, 3), "bias": flat[6:]}
        return task.loss(functional_call(model, weights, (inputs,)), labels).mean()

    H = hessian(mean_loss)(torch.cat([p.detach().flatten() for p in model.parameters()]))
    dense = DenseSolver(model, rows, task=task)
    torch.testing.assert_close(dense.matrix, H, rtol=1e-10, atol=1e-12)
    v = {"weight": torch.arange(6.0).double().reshape(2, 3), "bias": torch.tensor([1.0, -2.0]).double()}
    flat = torch.cat([part.flatten() for part in v.values()])
    expected = torch.linalg.solve(H + 0.1 * torch.eye(8).double(), flat)
    factors = fit_curvature(model, rows, task=task)
    for solver in (
        dense,
        ConjugateGradientSolver(gauss_newton(model, rows, task=task, batch_size=3), tolerance=1e-12),
        ConjugateGradientSolver(gauss_newton(model, rows, task=task), preconditioner=factors, tolerance=1e-12),
    ):
        found = solver.solve(v, damping=0.1)
        torch.testing.assert_close(torch.cat([x.flatten() for x in found.values()]), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", TASKS)
def test_the_diagonal_is_that_of_the_hessian(name: str) -> None:
    task, rows = rows_of(name)
    model = nn.Linear(3, 2).double()
    found = fit_curvature(model, rows, task=task, kind="diagonal", fisher="exact", batch_size=3)
    dense = DenseSolver(model, rows, task=task)
    ones = {"weight": torch.ones(2, 3).double(), "bias": torch.ones(2).double()}
    diagonal = torch.cat([part.flatten() for part in found.matvec(ones).values()])
    torch.testing.assert_close(diagonal, dense.matrix.diagonal(), rtol=1e-10, atol=1e-13)
