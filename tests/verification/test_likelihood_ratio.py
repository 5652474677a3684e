"""Likelihood ratios by hand, on small normal distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from unlearn.errors import InputError
from unlearn.verification.likelihood_ratio import (
    ENOUGH_FOR_OWN_SPREAD,
    Gaussians,
    calibrated_p,
    log_likelihood_ratio,
    offline_score,
    two_sided_p,
)

LEARNED = np.array([[4.0, 1.0], [6.0, 3.0], [5.0, 2.0]])  # means 5 2, variances 1 1
NEVER = np.array([[0.0, -2.0], [4.0, 2.0], [2.0, 0.0]])  # means 2 0, variances 4 4


def density(x: float, mean: float, variance: float) -> float:
    return math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def test_online_ratio_by_hand() -> None:
    """Rejects the inverse ratio, a variance in place of the deviation, and n in the denominator of the variance."""
    phi = np.array([4.5, -1.0])
    found = log_likelihood_ratio(phi, Gaussians.fit(LEARNED), Gaussians.fit(NEVER))
    wanted = [
        math.log(density(4.5, 5, 1) / density(4.5, 2, 4)),
        math.log(density(-1, 2, 1) / density(-1, 0, 4)),
    ]
    assert found.dtype == np.float64
    assert found == pytest.approx(wanted, rel=1e-12)
    assert found[0] > 0 > found[1]


def test_offline_score_orders_rows_as_the_papers_probability() -> None:
    phi, never = np.array([3.0, -5.0]), Gaussians.fit(NEVER)
    score = offline_score(phi, never)
    assert score == pytest.approx([0.5, -2.5])
    paper = [1 - stats.norm.sf(3.0, 2, 2), 1 - stats.norm.sf(-5.0, 0, 2)]  # 1 - Pr[Z > phi]
    assert stats.norm.cdf(score) == pytest.approx(paper)


def test_few_models_share_one_spread_and_many_do_not() -> None:
    two = np.array([[0.0, 0.0], [2.0, 4.0]])  # variances 2, 8
    assert Gaussians.fit(two).std == pytest.approx([5**0.5, 5**0.5])
    assert Gaussians.fit(two, shared=False).std == pytest.approx([2**0.5, 8**0.5])
    many = np.tile(two, (ENOUGH_FOR_OWN_SPREAD // 2, 1))
    assert Gaussians.fit(many).std == pytest.approx(many.std(0, ddof=1))


def test_two_sided_p_is_the_predictive_t_test() -> None:
    """Rejects a plug-in normal, one tail, and the spread of the mean in place of that of a further model."""
    phi = np.array([7.0, -3.0])
    t = np.array([5 / (2 * math.sqrt(4 / 3)), 3 / (2 * math.sqrt(4 / 3))])
    assert two_sided_p(phi, NEVER) == pytest.approx(2 * stats.t.sf(t, 2))
    assert two_sided_p(2 * NEVER.mean(0) - phi, NEVER) == pytest.approx(two_sided_p(phi, NEVER))  # the other side


def test_two_sided_p_is_even_where_phi_is_normal() -> None:
    draws = np.random.default_rng(0).normal(3, 2, size=(6, 20_000))
    p = two_sided_p(draws[0], draws[1:])
    for level in (0.01, 0.05, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=4 * math.sqrt(level / 20_000))


def test_calibrated_p_is_a_rank_among_innocent_models() -> None:
    """With heavy tails the t test calls five times too many innocent rows conspicuous; ranks do not."""
    draws = np.random.default_rng(1).standard_t(3, size=(13, 40_000))
    assert (two_sided_p(draws[0], draws[1:]) <= 0.002).mean() > 0.01
    assert (calibrated_p(draws[0], draws[1:]) <= 0.002).mean() < 0.003
    own = [two_sided_p(NEVER[k], np.delete(NEVER, k, 0)) for k in range(3)]
    asked = np.array([100.0, 0.0])
    ranks = [(1 + sum((one <= p).sum() for one in own)) / 7 for p in two_sided_p(asked, NEVER)]
    assert calibrated_p(asked, NEVER) == pytest.approx(ranks)
    assert ranks[0] == 1 / 7


def test_bad_input() -> None:
    with pytest.raises(InputError, match="1 models show no spread of phi; give at least two of each kind"):
        Gaussians.fit(NEVER[:1])
    with pytest.raises(InputError, match="give the same phi; shadow models need different seeds"):
        Gaussians.fit(np.ones((3, 2)))
    with pytest.raises(InputError, match="2 models that never saw the rows can not be ranked; give at least three"):
        calibrated_p(NEVER[0], NEVER[1:])
