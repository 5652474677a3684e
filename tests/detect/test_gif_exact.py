import numpy as np
import pytest
import torch
from detect_cases import gradients, model_of, rows_of
from torch import nn

from unlearn.curvature import DenseSolver, dot, fit_curvature, gauss_newton, weights_digest
from unlearn.curvature.damped_factors import damped_factors
from unlearn.curvature.units import common_units, unit_selection
from unlearn.data import Rows
from unlearn.detect import gif_exact, gif_scores
from unlearn.errors import ConvergenceError, InputError, StaleCurvatureError

TIGHT = {"tolerance": 1e-13, "iterations": 5000}
METHODS = ["gif", "frozen", "projected"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("select", ["outputs", "gradients"])
@pytest.mark.parametrize("scope", ["row", "data"])
@pytest.mark.parametrize("case", ["mlp", "grouped", "frozen-bias"])
def test_equals_the_closed_form_on_the_same_operator(case, scope, select, method):
    # two ways to the same numbers: LSMR on H_d[:, S], and Kronecker algebra; H_d is B (x) C in both
    model, rows = model_of(case), rows_of(5)
    curvature = fit_curvature(model, rows)
    options = {"ratio": 0.4, "select": select, "scope": scope, "method": method}
    closed = gif_scores(model, rows, curvature=curvature, damping=0.03, weight_decay=0.02, **options)
    exact = gif_exact(model, rows, operator=damped_factors(curvature, 0.05), damping=0.0, **options, **TIGHT)
    np.testing.assert_allclose(exact.values, closed.values, rtol=1e-8, atol=1e-10)
    assert exact.options["negative_share"] == closed.options["negative_share"]
    assert exact.method == closed.method.replace("gif", "gif-exact")


class Bag(nn.Module):
    """An embedding (A is diagonal), a bare parameter and a normalisation (one column each), and a Linear layer."""

    def __init__(self):
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(7, 5), nn.LayerNorm(5), nn.Linear(5, 3)
        self.shift = nn.Parameter(torch.ones(5) / 3)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.table(x) + self.shift)).mean(1))


@pytest.mark.parametrize("method", METHODS)
def test_embeddings_norms_and_bare_parameters(method):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, data = Bag().double(), (torch.randint(7, (9, 4)), torch.randint(3, (9,)))
    curvature = fit_curvature(model, data)
    assert len(curvature.layers) == 4
    options = {"ratio": 0.4, "method": method}
    closed = gif_scores(model, data, curvature=curvature, damping=0.05, **options)
    exact = gif_exact(model, data, operator=damped_factors(curvature, 0.05), damping=0.0, **options, **TIGHT)
    np.testing.assert_allclose(exact.values, closed.values, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", [*METHODS, "full"])
def test_any_coordinates_on_the_exact_matrix(method):
    # rejects a curvature by blocks (the columns cross layers), and damping without weight decay
    model, rows = model_of("mlp"), rows_of(5)
    found = gradients(model, rows)
    draw = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(part.shape, generator=draw) < 0.2 for name, part in found[0].items()}
    H = DenseSolver(model, rows).matrix
    H = H + 0.05 * torch.eye(len(H), dtype=torch.float64)
    S = torch.cat([mask.flatten() for mask in masks.values()])
    given = {} if method == "full" else {"selection": masks}
    scores = gif_exact(model, rows, damping=0.03, weight_decay=0.02, method=method, **given, **TIGHT)
    for value, vector in zip(scores.values, found, strict=True):
        g = torch.cat([part.flatten() for part in vector.values()])
        if method == "gif":
            expected = g[S] @ torch.linalg.lstsq(H[:, S], g[:, None], driver="gelsd").solution[:, 0]
        elif method == "frozen":
            expected = g[S] @ torch.linalg.solve(H[S][:, S], g[S])
        else:
            x = torch.linalg.solve(H, g)
            expected = g[S] @ x[S] if method == "projected" else g @ x
        assert value == pytest.approx(float(expected), rel=1e-7)


def test_units_are_those_that_are_masked():
    model, rows = model_of("mlp"), rows_of(5)
    G, curvature = gauss_newton(model, rows), fit_curvature(model, rows)
    units = common_units(model, rows, curvature.layers, ratio=0.3)
    by_mask = gif_exact(model, rows, selection=unit_selection(curvature.layers, units), damping=0.1)
    by_ratio = gif_exact(model, rows, operator=G, ratio=0.3, scope="data", damping=0.1)
    np.testing.assert_allclose(by_ratio.values, by_mask.values, rtol=1e-10)
    products = by_ratio.options["products"]
    assert G.cost == 4 * 5 * products
    assert by_ratio.options["cost_epochs"] == pytest.approx(3 + products * 4 / 3)
    assert by_mask.options["cost_epochs"] == pytest.approx(1 + products * 4 / 3)
    assert by_mask.options["ratio"] is None


def test_full_equals_self_influence():
    model, rows = model_of("mlp"), rows_of(5)
    curvature = fit_curvature(model, rows)
    scores = gif_exact(model, rows, operator=curvature, method="full", damping=0.05)
    expected = [dot(g, curvature.solve(g, damping=0.05)) for g in gradients(model, rows)]
    np.testing.assert_allclose(scores.values, expected, rtol=1e-10)


def test_short_of_the_tolerance_is_an_error():
    model, rows = model_of("mlp"), rows_of(5)
    with pytest.raises(ConvergenceError, match="LSMR stopped after 2 iterations above tolerance 1e-10"):
        gif_exact(model, rows, ratio=0.3, damping=1e-3, tolerance=1e-10, iterations=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither of selection and ratio are given"),
        ({"ratio": 0.3, "selection": {}}, "both of selection and ratio are given"),
        ({"selection": {}}, "the selection is empty"),
        ({"ratio": 1.2}, "ratio is 1.2"),
        ({"ratio": 0.3, "select": "output"}, "did you mean 'outputs'"),
        ({"ratio": 0.3, "scope": "rows"}, "did you mean 'row'"),
        ({"ratio": 0.3, "method": "frosen"}, "did you mean 'frozen'"),
        ({"ratio": 0.3, "method": "full"}, "method 'full' freezes nothing"),
        ({"ratio": 0.3, "damping": float("nan")}, "damping is nan"),
        ({"ratio": 0.3, "weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"ratio": 0.3, "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        gif_exact(model_of("mlp"), rows_of(), **{"damping": 0.1, **options})


def test_refusals():
    model, rows = model_of("mlp"), rows_of()
    inputs, labels = rows.batch(torch.arange(11))
    digest = weights_digest(model)
    with pytest.raises(StaleCurvatureError, match="belongs to weights"):
        gif_exact(model_of("mlp", seed=4), rows, operator=fit_curvature(model, rows), ratio=0.3, damping=0.1)
    with pytest.raises(InputError, match="label 3 is outside the model's 3 classes"):
        gif_exact(model, Rows.from_tensors(inputs, labels + 1), ratio=0.3, damping=0.1)
    with pytest.raises(InputError, match=r"labels are torch\.float64; classification needs integers"):
        gif_exact(model, (inputs, labels.double()), ratio=0.3, damping=0.1)
    assert weights_digest(model) == digest
