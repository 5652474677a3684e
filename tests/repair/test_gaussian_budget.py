"""What Gaussian noise hides, against integrals of the two densities."""

from __future__ import annotations

import math

import pytest
from scipy.integrate import quad
from scipy.stats import norm

from unlearn.errors import InputError
from unlearn.repair.gaussian_budget import largest_shift, least_epsilon, shift_delta, theorem_shift


@pytest.mark.parametrize("shift", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 2.0])
def test_delta_is_the_integral_of_what_exceeds_the_odds(shift: float, epsilon: float) -> None:
    """Rejects a swapped sign of a / 2, and e^epsilon on the wrong term."""
    start = epsilon / shift + shift / 2  # where the ratio of densities is e^epsilon
    excess, _ = quad(lambda x: norm.pdf(x - shift) - math.exp(epsilon) * norm.pdf(x), start, start + 40, limit=500)
    assert shift_delta(shift, epsilon) == pytest.approx(excess, rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 8.0, 30.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_the_largest_shift_is_allowed_and_no_more(epsilon: float, delta: float) -> None:
    shift = largest_shift(epsilon, delta)
    assert shift_delta(shift, epsilon) <= delta < shift_delta(shift * (1 + 1e-6), epsilon)
    assert least_epsilon(shift, delta) == pytest.approx(epsilon, rel=1e-6)


def test_the_theorems_constant_is_safe_for_moderate_epsilon_and_not_for_large() -> None:
    """Why the exact form is used: 1.5 exp(-c^2 / 2) is no bound at epsilon 10."""
    assert theorem_shift(1.0, 1e-4) == pytest.approx(1 / 4.3853, rel=1e-4)
    assert all(theorem_shift(e, 1e-4) < largest_shift(e, 1e-4) for e in (0.01, 0.1, 1.0, 4.0, 8.0))
    assert shift_delta(theorem_shift(10.0, 1e-4), 10.0) > 1e-4


def test_a_shift_within_delta_costs_no_epsilon() -> None:
    assert least_epsilon(2e-4, 1e-4) == 0 < least_epsilon(3e-4, 1e-4)


@pytest.mark.parametrize(
    ("epsilon", "delta", "message"),
    [(0, 0.1, "epsilon is 0"), (99, 0.1, "at most 50"), (1, 0, "delta is 0"), (1, 1, "between 0 and 1")],
)
def test_what_is_not_allowed_is_refused(epsilon: float, delta: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        largest_shift(epsilon, delta)
