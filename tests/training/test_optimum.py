"""Training to the optimum against closed forms and first-order conditions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from training_cases import network, rows_of

from unlearn.data import Rows, load_data
from unlearn.errors import InputError
from unlearn.predict import predict
from unlearn.training import train_to_optimum


def doubled() -> Rows:
    inputs, labels = rows_of().batch(torch.arange(20))
    return Rows.from_tensors(inputs.double(), labels)


def test_logistic_regression_ends_where_the_gradient_is_zero():
    # rejects weight decay without its half, of the weights alone, or of the summed loss
    rows = doubled()
    model, record = train_to_optimum(nn.Linear(4, 3).double(), rows, weight_decay=0.02)
    x, y = rows.batch(torch.arange(20))
    decay = 0.02 / 2 * sum(p.square().sum() for p in model.parameters())
    gradient = torch.autograd.grad(F.cross_entropy(model(x), y) + decay, list(model.parameters()))
    assert max(float(g.abs().max()) for g in gradient) < 1e-10
    assert (record.optimizer, record.weight_decay, record.damping()) == ("lbfgs", 0.02, 0.0)
    assert record.data_fingerprint == rows.fingerprint
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("outputs", [1, 2])
def test_ridge_regression_has_its_closed_form(outputs: int):
    # the mean of half the squared error + w/2 ||theta||^2, bias included: (X'X / n + w) theta = X'y / n
    x = doubled().batch(torch.arange(20))[0]
    y = torch.randn(20, outputs, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 3
    rows = Rows.from_tensors(x, y)
    model, _ = train_to_optimum(nn.Linear(4, outputs).double(), rows, weight_decay=0.1, task="regression")
    with_one = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], 1)
    normal = with_one.T @ with_one / 20 + 0.1 * torch.eye(5, dtype=torch.float64)
    theta = torch.linalg.solve(normal, with_one.T @ y / 20)
    found = torch.cat([model.weight.T, model.bias[None]]).detach()  # type: ignore[operator, index]
    torch.testing.assert_close(found, theta, rtol=1e-8, atol=1e-9)


def test_the_tolerance_is_reached_on_real_data():
    # rejects a line search that stalls at gradients of 1e-9, where the objective no longer changes in its digits
    rows = load_data("breast-cancer")
    inputs, labels = rows.batch(torch.arange(len(rows)))
    doubled = Rows.from_tensors(inputs.double(), labels)
    torch.manual_seed(0)
    model, record = train_to_optimum(nn.Linear(30, 2).double(), doubled, weight_decay=1e-3, gradient_tolerance=1e-11)
    assert record.steps < 500
    assert torch.isfinite(model.weight).all()


def test_a_model_that_stands_at_its_optimum_stays_there():
    # rejects a record of 0 steps, which is refused
    model, _ = train_to_optimum(nn.Linear(4, 3).double(), doubled(), weight_decay=0.1)
    again, record = train_to_optimum(model, doubled(), weight_decay=0.1)
    assert record.steps >= 1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_tolerance_that_is_not_reached_is_an_error_that_says_what_to_do():
    with pytest.raises(InputError, match=r"the gradient is still .* after 3 iterations .*float64"):
        train_to_optimum(network().double(), doubled(), weight_decay=0.01, iterations=3)


def test_predict_leaves_the_model_as_found_and_its_outputs_serve_as_constants():
    # rejects training mode, and inference tensors, which autograd refuses
    model = nn.Sequential(*network(), nn.Dropout(0.5))
    rows = rows_of()
    outputs = predict(model, rows, batch_size=3)
    assert outputs.shape == (20, 3)
    torch.testing.assert_close(outputs, network()(rows.batch(torch.arange(20))[0]).detach())
    assert model.training
    assert all(module.training for module in model)
    assert not outputs.requires_grad
    scale = torch.ones(3, requires_grad=True)
    (outputs * scale).sum().backward()
    torch.testing.assert_close(scale.grad, outputs.sum(0))
