import copy

import numpy as np
import pytest
import torch
from detect_cases import CASES, gradients, model_of, rows_of
from torch import nn

from unlearn.curvature import DenseSolver, dot, fit_curvature, loss_gradient, weights_digest
from unlearn.data import Rows
from unlearn.detect import harm, influence, layer_harm, layer_self_influence, self_influence
from unlearn.errors import InputError, RowNotFoundError, StaleCurvatureError
from unlearn.tasks import Classification


@pytest.mark.parametrize("case", CASES)
def test_harm_is_the_mean_influence_on_the_trusted_rows(case):
    # rejects the other sign, a sum, means of absolute values or of normalised queries, and 1/n
    model, rows, trusted = model_of(case), rows_of(), rows_of(5, seed=2)
    options = {"curvature": fit_curvature(model, rows), "damping": 0.03, "weight_decay": 0.02}
    scores = harm(model, rows, trusted, **options)
    matrix = influence(model, rows, trusted, **options)
    np.testing.assert_allclose(scores.values, matrix.mean(0).numpy(), rtol=1e-9, atol=1e-13)
    assert scores.method == "harm"
    assert scores.options["trusted_rows"] == 5
    assert scores.options["cost_epochs"] == pytest.approx(1 + 5 / 11)


class Recurrent(nn.Module):
    """A module whose weights are used in no plain product."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNN(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.cell(x.reshape(len(x), 4, 3))[1][0])


@pytest.mark.parametrize("recurrent", [False, True])
def test_any_solver_with_one_solve(recurrent):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Recurrent().double() if recurrent else model_of("mlp")
    rows, trusted = rows_of(), rows_of(5, seed=2)
    solver = DenseSolver(model, rows)
    mean = {name: part / 5 for name, part in loss_gradient(model, trusted).items()}
    pull = solver.solve(mean, damping=0.05)
    expected = [-dot(pull, g) for g in gradients(model, rows)]
    scores = harm(model, rows, trusted, solver="dense", damping=0.03, weight_decay=0.02)
    np.testing.assert_allclose(scores.values, expected, rtol=1e-9, atol=1e-13)
    assert scores.options["cost_epochs"] == pytest.approx(1 + 5 / 11 + solver.cost / 33)
    by_cg = harm(model, rows, trusted, solver="cg", damping=0.03, weight_decay=0.02)
    np.testing.assert_allclose(by_cg.values, expected, rtol=1e-3, atol=1e-5)


def test_harmful_is_positive():
    # a small step of gradient descent along H^-1 g_z: it raises the trusted loss where the score is above 0
    model, rows, trusted = model_of("mlp"), rows_of(30), rows_of(20, seed=7)
    curvature = fit_curvature(model, rows)
    scores = harm(model, rows, trusted, curvature=curvature, damping=0.05)
    inputs, labels = trusted.batch(torch.arange(20))

    def loss_after_more_weight_on(row):
        there = copy.deepcopy(model)
        step = curvature.solve(loss_gradient(there, rows.only([row])), damping=0.05)
        with torch.no_grad():
            for name, parameter in there.named_parameters():
                parameter -= 1e-4 * step[name]
            return nn.functional.cross_entropy(there(inputs), labels).item()

    before = nn.functional.cross_entropy(model(inputs), labels).item()
    worst, best = scores.top(1)[0], scores.top(30)[-1]
    assert worst[1] > 0 > best[1]
    assert loss_after_more_weight_on(worst[0]) - before == pytest.approx(1e-4 * worst[1], rel=0.02)
    assert loss_after_more_weight_on(best[0]) - before == pytest.approx(1e-4 * best[1], rel=0.02)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_and_order_change_nothing(batch_size):
    model, rows, trusted = model_of("cnn"), rows_of(), rows_of(5, seed=2)
    curvature = fit_curvature(model, rows)
    back = rows.at(torch.arange(10, -1, -1))
    whole = harm(model, rows, trusted, curvature=curvature)
    parts = harm(model, back, trusted, curvature=curvature, batch_size=batch_size)
    np.testing.assert_allclose(parts.values[::-1], whole.values, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("case", ["mlp", "cnn", "grouped", "frozen-bias"])
def test_layers_sum_to_the_scores(case):
    # each layer against its own dense solve; the self-influence sums bit for bit
    model, rows, trusted = model_of(case), rows_of(), rows_of(5, seed=2)
    curvature = fit_curvature(model, rows)
    options = {"curvature": curvature, "damping": 0.03, "weight_decay": 0.02}
    own, harms = layer_self_influence(model, rows, **options), layer_harm(model, rows, trusted, **options)
    scores = self_influence(model, rows, **options)
    np.testing.assert_array_equal(own.total().values, scores.values)
    assert own.total().method == scores.method
    assert own.options == scores.options
    np.testing.assert_allclose(harms.total().values, harm(model, rows, trusted, **options).values, rtol=1e-9)
    mean = {name: part / 5 for name, part in loss_gradient(model, trusted).items()}
    for i, g in enumerate(gradients(model, rows)):
        for column, (name, block) in enumerate(curvature.blocks.items()):
            x = block.solve(block.layer.block(g), 0.05)
            part = float((block.layer.block(g) * x).sum())
            assert own.values[i, column] == pytest.approx(part, rel=1e-9)
            assert own.layer(name).values[i] == own.values[i, column]
            part = -float((block.layer.block(mean) * x).sum())
            assert harms.values[i, column] == pytest.approx(part, rel=1e-8, abs=1e-13)
    assert (own.values >= 0).all()
    assert own.layers == tuple(curvature.blocks)


def test_which_layers_carry_the_score_of_some_rows():
    model, rows = model_of("mlp"), rows_of()
    table = layer_self_influence(model, rows)
    assert table.options["cost_epochs"] == 3
    chosen = [rows.ids[k] for k in (7, 2)]
    for column, (name, value) in enumerate(table.of_layers(chosen).items()):
        assert table.layers[column] == name
        assert value == pytest.approx(table.values[7, column] + table.values[2, column])
    assert sum(table.of_layers().values()) == pytest.approx(table.total().values.sum())
    with pytest.raises(RowNotFoundError, match="no rows 'x' in the table; its ids look like '1-0'"):
        table.of_layers(["x"])
    with pytest.raises(InputError, match="no layer '3' in the table"):
        table.layer("3")


class NoLoss(Classification):
    """A task whose loss is not finite."""

    def output_gradient(self, outputs, labels):
        return super().output_gradient(outputs, labels) * float("nan")


@pytest.mark.parametrize("score", [harm, layer_harm])
def test_refusals(score):
    model, rows = model_of("mlp"), rows_of()
    inputs, labels = rows.batch(torch.arange(11))
    curvature, digest = fit_curvature(model, rows), weights_digest(model)
    with pytest.raises(InputError, match="label 3 is outside the model's 3 classes"):
        score(model, rows, Rows.from_tensors(inputs, labels + 1), curvature=curvature)
    with pytest.raises(InputError, match=r"labels are torch\.float64; classification needs integers"):
        score(model, rows, (inputs, labels.double()), curvature=curvature)
    with pytest.raises(InputError, match="damping is -1"):
        score(model, rows, rows, curvature=curvature, damping=-1)
    with pytest.raises(InputError, match="batch_size is 0"):
        score(model, rows, rows, batch_size=0)
    with pytest.raises(StaleCurvatureError, match="belongs to weights"):
        score(model_of("mlp", seed=4), rows, rows, curvature=curvature)
    with pytest.raises(InputError, match=r"score 'harm' of row '1-0'.* is nan; check its input"):
        score(model, rows, rows, curvature=curvature, task=NoLoss())
    assert weights_digest(model) == digest
