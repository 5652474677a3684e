import numpy as np
import pytest
import torch
from detect_cases import CASES, gradients, model_of, rows_of
from torch import nn

from unlearn.curvature import Basis, Block, Curvature, dot, find_layers, fit_curvature, weights_digest
from unlearn.data import Rows
from unlearn.detect import influence, self_influence
from unlearn.errors import InputError, StaleCurvatureError
from unlearn.tasks import Classification, get_task
from unlearn.training import train_to_optimum


@pytest.mark.parametrize("kind", ["ekfac", "diagonal"])
@pytest.mark.parametrize("case", CASES)
def test_equals_a_dense_product(case, kind):
    # rejects the opposite sign, 1/n, the transposed matrix, and weight decay left out
    model, rows, queries = model_of(case), rows_of(), rows_of(5, seed=2)
    curvature = fit_curvature(model, rows, kind=kind)
    matrix = influence(model, rows, queries, curvature=curvature, damping=0.03, weight_decay=0.02)
    solved = [curvature.solve(g, damping=0.05) for g in gradients(model, rows)]
    dense = torch.tensor([[-dot(q, z) for z in solved] for q in gradients(model, queries)], dtype=torch.float64)
    assert matrix.shape == (5, 11)
    assert matrix.dtype == torch.float64
    torch.testing.assert_close(matrix, dense, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("relative", ["gradient", "parameters", "loss"])
@pytest.mark.parametrize("case", ["mlp", "cnn", "grouped"])
def test_relative_influence_by_hand(case, relative):
    # rejects norms of the query in place of the row's, squared norms, and norms of one layer at a time
    model, rows, queries = model_of(case), rows_of(), rows_of(5, seed=2)
    curvature = fit_curvature(model, rows)
    options = {"curvature": curvature, "damping": 0.03, "weight_decay": 0.02, "batch_size": 4, "query_batch": 2}
    matrix = influence(model, rows, queries, relative=relative, **options)
    plain = influence(model, rows, queries, **options)
    for z, g in enumerate(gradients(model, rows)):
        x = curvature.solve(g, damping=0.05)
        by = {"gradient": dot(g, g) ** 0.5, "parameters": dot(x, x) ** 0.5, "loss": dot(g, x) ** 0.5}[relative]
        for q, query in enumerate(gradients(model, queries)):
            both = by * dot(query, query) ** 0.5 if relative == "gradient" else by
            assert float(matrix[q, z]) == pytest.approx(float(plain[q, z]) / both, rel=1e-9, abs=1e-12)


def test_a_row_without_gradient_has_no_relative_influence():
    # a regression row that is met exactly: 0 / 0 is no influence
    model = nn.Linear(2, 1, bias=False).double()
    x = torch.eye(2, dtype=torch.float64)
    data = (x, torch.cat([model(x[:1]).detach(), torch.ones(1, 1, dtype=torch.float64)]))
    for relative in ("gradient", "parameters", "loss"):
        matrix = influence(model, data, data, relative=relative, task="regression", damping=0.1)
        assert matrix[:, 0].tolist() == [0.0, 0.0]
        assert matrix[1, 1] < 0


@pytest.mark.parametrize("case", ["mlp", "cnn", "grouped"])
def test_diagonal_is_minus_self_influence(case):
    model, rows = model_of(case), rows_of()
    curvature = fit_curvature(model, rows)
    diagonal = influence(model, rows, rows, curvature=curvature).diagonal()
    np.testing.assert_allclose(-diagonal.numpy(), self_influence(model, rows, curvature=curvature).values, rtol=1e-10)


@pytest.mark.parametrize(("batch_size", "query_batch"), [(1, 1), (7, 3), (64, 64)])
@pytest.mark.parametrize("case", ["mlp", "cnn"])
def test_batch_sizes_change_nothing(case, batch_size, query_batch):
    model, rows, queries = model_of(case), rows_of(), rows_of(5, seed=2)
    curvature = fit_curvature(model, rows)
    whole = influence(model, rows, queries, curvature=curvature)
    parts = influence(model, rows, queries, curvature=curvature, batch_size=batch_size, query_batch=query_batch)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)


def test_float32_stays_float32():
    model, rows = model_of("mlp", torch.float32), rows_of(dtype=torch.float32)
    matrix = influence(model, rows, rows, damping=0.1)
    wide = model_of("mlp")
    wide.load_state_dict(model.state_dict())
    assert matrix.dtype == torch.float32
    torch.testing.assert_close(
        matrix.double(), influence(wide, rows_of(), rows_of(), damping=0.1), rtol=1e-4, atol=1e-5
    )


def problem(n, seed=0):
    """Two classes that overlap, in three columns."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=draw, dtype=torch.float64)
    noise = torch.randn(n, generator=draw, dtype=torch.float64)
    return Rows.from_tensors(x, (x[:, 0] - 0.5 * x[:, 1] + noise > 0).long(), classes=2)


def exact_curvature(model, rows):
    """Return the exact Hessian of a two-class linear model: (e e^T) (x) (1/n) sum p (1-p) x x^T with e = (1, -1)."""
    x, _ = rows.batch(torch.arange(len(rows)))
    p = model(x).detach().softmax(1)[:, 0]
    values, vectors = torch.linalg.eigh(x.T @ (x * (p * (1 - p))[:, None]) / len(rows))
    U_S = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)[None] / 2**0.5
    (layer,) = find_layers(model, rows).layers
    block = Block(layer, Basis(vectors[None], U_S), torch.stack([2 * values, 0 * values])[None])
    options = {"kind": "diagonal", "fisher": "exact", "task": "classification"}
    return Curvature({layer.name: block}, {}, len(rows), weights_digest(model), rows.fingerprint, options)


WEIGHT_DECAY = 0.02


def optimum(rows, weight_decay=WEIGHT_DECAY):
    start = nn.Linear(3, 2, bias=False).double()
    nn.init.zeros_(start.weight)
    return train_to_optimum(start, rows, weight_decay=weight_decay, gradient_tolerance=1e-8)[0]


def losses(model, rows):
    x, y = rows.batch(torch.arange(len(rows)))
    with torch.no_grad():
        return get_task("classification").loss(model(x), y)


def leave_one_out(n):
    """Return predicted and exact changes of the queries' losses when a row is removed, (removed, queries)."""
    rows, queries = problem(n), problem(12, seed=1)
    model = optimum(rows)
    matrix = influence(
        model,
        rows,
        queries,
        curvature=exact_curvature(model, rows),
        damping=0.0,
        weight_decay=WEIGHT_DECAY,
    )
    before, removed = losses(model, queries), range(8)
    # with fixed 1/n the objective without a row is ((n-1)/n) (mean loss + (w n / (n-1)) / 2 ||theta||^2)
    decay = WEIGHT_DECAY * n / (n - 1)
    exact = torch.stack([losses(optimum(rows.without([rows.ids[i]]), decay), queries) - before for i in removed])
    return -matrix.T[: len(removed)] / n, exact


def test_minus_influence_by_n_is_the_change_on_removal():
    # rejects both other signs and any factor: the error is of the next order in 1/n, so it halves when n doubles
    errors = []
    for n in (200, 400, 800):
        predicted, exact = leave_one_out(n)
        errors.append(float((predicted - exact).norm() / exact.norm()))
        typical = ((predicted - exact).abs() / exact.abs()).median()
        assert typical < 0.05
    assert errors[0] < 0.05
    assert errors[2] < 0.4 * errors[0]


def test_a_wrong_twin_is_harmful():
    # the sign of the whole package: positive is harmful; removing the wrong twin really helps its twin
    rows = problem(200)
    x, y = rows.batch(torch.arange(200))
    right = 3
    ids = [*rows.ids, "twin"]
    both = Rows.from_tensors(torch.cat([x, x[right : right + 1]]), torch.cat([y, 1 - y[right : right + 1]]), ids=ids)
    model, query = optimum(both), rows.only([rows.ids[right]])
    for curvature in (exact_curvature(model, both), None):
        row = influence(model, both, query, curvature=curvature, damping=0.0, weight_decay=WEIGHT_DECAY)[0]
        assert row[200] > 0
        assert row[right] < 0
        assert row[200] > row.quantile(0.95)
    assert losses(optimum(both.without(["twin"])), query) < losses(model, query)


@pytest.mark.parametrize("outputs", [1, 3])
def test_least_squares_leave_one_out_is_exact(outputs):
    # one linear layer with squared error: K-FAC is exact, and the step on removing z is G^-1 g_z / (n (1 - h_z))
    draw = torch.Generator().manual_seed(0)
    n = 20
    x = torch.randn(n, 4, generator=draw, dtype=torch.float64)
    y = x[:, :1] + torch.randn(n, outputs, generator=draw, dtype=torch.float64)
    model = nn.Linear(4, outputs, bias=False).double()
    model.weight.data = torch.linalg.lstsq(x, y).solution.T.contiguous()
    data, q = (x, y), (x[:5] + 1, y[:5] - 1)
    curvature = fit_curvature(model, data, task="regression", kind="kfac", fisher="exact")
    matrix = influence(model, data, q, curvature=curvature, damping=0.0, task="regression")
    h = (x * torch.linalg.solve(x.T @ x, x.T).T).sum(1)
    residual = model(q[0]).detach() - q[1]
    for z in range(n):
        keep = torch.arange(n) != z
        change = torch.linalg.lstsq(x[keep], y[keep]).solution - model.weight.detach().T
        first_order = (residual * (q[0] @ change)).sum(1)
        torch.testing.assert_close(-matrix[:, z] / (n * (1 - h[z])), first_order, rtol=1e-9, atol=1e-12)
        exact = 0.5 * ((residual + q[0] @ change).square() - residual.square()).sum(1)
        torch.testing.assert_close(first_order + 0.5 * (q[0] @ change).square().sum(1), exact, rtol=1e-9, atol=1e-12)


class NoLoss(Classification):
    """A task whose loss is not finite."""

    def output_gradient(self, outputs, labels):
        return super().output_gradient(outputs, labels) * float("nan")


def test_refusals():
    model, rows = model_of("mlp"), rows_of()
    curvature = fit_curvature(model, rows)
    with pytest.raises(StaleCurvatureError, match="belongs to weights"):
        influence(model_of("mlp", seed=9), rows, rows, curvature=curvature)
    with pytest.raises(InputError, match="query_batch is 0"):
        influence(model, rows, rows, query_batch=0)
    with pytest.raises(InputError, match="unknown relative 'theta'; known: gradient, loss, parameters"):
        influence(model, rows, rows, relative="theta")
    inputs, labels = rows.batch(torch.arange(11))
    with pytest.raises(InputError, match=r"labels are torch\.float64; classification needs integers"):
        influence(model, rows, (inputs, labels.double()), curvature=curvature)
    with pytest.raises(InputError, match="influence of row '1-0' on query '1-0' is nan; check their inputs"):
        influence(model, rows, rows, curvature=curvature, task=NoLoss())
    more = Rows.from_tensors(rows.batch(torch.arange(11))[0], rows.labels + 1)
    with pytest.raises(InputError, match="label 3 is outside the model's 3 classes"):
        influence(model, rows, more, curvature=curvature)
