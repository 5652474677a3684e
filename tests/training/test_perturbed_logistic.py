"""The perturbed objective: its derivatives, its optimum, and the bounds on rounding."""

from __future__ import annotations

import math

import pytest
import torch

from tests.repair.certified_cases import W, blobs, signed, true_gradient
from unlearn.errors import ConvergenceError
from unlearn.training import SignedRows, draw_noise, train_perturbed
from unlearn.training.perturbed_logistic import objective_gradient


@pytest.mark.parametrize("classes", [2, 3])
def test_derivatives_are_those_of_autograd(classes: int) -> None:
    """Rejects a lost sign y, 0/1 labels, and a mean for the sum."""
    rows = signed(blobs(20, classes=classes))
    weight = torch.randn(*(rows.signs.shape[1], 5), dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(flat: torch.Tensor) -> torch.Tensor:
        outputs = rows.features @ flat.reshape(weight.shape).T
        targets = (rows.signs + 1) / 2
        return torch.nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="sum")

    gradient = torch.autograd.functional.jacobian(loss, weight.flatten()).reshape(weight.shape)
    torch.testing.assert_close(rows.gradient(weight), gradient)
    torch.testing.assert_close(rows.losses(weight).sum(), loss(weight.flatten()))
    dense = torch.autograd.functional.hessian(loss, weight.flatten())
    ours = [rows.hessian(rows.curvatures(weight)[:, k], W) for k in range(len(weight))]
    torch.testing.assert_close(torch.block_diag(*ours), dense + W * len(rows) * torch.eye(len(dense)).double())


def test_of_two_classes_the_second_is_positive() -> None:
    assert signed(blobs(4, classes=2)).signs.tolist() == [[-1.0], [1.0], [-1.0], [1.0]]


@pytest.mark.parametrize("sigma", [0.5, 20.0])
def test_the_noise_is_the_gradient_of_the_unperturbed_sum(sigma: float) -> None:
    """Rejects b / n, a missing b, the other sign, and weight decay of the mean put on the sum."""
    rows = signed(blobs())
    noise = draw_noise(3, 5, sigma, 0)
    weight, residual = train_perturbed(rows, weight_decay=W, noise=noise)
    sum_of_losses = rows.gradient(weight) + W * len(rows) * weight
    torch.testing.assert_close(sum_of_losses, -noise, rtol=0, atol=residual)
    assert residual < 1e-11
    plain, _ = train_perturbed(rows, weight_decay=W, noise=torch.zeros_like(noise))
    assert float(((weight - plain) * noise).sum()) < 0  # the linear term pushes against the noise


def test_the_optimum_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    rows = signed(blobs(classes=2))
    weight, _ = train_perturbed(rows, weight_decay=W, noise=torch.zeros(1, 5).double())
    other = LogisticRegression(C=1 / (W * len(rows)), fit_intercept=False, tol=1e-12, max_iter=10_000)
    other.fit(rows.features.numpy(), rows.signs[:, 0].numpy())
    torch.testing.assert_close(weight, torch.from_numpy(other.coef_), rtol=1e-6, atol=1e-8)


def test_the_stated_rounding_covers_the_error() -> None:
    """Against 80 bits, at large weights and cancelling sums, where rounding is largest."""
    rows = signed(blobs(400))
    for scale in (0.1, 30.0, 1e3):
        weight = scale * draw_noise(3, 5, 1.0, 2)
        noise = draw_noise(3, 5, 5.0, 3)
        ours, rounding = objective_gradient(rows, weight, W, noise)
        error = true_gradient(rows, weight, W, noise) - ours.numpy()
        assert float((error * error).sum()) ** 0.5 <= rounding < 1e-7 * (1 + scale)


def test_noise_depends_on_its_seed_only_and_scales_with_sigma() -> None:
    state = torch.get_rng_state()
    draws = draw_noise(40, 50, 2.0, 7)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(draws, draw_noise(40, 50, 2.0, 7))
    assert not torch.equal(draws, draw_noise(40, 50, 2.0, 8))
    assert float(draws.std()) == pytest.approx(2.0, abs=5 * 2 / math.sqrt(2 * draws.numel()))  # rejects sigma^2


def test_an_optimum_that_is_not_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = signed(blobs())
    monkeypatch.setattr("unlearn.training.perturbed_logistic.STEPS", 1)
    with pytest.raises(ConvergenceError, match=r"after 1 Newton steps .* more weight decay"):
        train_perturbed(rows, weight_decay=W, noise=draw_noise(3, 5, 1.0, 0))


def test_a_singular_hessian_is_refused_in_a_line() -> None:
    rows = SignedRows(torch.zeros(2, 1).double(), torch.ones(2, 1).double())
    with pytest.raises(ConvergenceError, match="singular in float64 with weight_decay 0"):
        rows.solve(torch.zeros(1, 1).double(), torch.ones(1, 1).double(), 0.0)
