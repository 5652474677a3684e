"""Every solver against the dense one, which is itself against autograd; and what each of them refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from curvature_cases import CLASSES, build, flat, vector_of
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from unlearn.curvature import (
    ConjugateGradientSolver,
    DenseSolver,
    IdentitySolver,
    LissaSolver,
    Solver,
    Vector,
    add_scaled,
    conjugate_gradient,
    dot,
    fit_curvature,
    gauss_newton,
    make_solver,
    norm,
    top_eigenvalue,
)
from unlearn.data import Rows
from unlearn.errors import ConvergenceError, InputError
from unlearn.tasks import get_task

# name: (network of curvature_cases, task)
SYSTEMS = {
    "mlp-classification": ("linear", "classification"),
    "mlp-regression": ("linear", "regression"),
    "cnn-classification": ("conv-groups", "classification"),
    "cnn-regression": ("conv-stride", "regression"),
}
every_system = pytest.mark.parametrize("name", SYSTEMS)


def system(name: str, n: int = 9, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Rows, str]:
    case, task = SYSTEMS[name]
    model, rows = build(case, n=n, dtype=dtype)
    if task == "regression":
        inputs = rows.batch(torch.arange(n))[0]
        targets = torch.linspace(-1, 1, n * CLASSES, dtype=dtype).reshape(n, CLASSES)
        rows = Rows.from_tensors(inputs, targets, ids=rows.ids)
    return model, rows, task


def autograd_gauss_newton(model: nn.Module, rows: Rows, task: str) -> Tensor:
    """Return (1/n) sum_b J_b^T H_b J_b with the output Hessians written out."""
    inputs = rows.batch(torch.arange(len(rows)))[0]
    weights = {name: p.detach() for name, p in model.named_parameters()}
    jacobian = jacrev(lambda chosen: functional_call(model, chosen, (inputs,)))(weights)
    J = torch.cat([jacobian[name].flatten(2) for name in weights], 2)
    H = torch.eye(J.shape[1]).to(J).expand(len(rows), -1, -1)
    if task == "classification":
        p = model(inputs).detach().softmax(1)
        H = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("bcp,bcd,bdq->pq", J, H, J) / len(rows)


def error(found: Vector, expected: Vector) -> float:
    return norm(add_scaled(found, -1.0, expected)) / norm(expected)


@every_system
def test_the_dense_matrix_is_that_of_autograd_and_solves(name: str) -> None:
    model, rows, task = system(name)
    solver = DenseSolver(model, rows, task=task)
    G = autograd_gauss_newton(model, rows, task)
    torch.testing.assert_close(solver.matrix, G, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(solver.eigenvalues, torch.linalg.eigvalsh(G).clamp(min=0), rtol=1e-9, atol=1e-12)
    assert solver.cost == 4 * len(rows) * len(G)
    v = vector_of(model)
    for damping in (1.0, 1e-3):
        expected = torch.linalg.solve(G + damping * torch.eye(len(G)).double(), flat(v))
        torch.testing.assert_close(flat(solver.solve(v, damping=damping)), expected, rtol=1e-8, atol=1e-10)


@every_system
@pytest.mark.parametrize("damping", [1.0, 1e-3])
def test_the_same_system_has_the_same_answer(name: str, damping: float) -> None:
    model, rows, task = system(name)
    v = vector_of(model)
    expected = DenseSolver(model, rows, task=task).solve(v, damping=damping)
    curvature = fit_curvature(model, rows, task=task)
    for preconditioner in (None, curvature):
        operator = gauss_newton(model, rows, task=task, batch_size=4)
        solver = ConjugateGradientSolver(operator, preconditioner=preconditioner, tolerance=1e-11)
        assert error(solver.solve(v, damping=damping), expected) < 1e-8
    if damping == 1.0:
        solver = LissaSolver(model, rows, task=task, sample=None, tolerance=1e-9)
        assert error(solver.solve(v, damping=damping), expected) < 1e-8


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "pcg", "cg", "dense", "lissa"])
def test_ekfac_is_the_dense_answer_where_it_is_exact(kind: str) -> None:
    # one linear layer and squared error: G = 1 (x) E[a a^T]
    model = nn.Linear(4, 2).double()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data, v = (x, torch.zeros(8, 2).double()), vector_of(model)
    solvers: dict[str, Callable[[], Solver]] = {
        "ekfac": lambda: fit_curvature(model, data, task="regression", fisher="exact"),
        "kfac": lambda: fit_curvature(model, data, task="regression", fisher="exact", kind="kfac"),
    }
    solver = solvers.get(kind, lambda: make_solver(kind, model, data, task="regression"))()  # type: ignore[arg-type]
    a = torch.cat([x, torch.ones(8, 1).double()], 1)
    right = torch.cat([v["weight"], v["bias"][:, None]], 1)
    found = solver.solve(v, damping=0.1)
    expected = torch.linalg.solve(a.T @ a / 8 + 0.1 * torch.eye(5).double(), right.T).T
    tolerance = {"lissa": 1e-2, "cg": 1e-5, "pcg": 1e-5}.get(kind, 1e-10)  # 8 rows: LiSSA takes them all
    difference = torch.cat([found["weight"], found["bias"][:, None]], 1) - expected
    assert float(difference.norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "diagonal", "identity", "cg", "pcg", "lissa", "dense"])
def test_every_solver_is_a_damped_positive_inverse(kind: str) -> None:
    model, rows, task = system("mlp-classification")
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    v = vector_of(model)
    v = dict(reversed(v.items()))  # keys in another order than the model's
    solver = make_solver(kind, model, rows, task=task)  # type: ignore[arg-type]
    large, small = solver.solve(v, damping=1.0), solver.solve(v, damping=0.1)
    assert list(large) == list(v)
    assert all(large[name].shape == v[name].shape and large[name].dtype == v[name].dtype for name in v)
    assert 0 < dot(v, large) < dot(v, small) <= dot(v, v) / 0.1 * (1 + 1e-9)  # rejects a sign and a damping left out
    assert norm(large) < norm(small)
    # far above all eigenvalues every one is the identity solver
    far = solver.solve(v, damping=1e6)
    assert error(far, IdentitySolver().solve(v, damping=1e6)) < 1e-5
    negative = solver.solve({name: -part for name, part in v.items()}, damping=1.0)
    assert error(negative, {name: -part for name, part in large.items()}) < 1e-12
    for damping in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match=r"damping is .*; give a finite number of at least 0"):
            solver.solve(v, damping=damping)
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["cg", "pcg", "lissa", "dense"])
def test_the_exact_solvers_belong_to_the_weights_they_were_made_at(kind: str) -> None:
    model, rows, task = system("mlp-classification", n=12)
    if kind == "lissa":
        solver: Solver = LissaSolver(model, rows, task=task, sample=3, repeats=2, tolerance=0.1)
    else:
        solver = make_solver(kind, model, rows, task=task)  # type: ignore[arg-type]
    v = vector_of(model)
    before = solver.solve(v, damping=0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    torch.testing.assert_close(solver.solve(v, damping=0.5), before, rtol=0, atol=0)


def test_conjugate_gradients_that_did_not_converge_say_so() -> None:
    model, rows, task = system("mlp-classification", n=40)
    operator, v = gauss_newton(model, rows, task=task), vector_of(model)
    solver = ConjugateGradientSolver(operator, iterations=3)
    with pytest.raises(
        ConvergenceError, match=r"after 3 iterations at a relative residual of .* above tolerance 1e-06;"
    ):
        solver.solve(v, damping=1e-3)
    assert solver.cost == operator.cost == 3 * 4 * 40
    result = solver.run(v, damping=1e-3)
    assert (result.converged, result.iterations) == (False, 3)
    true = add_scaled(add_scaled(operator.matvec(result.solution), 1e-3, result.solution), -1.0, v)
    assert norm(true) / norm(v) == pytest.approx(result.residuals[-1], rel=1e-8)
    nothing = {name: torch.zeros_like(part) for name, part in v.items()}
    assert norm(solver.solve(nothing, damping=1e-3)) == 0
    # G has null vectors, and without damping a right-hand side that has a part there has no answer
    with pytest.raises(ConvergenceError, match="conjugate gradients stopped"):
        ConjugateGradientSolver(operator, iterations=200).solve(v, damping=0.0)


def test_an_exact_preconditioner_leaves_one_iteration() -> None:
    model = nn.Linear(6, 2).double()
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.arange(1, 7)
    data, v = (x, torch.zeros(20, 2).double()), vector_of(model)
    curvature = fit_curvature(model, data, task="regression", fisher="exact")
    operator = gauss_newton(model, data, task="regression")
    assert ConjugateGradientSolver(operator, preconditioner=curvature).run(v, damping=1e-3).iterations == 1
    assert ConjugateGradientSolver(operator).run(v, damping=1e-3).iterations > 5


@pytest.mark.parametrize("iterations", [1, 3, 60])
def test_the_projection_on_the_right_hand_side(iterations: int) -> None:
    # rejects steps times r^T r where there is a preconditioner, and a sum that long iterations in float32 spoil
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(40, 40, generator=generator)
    A, b = root @ root.T + torch.eye(40), torch.randn(40, generator=generator)
    result = conjugate_gradient(
        lambda v: {"w": A @ v["w"]},
        {"w": b},
        preconditioner=lambda r: {"w": r["w"] / A.diagonal()},
        iterations=iterations,
        tolerance=0.0,
    )
    assert result.projection == pytest.approx(float(b @ result.solution["w"]), rel=1e-4)


def test_vectors_are_updated_in_place_and_the_callers_are_not() -> None:
    # rejects a search direction or a residual that shares memory with what the caller or the preconditioner holds
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    A, b = root @ root.T + torch.eye(6), torch.randn(6, generator=generator, dtype=torch.float64)
    rhs, seen = {"w": b.clone()}, []

    def kept(vector: Vector) -> Vector:
        seen.append((vector, vector["w"].clone()))
        return vector

    plain = conjugate_gradient(lambda v: {"w": A @ v["w"]}, rhs, iterations=4, tolerance=0.0)
    same = conjugate_gradient(
        lambda v: {"w": A @ kept(v)["w"]}, rhs, preconditioner=lambda r: r, iterations=4, tolerance=0.0
    )
    assert torch.equal(rhs["w"], b)
    assert torch.equal(plain.solution["w"], same.solution["w"])
    thrifty = conjugate_gradient(lambda v: {"w": A @ v["w"]}, rhs, iterations=4, tolerance=0.0, overwrite_rhs=True)
    assert torch.equal(thrifty.solution["w"], plain.solution["w"])
    torch.testing.assert_close(b - rhs["w"], A @ plain.solution["w"])  # it has become the residual
    directions = torch.stack([value for _, value in seen])
    products = directions @ A @ directions.T
    torch.testing.assert_close(products, products.diagonal().diag(), rtol=0, atol=1e-9)
    krylov = torch.stack([torch.linalg.matrix_power(A, k) @ b for k in range(4)], 1)
    best = krylov @ torch.linalg.solve(krylov.T @ A @ krylov, krylov.T @ b)
    torch.testing.assert_close(plain.solution["w"], best, rtol=1e-6, atol=1e-8)


def test_the_preconditioner_must_cover_the_operator() -> None:
    model, rows, task = system("mlp-classification", n=40)
    operator, v = gauss_newton(model, rows, task=task), vector_of(model)
    head = fit_curvature(model, rows, task=task, skip="0")
    with pytest.raises(
        InputError, match=r"does not cover the parameters '0\.weight', '0\.bias'; make the operator with"
    ):
        ConjugateGradientSolver(operator, preconditioner=head)
    part = gauss_newton(model, rows, task=task, parameters=head.covered)
    b = {name: v[name] for name in head.covered}
    found = ConjugateGradientSolver(part, preconditioner=head, tolerance=1e-11).solve(b, damping=0.1)
    expected = DenseSolver(model, rows, task=task, parameters=head.covered).solve(b, damping=0.1)
    assert error(found, expected) < 1e-8


def test_the_dense_solver_refuses_what_it_can_not_do() -> None:
    rows = (torch.zeros(2, 4096), torch.zeros(2))
    with pytest.raises(InputError, match=r"4,097 x 4,097 matrix; it is for at most 4,096 parameters: name fewer"):
        DenseSolver(nn.Linear(4096, 1), rows, task="regression")

    model, few, task = system("mlp-regression")
    solver, v = DenseSolver(model, few, task=task), vector_of(model)
    with pytest.raises(InputError, match=r"12 of 39 eigenvalues of the Gauss-Newton matrix are 0, .* give damping > 0"):
        solver.solve(v, damping=0.0)  # 9 rows of 3 outputs: rank 27
    with pytest.raises(
        InputError, match=r"the vector has '0\.weight' \(4, 5\); the matrix is of '0\.weight' \(4, 5\), "
    ):
        solver.solve({"0.weight": v["0.weight"]}, damping=1.0)

    regular = nn.Linear(3, 1).double()
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = DenseSolver(regular, (x, torch.zeros(9).double()), task="regression").solve(vector_of(regular), damping=0.0)
    a = torch.cat([x, torch.ones(9, 1).double()], 1)
    torch.testing.assert_close(flat(found), torch.linalg.solve(a.T @ a / 9, flat(vector_of(regular))))

    with torch.no_grad():
        regular.weight.fill_(math.nan)
    with pytest.raises(InputError, match="NaN or infinite entries"):
        DenseSolver(regular, (x, torch.zeros(9, dtype=torch.long)))


def test_a_task_with_negative_curvature_is_refused() -> None:
    class Concave(type(get_task("classification"))):  # type: ignore[misc]
        def fisher_product(self, outputs: Tensor, labels: Tensor, tangents: Tensor) -> Tensor:
            return -tangents

    task: Any = Concave()
    model, rows, _ = system("mlp-classification")
    with pytest.raises(InputError, match=r"eigenvalue -.*; give a task whose fisher_product is positive semidefinite"):
        DenseSolver(model, rows, task=task)
    with pytest.raises(ConvergenceError, match="the operator is not positive definite"):
        ConjugateGradientSolver(gauss_newton(model, rows, task=task)).solve(vector_of(model), damping=1e-3)


def test_float32_weights_keep_their_type() -> None:
    model, rows, task = system("mlp-classification", dtype=torch.float32)
    double, same, _ = system("mlp-classification")
    expected = DenseSolver(double, same, task=task).solve(vector_of(double), damping=0.1)
    for kind in ("dense", "cg", "pcg"):
        found = make_solver(kind, model, rows, task=task).solve(vector_of(model), damping=0.1)
        assert found["0.weight"].dtype == torch.float32
        assert error({name: part.double() for name, part in found.items()}, expected) < 1e-4


def test_identity_needs_damping() -> None:
    with pytest.raises(InputError, match="damping is 0 and the identity solver has no curvature"):
        IdentitySolver().solve({"w": torch.ones(1)}, damping=0.0)


def test_make_solver_knows_its_kinds() -> None:
    model, rows, task = system("mlp-classification")
    with pytest.raises(InputError, match=r"unknown solver 'ekfca'; did you mean 'ekfac'\?"):
        make_solver("ekfca", model, rows, task=task)  # type: ignore[arg-type]


@every_system
@pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-6])
def test_full_batch_lissa_keeps_its_tolerance(name: str, tolerance: float) -> None:
    model, rows, task = system(name)
    v, damping = vector_of(model), 0.2
    solver = LissaSolver(model, rows, task=task, sample=None, tolerance=tolerance)
    dense = DenseSolver(model, rows, task=task)
    measuring = solver.cost
    result = solver.run(v, damping=damping)
    assert error(result.solution, dense.solve(v, damping=damping)) <= tolerance
    assert 0 < result.residual <= tolerance
    assert (result.noise, result.scale) == (0.0, solver.scale(damping))
    assert solver.cost - measuring == 4 * len(rows) * (result.depth + 1)
    # the depth is no larger than the contraction asks for: a right-hand side in the null space of G meets the bound
    assert (
        (1 - damping / result.scale) ** (result.depth + 1) <= tolerance < (1 - damping / result.scale) ** result.depth
    )


@every_system
def test_the_scale_is_an_upper_bound(name: str) -> None:
    model, rows, task = system(name, n=60)
    top = float(DenseSolver(model, rows, task=task).eigenvalues[-1])
    for seed in range(3):
        solver = LissaSolver(model, rows, task=task, seed=seed, sample=None)
        assert top * (1 - 1e-3) <= solver.eigenvalue <= 1.1 * top  # stopping at a residual of 0.05 gave 0.56 of 0.69
        assert solver.scale(0.1) >= top + 0.1
    if name == "mlp-classification":
        drawn = LissaSolver(model, rows, task=task, seed=seed, sample=4)
        assert drawn.eigenvalue == solver.eigenvalue
        assert drawn.scale(0.1) > solver.scale(0.1)  # four rows have larger eigenvalues than their mean


def test_top_eigenvalue_of_a_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64)).Q
    start = {"w": torch.randn(30, generator=generator, dtype=torch.float64)}
    for values in (torch.linspace(0, 5, 30), torch.tensor([5.0, 4.99, *[0.1] * 28]), torch.full((30,), 5.0)):
        A = Q * values.double() @ Q.T
        value, residual = top_eigenvalue(lambda v, A=A: {"w": A @ v["w"]}, start, iterations=50)
        assert value <= 5 + 1e-9
        assert value >= 4.9
        assert value + residual >= 4.95
    assert top_eigenvalue(lambda v: {"w": 0 * v["w"]}, start) == (0, 0)
    with pytest.raises(InputError, match="starts at a vector of norm 0"):
        top_eigenvalue(lambda v: v, {"w": torch.zeros(2)})
    with pytest.raises(InputError, match="NaN or infinite"):
        top_eigenvalue(lambda v: {"w": v["w"] * math.inf}, start)


def test_mini_batch_lissa_is_within_three_standard_errors() -> None:
    model, rows, task = system("mlp-classification", n=24)
    damping, tolerance, seeds = 0.3, 1e-2, 24
    dense, v = DenseSolver(model, rows, task=task), vector_of(model)
    solution = dense.solve(v, damping=damping)
    options: dict[str, Any] = {"task": task, "sample": 4, "repeats": 2, "tolerance": tolerance}
    scale = LissaSolver(model, rows, **options).scale(damping)
    results = [LissaSolver(model, rows, **options, scale=scale, seed=k).run(v, damping=damping) for k in range(seeds)]
    # the mean is known: the truncated series H^-1 (1 - (1 - H / s)^(depth + 1)) v
    H = dense.matrix + damping * torch.eye(len(dense.matrix)).double()
    left = torch.linalg.matrix_power(torch.eye(len(H)).double() - H / scale, results[0].depth + 1)
    mean = torch.linalg.solve(H, flat(v) - left @ flat(v))
    assert 0 < float((mean - flat(solution)).norm()) <= tolerance * norm(solution)
    queries = torch.stack([flat(v), *(flat(vector_of(model, seed=10 + k)) for k in range(4))])
    values = torch.stack([queries @ flat(result.solution) for result in results])
    standard_error = values.std(0) / math.sqrt(seeds)
    assert ((values.mean(0) - queries @ mean).abs() <= 3 * standard_error).all()
    wrong = queries @ flat(dense.solve(v, damping=1.1 * damping))
    assert ((values.mean(0) - wrong).abs() > 3 * standard_error).any()  # it would see a damping that is 10 % off
    # the noise that a run tells is that of its answer
    told = torch.tensor([result.noise for result in results]).square().mean().sqrt()
    true = torch.stack([(flat(result.solution) - mean).norm() / mean.norm() for result in results]).square().mean()
    assert 0.8 < float(told / true.sqrt()) < 1.2  # rejects a factor of the square root of the repeats


def test_lissa_draws_by_seed_and_row_id() -> None:
    model, rows, task = system("mlp-classification", n=12)
    v = vector_of(model)
    options: dict[str, Any] = {"task": task, "sample": 3, "repeats": 2, "tolerance": 0.1}
    first = LissaSolver(model, rows, **options).run(v, damping=0.3)
    again = LissaSolver(model, rows, **options, batch_size=2).run(v, damping=0.3)
    turned = LissaSolver(model, rows.at(torch.arange(12).flip(0)), **options).run(v, damping=0.3)
    other = LissaSolver(model, rows, **options, seed=1).run(v, damping=0.3)
    assert error(again.solution, first.solution) < 1e-12
    assert error(turned.solution, first.solution) < 1e-12
    assert error(other.solution, first.solution) > 1e-3
    one = LissaSolver(model, rows, **options | {"repeats": 1}).run(v, damping=0.3)
    assert one.noise is None
    assert LissaSolver(model, rows, **options | {"sample": 12}).run(v, damping=0.3).noise == 0.0


def test_lissa_that_diverges_is_an_error() -> None:
    model, rows, task = system("cnn-classification", n=24)
    v, damping = vector_of(model), 0.01
    top = float(DenseSolver(model, rows, task=task).eigenvalues[-1])
    for sample in (None, 1):
        solver = LissaSolver(model, rows, task=task, sample=sample, scale=0.4 * top)
        with pytest.raises(ConvergenceError, match=r"does not converge in depth \d+ at scale .* top eigenvalue is"):
            solver.solve(v, damping=damping)
    # large enough for G, far too small for single rows
    assert LissaSolver(model, rows, task=task, sample=1).scale(damping) > 3 * top
    solver = LissaSolver(model, rows, task=task, sample=1, scale=0.6 * top)
    with pytest.raises(ConvergenceError, match=r"diverges at scale .* at step \d+ of depth \d+, and no solution's"):
        solver.solve(v, damping=damping)
    # between them the depth still suffices: a scale of half the top eigenvalue and a little more contracts
    slack = LissaSolver(model, rows, task=task, sample=None, scale=0.7 * top + damping, tolerance=1e-3)
    assert error(slack.solve(v, damping=damping), DenseSolver(model, rows, task=task).solve(v, damping=damping)) < 1e-3


def test_lissa_that_rounding_stops_is_an_error() -> None:
    model, rows, task = system("mlp-classification", dtype=torch.float32)
    solver = LissaSolver(model, rows, task=task, sample=None, tolerance=1e-8)
    with pytest.raises(ConvergenceError, match=r"above tolerance 1e-08, .*: rounding stops it there; give float64"):
        solver.solve(vector_of(model), damping=0.1)


def test_what_lissa_refuses() -> None:
    model, rows, task = system("mlp-classification")
    v = vector_of(model)
    for options, message in (
        ({"sample": 0}, "sample is 0 and repeats 8; give at least 1"),
        ({"repeats": 0}, "sample is 64 and repeats 0; give at least 1"),
        ({"tolerance": 1.0}, "tolerance is 1.0; give a relative error above 0 and below 1"),
        ({"scale": 0.0}, "scale is 0.0; give a finite number above 0, or None"),
    ):
        with pytest.raises(InputError, match=message):
            LissaSolver(model, rows, task=task, **options)  # type: ignore[arg-type]
    solver = LissaSolver(model, rows, task=task, scale=1.0, most_steps=50)
    with pytest.raises(InputError, match="damping is 0, and the depth of LiSSA follows from it"):
        solver.solve(v, damping=0.0)
    with pytest.raises(InputError, match=r"scale is 1, below the damping 2; give damping plus the top eigenvalue"):
        solver.solve(v, damping=2.0)
    with pytest.raises(InputError, match=r"needs 4,602 steps for tolerance 0\.01 .* above most_steps=50; raise"):
        solver.solve(v, damping=1e-3)
    with pytest.raises(InputError, match="right-hand side has NaN"):
        solver.solve({name: part * math.nan for name, part in v.items()}, damping=0.5)
    with pytest.raises(InputError, match="differ in the parameters"):
        solver.solve({"0.weight": v["0.weight"]}, damping=0.5)
    assert norm(solver.solve({name: part * 0 for name, part in v.items()}, damping=0.5)) == 0
