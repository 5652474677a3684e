"""Bounds on the residual of a Newton step: above the truth, in order, and tight where a wrong constant would show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.repair.certified_cases import W, blobs, signed, true_gradient
from unlearn.repair.residual import (
    THIRD_DERIVATIVE_BOUND,
    ResidualBounds,
    gradient_change,
    residual_bounds,
    spectral_norm_bound,
)
from unlearn.training import SignedRows, draw_noise

NAMES = ("worst_case", "basic", "lipschitz", "by_row", "direct")


def one_step(left: SignedRows, gone: SignedRows, old: torch.Tensor, w: float) -> tuple[torch.Tensor, ResidualBounds]:
    new = old - left.solve(old, gradient_change(left, gone, old, old, w)[0], w)
    return new, residual_bounds(left, gone, old, new, w)


def truth(left: SignedRows, gone: SignedRows, old: torch.Tensor, new: torch.Tensor, w: float) -> float:
    """Change of the true gradient, from all rows at the old weights to the rows left at the new ones."""
    both = SignedRows(torch.cat([left.features, gone.features]), torch.cat([left.signs, gone.signs]))
    none = torch.zeros_like(old)
    change = true_gradient(left, new, w, none) - true_gradient(both, old, w, none)
    return float(np.sqrt((change * change).sum()))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("m", [1, 7])
@pytest.mark.parametrize("scale", [0.3, 6.0])
def test_every_bound_is_above_the_truth_and_the_next_one(classes: int, m: int, scale: float) -> None:
    """At any weights, optimal or not: the bounds speak of the change alone."""
    for seed in range(4):
        data = blobs(50, classes=classes, seed=seed)
        gone, left = signed(data.only(data.ids[:m])), signed(data.without(data.ids[:m]))
        old = draw_noise(gone.signs.shape[1], 5, scale, seed)
        new, bounds = one_step(left, gone, old, W)
        found = truth(left, gone, old, new, W)
        values = [getattr(bounds, name) for name in NAMES]
        assert values == sorted(values, reverse=True)
        assert found <= bounds.direct <= found + 2 * bounds.rounding
        assert bounds.rounding < 1e-11


def tight(n: int = 200) -> tuple[SignedRows, SignedRows, torch.Tensor]:
    """One number a row, all rows alike, at the output where |l'''| is largest: Taylor's bound is attained."""
    left = SignedRows(torch.ones(n, 1).double(), torch.ones(n, 1).double())
    gone = SignedRows(torch.full((1, 1), 0.1).double(), torch.ones(1, 1).double())
    p = 0.5 + 0.5 / math.sqrt(3)
    return left, gone, torch.full((1, 1), math.log(p / (1 - p))).double()


def test_the_lipschitz_bound_is_attained() -> None:
    """Rejects 0.0963 halved, and a norm of X or X D that is too small; a lost 1/2 is seen from above."""
    left, gone, old = tight()
    new, bounds = one_step(left, gone, old, 1e-9)
    found = truth(left, gone, old, new, 1e-9)
    assert found <= bounds.lipschitz <= 1.01 * found
    assert found <= bounds.by_row <= 1.0001 * found


def test_the_basic_bound_is_a_quarter_of_its_three_norms() -> None:
    left, gone, old = tight(50)
    new, bounds = one_step(left, gone, old, W)
    step = float(new - old)
    assert bounds.basic == pytest.approx(0.25 * math.sqrt(50) * abs(step) * math.sqrt(50) * abs(step), rel=1e-9)
    reach = (1 + W * float(old)) / (W * 50)
    assert bounds.worst_case == pytest.approx(0.25 * 50 * reach**2, rel=1e-9)


def test_the_third_derivative_is_at_most_what_is_stated_and_attains_it() -> None:
    z = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    p = torch.sigmoid(z)
    largest = float((p * (1 - p) * (1 - 2 * p)).abs().max())
    assert largest <= THIRD_DERIVATIVE_BOUND <= largest * (1 + 1e-8)
    assert pytest.approx(0.0962, abs=1e-4) == THIRD_DERIVATIVE_BOUND


def test_columns_combine_as_the_root_of_squares() -> None:
    """One noise vector over all columns: rejects the largest column, and a sum that would waste budget."""
    data = blobs(40, classes=4)
    gone, left = signed(data.only(["3", "8"])), signed(data.without(["3", "8"]))
    old = draw_noise(4, 5, 2.0, 0)
    _, joint = one_step(left, gone, old, W)
    parts = []
    for k in range(4):
        column = [SignedRows(rows.features, rows.signs[:, k : k + 1]) for rows in (left, gone)]
        parts.append(one_step(*column, old[k : k + 1], W)[1])
    for name in NAMES:
        squares = math.sqrt(sum(getattr(part, name) ** 2 for part in parts))
        assert getattr(joint, name) == pytest.approx(squares, rel=1e-8)


def test_the_step_is_exact_where_the_loss_is_quadratic() -> None:
    """Outputs near 0 see a parabola of curvature 1/4: the step is ridge regression's, and next to nothing is left."""
    data, w = blobs(40, classes=2), 1e-2
    gone, left = (
        SignedRows(0.01 * rows.features, rows.signs) for rows in (signed(data.only(["1"])), signed(data.without(["1"])))
    )
    old = torch.zeros(1, 5).double()
    new, bounds = one_step(left, gone, old, w)
    X, pulled = left.features, 0.5 * gone.signs[0, 0] * gone.features[0]
    ridge = torch.linalg.solve(X.T @ X / 4 + w * 39 * torch.eye(5).double(), -pulled)
    torch.testing.assert_close(new[0], ridge, rtol=1e-12, atol=0)
    assert bounds.direct - bounds.rounding < 1e-13 * float(pulled.norm())


def test_the_spectral_norm_is_bounded_from_above_where_power_iteration_is_not() -> None:
    """Two nearly equal singular values: 20 power iterations of X'X end below the larger one."""
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(30, 4, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    X = left @ torch.diag(torch.tensor([1.0, 0.99, 0.98, 0.5]).double()) @ right.T
    x = torch.randn(4, generator=generator, dtype=torch.float64)
    for _ in range(20):
        x = X.T @ (X @ (x / x.norm()))
    assert float(x.norm()) ** 0.5 < 0.9999
    assert 1 - 1e-15 <= spectral_norm_bound(X) <= 1 + 1e-12
    assert spectral_norm_bound(torch.zeros(3, 2).double()) == 0
