"""Epsilon of the 2023 unlearning challenge."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from unlearn.errors import InputError
from unlearn.verification.epsilon import epsilon_by_chance, epsilons


def slow(unlearned: np.ndarray, never: np.ndarray, delta: float) -> float:
    """Every interval and its complement, by counting."""
    edges = [*sorted({*unlearned, *never}), math.inf]
    best, apart = 0.0, False
    for low, high in itertools.combinations(edges, 2):
        for inside in (True, False):
            fpr = np.mean(((never >= low) & (never < high)) == inside)
            fnr = np.mean(((unlearned >= low) & (unlearned < high)) != inside)
            apart |= fpr == 0 and fnr == 0
            if fpr > 0 and fnr > 0:
                for a, b in ((fpr, fnr), (fnr, fpr)):
                    if 1 - delta - a > 0:
                        best = max(best, math.log(1 - delta - a) - math.log(b))
    return math.inf if apart else best


@pytest.mark.parametrize("delta", [0.0, 0.05])
def test_against_a_slow_count_of_every_interval(delta: float) -> None:
    rng = np.random.default_rng(0)
    unlearned = rng.normal([0.0, 0.5, 3.0, 0.0, 9.0], [1.0, 1.0, 1.0, 4.0, 1.0], size=(12, 5)).round(1)
    never = rng.normal(size=(10, 5)).round(1)
    found = epsilons(unlearned, never, delta=delta)
    wanted = [min(slow(unlearned[:, i], never[:, i], delta), found.cap) for i in range(5)]
    assert found.values == pytest.approx(wanted)
    assert found.values[4] == found.cap


def test_two_known_normal_distributions() -> None:
    """With many models epsilon is the largest log ratio of tails that so many models can see."""
    n, shift = 400, 1.0
    grid = (np.arange(n) + 0.5) / n
    never, unlearned = stats.norm.ppf(grid)[:, None], stats.norm.ppf(grid)[:, None] + shift
    (found,) = epsilons(unlearned, never).values
    t = np.linspace(-3, 4, 2001)
    fpr, fnr = stats.norm.sf(t), stats.norm.cdf(t - shift)
    seen = (fpr >= 0.5 / n) & (fnr >= 0.5 / n)
    exact = np.maximum(np.log((1 - fpr) / fnr), np.log((1 - fnr) / fpr))
    assert found == pytest.approx(exact[seen].max(), abs=0.7)  # the last model in the tail decides
    middle = np.abs(t - 0.5).argmin()
    assert found > exact[middle]
    same = epsilons(never, never + 1e-9).values
    assert same[0] < 0.75


def test_a_wider_distribution_is_told_apart_though_its_mean_is_the_same() -> None:
    """Rejects a single threshold: half remembered and half over-forgotten is no unlearning."""
    never = np.linspace(-1, 1, 32)[:, None]
    wide = np.concatenate([np.linspace(-9, -5, 16), np.linspace(5, 9, 16)])[:, None]
    found = epsilons(wide, never)
    assert found.values[0] == found.cap


@pytest.mark.parametrize(("n", "m"), [(8, 8), (32, 32), (16, 8)])
def test_the_cap_is_near_log_n(n: int, m: int) -> None:
    apart = epsilons(np.arange(n)[:, None] + 100.0, np.arange(m)[:, None] * 1.0)
    assert apart.values[0] == apart.cap == pytest.approx(max(math.log((1 - 1 / m) * n), math.log((1 - 1 / n) * m)))
    assert (apart.models, apart.to_dict()["at_cap"]) == ((n, m), 1)
    if n == m:
        assert apart.cap == pytest.approx(math.log(n - 1))


def test_forgetting_quality_halves_with_each_bin() -> None:
    found = epsilons(np.arange(8.0)[:, None] + 100, np.arange(8.0)[:, None])
    assert found.cap == pytest.approx(math.log(7))  # 1.95: bin 3
    assert found.quality == pytest.approx(2.0**-3)


def test_by_chance_is_what_equal_models_show_and_is_reproducible() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 16, 40))
    chance = epsilon_by_chance(a, b, seed=3)
    assert chance == epsilon_by_chance(a, b, seed=3)
    assert chance == pytest.approx(float(np.median(epsilons(a, b).values)), abs=0.3)
    assert np.median(epsilons(a + 2, b).values) > chance + 0.3


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"give \(models, rows\) with the same rows"):
        epsilons(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(InputError, match="1 and 3 models show no epsilon"):
        epsilons(np.zeros((1, 2)), np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"delta is 0\.5"):
        epsilons(np.zeros((3, 2)), np.zeros((3, 2)), delta=0.5)
