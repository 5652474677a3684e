"""The Gauss-Newton operator against dense J^T H J, and conjugate gradients against dense solves."""

from __future__ import annotations

import pytest
import torch
from curvature_cases import CASES, CLASSIFICATION, build, flat, vector_of
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from unlearn.curvature import conjugate_gradient, dot, fit_curvature, gauss_newton
from unlearn.data import Rows
from unlearn.errors import InputError


def dense_gauss_newton(model: nn.Module, rows: Rows) -> Tensor:
    """Return (1/n) sum_b J_b^T (diag p - p p^T) J_b, with the softmax Hessian written out."""
    inputs = rows.batch(torch.arange(len(rows)))[0]
    weights = {name: p.detach() for name, p in model.named_parameters()}
    jacobian = jacrev(lambda chosen: functional_call(model, chosen, (inputs,)))(weights)
    J = torch.cat([jacobian[name].flatten(2) for name in weights], 2)
    p = model(inputs).detach().softmax(1)
    H = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("bcp,bcd,bdq->pq", J, H, J) / len(rows)


def unflat(values: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = values.split([part.numel() for part in like.values()])
    return {name: part.reshape(like[name].shape) for name, part in zip(like, parts, strict=True)}


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("case", ["linear", "linear-in-place", "linear-sequence", "conv-groups", "conv-same"])
def test_product_is_the_dense_one(case: str, batch_size: int) -> None:
    model, rows = build(case)
    operator = gauss_newton(model, rows, batch_size=batch_size)
    v, u = vector_of(model), vector_of(model, seed=3)
    product = operator.matvec(v)
    G = dense_gauss_newton(model, rows)
    torch.testing.assert_close(flat(product), G @ flat(v), rtol=1e-10, atol=1e-12)
    assert dot(u, product) == pytest.approx(dot(v, operator.matvec(u)), rel=1e-10)
    assert operator.cost == 2 * 4 * len(rows)


def test_of_a_linear_model_it_is_the_hessian_and_of_a_deep_one_it_is_not() -> None:
    for case, equal in (("linear", False), ("head", True)):
        model, rows = build("linear")
        model = nn.Sequential(model[0], model[2]) if case == "linear" else nn.Linear(5, 3).double()
        inputs, labels = rows.batch(torch.arange(len(rows)))

        def loss(values: Tensor, model: nn.Module = model, inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:
            weights = unflat(values, dict(model.named_parameters()))
            return nn.functional.cross_entropy(functional_call(model, weights, (inputs,)), labels)

        H = hessian(loss)(flat(dict(model.named_parameters())).detach())
        v = vector_of(model)
        found = flat(gauss_newton(model, rows).matvec(v))
        assert torch.allclose(found, H @ flat(v), rtol=1e-9, atol=1e-11) == equal


def test_exact_ekfac_of_a_single_row_is_exact_within_each_layer() -> None:
    # one row and squared error in one output: each layer's block of G is the outer product of one gradient
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    rows = (torch.randn(1, 4, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    curvature = fit_curvature(model, rows, task="regression", fisher="exact")
    for layer in curvature.layers:
        operator = gauss_newton(model, rows, task="regression", parameters=layer.parameters)
        part = {name: value for name, value in vector_of(model).items() if name in layer.parameters}
        whole = {name: part.get(name, torch.zeros_like(p)) for name, p in model.named_parameters()}
        found = {name: curvature.matvec(whole)[name] for name in part}
        torch.testing.assert_close(found, operator.matvec(part), rtol=1e-10, atol=1e-12)


def test_it_belongs_to_the_weights_it_was_made_at() -> None:
    model, rows = build("linear")
    operator, v = gauss_newton(model, rows), vector_of(model)
    before = operator.matvec(v)
    with torch.no_grad():
        model[0].weight.add_(1)
    torch.testing.assert_close(operator.matvec(v), before, rtol=0, atol=0)
    assert not torch.allclose(gauss_newton(model, rows).matvec(v)["0.weight"], before["0.weight"], rtol=0.01)


def test_some_parameters_only() -> None:
    model, rows = build("linear")
    model[0].bias.requires_grad_(False)
    assert gauss_newton(model, rows).parameters == ["0.weight", "2.weight", "2.bias"]
    head = gauss_newton(model, rows, parameters=["2.weight"])
    v = vector_of(model)
    padded = {name: part if name == "2.weight" else torch.zeros_like(part) for name, part in v.items()}
    whole = gauss_newton(model, rows, parameters=list(v)).matvec(padded)
    torch.testing.assert_close(head.matvec({"2.weight": v["2.weight"]})["2.weight"], whole["2.weight"])
    with pytest.raises(InputError, match=r"no parameter '2\.weigt'; did you mean '2\.weight'"):
        gauss_newton(model, rows, parameters=["2.weigt"])
    with pytest.raises(InputError, match=r"differ in the parameters '0\.bias'"):
        gauss_newton(model, rows).matvec(v)
    with pytest.raises(InputError, match=r"shape \(1,\); the parameter has shape \(3, 4\)"):
        head.matvec({"2.weight": torch.ones(1)})


def spd(size: int = 12) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    rhs = torch.randn(size, generator=generator, dtype=torch.float64)
    return root @ root.T + torch.eye(size), {"a": rhs[:5], "b": rhs[5:].reshape(1, -1)}


def times(matrix: Tensor, like: dict[str, Tensor]):
    return lambda v: unflat(matrix @ flat(v), like)


def test_conjugate_gradient_solves() -> None:
    A, b = spd()
    result = conjugate_gradient(times(A, b), b, iterations=50, tolerance=1e-12)
    torch.testing.assert_close(flat(result.solution), torch.linalg.solve(A, flat(b)), rtol=1e-9, atol=1e-11)
    assert result.converged
    assert result.breakdown is None
    assert len(result.residuals) == result.iterations + 1
    true = torch.linalg.norm(flat(b) - A @ flat(result.solution)) / torch.linalg.norm(flat(b))
    assert float(true) == pytest.approx(result.residuals[-1], abs=1e-11)


def test_the_exact_inverse_as_preconditioner_takes_one_step() -> None:
    A, b = spd()
    result = conjugate_gradient(times(A, b), b, preconditioner=times(torch.linalg.inv(A), b), tolerance=1e-10)
    assert (result.iterations, result.converged) == (1, True)
    torch.testing.assert_close(flat(result.solution), torch.linalg.solve(A, flat(b)), rtol=1e-9, atol=1e-11)


def test_preconditioned_iterates_are_those_of_the_symmetrised_system() -> None:
    # Saad, section 9.2.1: PCG is CG on L^-1 A L^-T with M = L L^T
    A, b = spd()
    M = torch.diag(A.diagonal())
    L = torch.linalg.cholesky(M)
    symmetrised = torch.linalg.solve(L, torch.linalg.solve(L, A).T)
    inner = conjugate_gradient(
        times(symmetrised, b), unflat(torch.linalg.solve(L, flat(b)), b), iterations=4, tolerance=0
    )
    result = conjugate_gradient(times(A, b), b, preconditioner=times(torch.linalg.inv(M), b), iterations=4, tolerance=0)
    assert result.iterations == 4
    expected = torch.linalg.solve(L.T, flat(inner.solution))
    torch.testing.assert_close(flat(result.solution), expected, rtol=1e-9, atol=1e-11)


def test_breakdown_returns_the_last_good_iterate() -> None:
    A, b = spd()
    result = conjugate_gradient(times(-A, b), b)
    assert "operator is not positive definite" in result.breakdown
    assert (result.iterations, result.converged, result.residuals) == (0, False, [1.0])
    assert flat(result.solution).abs().sum() == 0

    indefinite = A - 20 * torch.eye(len(A))
    result = conjugate_gradient(times(indefinite, b), b, tolerance=1e-12)
    assert "operator is not positive definite" in result.breakdown
    assert torch.isfinite(flat(result.solution)).all()

    result = conjugate_gradient(times(A, b), b, preconditioner=times(-A, b))
    assert "preconditioner M is not positive definite" in result.breakdown

    calls = []

    def spoils_the_third(v: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append(1)
        return unflat((A if len(calls) < 3 else A * float("nan")) @ flat(v), b)

    result = conjugate_gradient(spoils_the_third, b, tolerance=1e-12)
    two = conjugate_gradient(times(A, b), b, iterations=2, tolerance=0)
    assert (result.iterations, result.converged) == (2, False)
    assert result.breakdown
    torch.testing.assert_close(flat(result.solution), flat(two.solution), rtol=0, atol=0)


def test_a_right_hand_side_of_zero_and_bad_options() -> None:
    A, b = spd()
    zero = {name: torch.zeros_like(part) for name, part in b.items()}
    result = conjugate_gradient(times(A, b), zero)
    assert (result.iterations, result.converged, result.residuals) == (0, True, [0.0])
    with pytest.raises(InputError, match="right-hand side has NaN"):
        conjugate_gradient(times(A, b), {name: part * float("nan") for name, part in b.items()})
    with pytest.raises(InputError, match="iterations is -1"):
        conjugate_gradient(times(A, b), b, iterations=-1)


def test_ekfac_is_a_good_preconditioner() -> None:
    model, rows = build("linear", n=60)
    G, curvature, d = gauss_newton(model, rows), fit_curvature(model, rows, fisher="exact"), 1e-3
    b = vector_of(model)

    def damped(v: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: part + d * v[name] for name, part in G.matvec(v).items()}

    plain = conjugate_gradient(damped, b, tolerance=1e-6)
    helped = conjugate_gradient(damped, b, preconditioner=lambda r: curvature.solve(r, damping=d), tolerance=1e-6)
    assert helped.converged
    assert helped.iterations < plain.iterations
    dense = dense_gauss_newton(model, rows)
    expected = torch.linalg.solve(dense + d * torch.eye(len(dense)).double(), flat(b))
    torch.testing.assert_close(flat(helped.solution), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_classification_gradient_enters_no_gauss_newton_product(case: str) -> None:
    # G does not depend on the labels
    model, rows = build(case)
    v = vector_of(model)
    other = rows.relabelled({row: (int(label) + 1) % 3 for row, label in zip(rows.ids, rows.labels, strict=True)})
    assert CLASSIFICATION.name == "classification"
    torch.testing.assert_close(
        gauss_newton(model, rows).matvec(v), gauss_newton(model, other).matvec(v), rtol=0, atol=0
    )
