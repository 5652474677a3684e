"""AUC and true positive rates on constructed scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from unlearn.errors import InputError
from unlearn.verification.attack_rates import clopper_pearson, rates, threshold_at


def test_auc_against_sklearn_and_pairs_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores, never = rng.integers(0, 6, 30).astype(float), rng.integers(-2, 4, 80).astype(float)
    found = rates(scores, never, 0.05)
    truth = np.repeat([1, 0], [30, 80])
    assert found.auc == pytest.approx(roc_auc_score(truth, np.concatenate([scores, never])))
    assert found.auc == pytest.approx(np.mean([(a > b) + 0.5 * (a == b) for a in scores for b in never]))


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("digits", [0, 1, 9])
def test_the_rate_is_the_largest_that_the_false_positive_rate_allows(fpr: float, digits: int) -> None:
    """Rejects thresholds that let ties through: rounded scores have many."""
    rng = np.random.default_rng(1)
    scores, never = (rng.normal(shift, 1, n).round(digits) for shift, n in ((1.0, 200), (0.0, 300)))
    found = rates(scores, never, fpr)
    assert found.fpr <= fpr
    truth, values = np.repeat([1, 0], [200, 300]), np.concatenate([scores, never])
    curve_fpr, curve_tpr, _ = roc_curve(truth, values, drop_intermediate=False)
    assert found.tpr == pytest.approx(curve_tpr[curve_fpr <= fpr + 1e-12].max())


def test_a_tie_with_the_threshold_is_no_hit() -> None:
    never = np.array([0.0] * 98 + [1.0, 1.0])
    assert threshold_at(never, 0.01) == 1.0
    assert rates(np.array([1.0, 1.0]), never, 0.01).tpr == 0
    assert rates(np.array([1.0, 1.0]), never, 0.02).tpr == 1


def test_rounding_of_the_share_does_not_lose_a_score() -> None:
    """0.29 * 100 is 28.999999999999996."""
    assert threshold_at(np.arange(100.0), 0.29) == 70


def test_interval_is_clopper_pearson() -> None:
    lower, upper = clopper_pearson(3, 20)
    assert stats.binom.sf(2, 20, lower) == pytest.approx(0.025)  # at least 3 hits
    assert stats.binom.cdf(3, 20, upper) == pytest.approx(0.025)  # at most 3
    assert clopper_pearson(0, 20)[0] == 0
    assert clopper_pearson(20, 20)[1] == 1


def test_bad_input() -> None:
    with pytest.raises(InputError, match="0 attacked and 1 other scores; give at least one of each"):
        rates(np.array([]), np.array([1.0]), 0.01)
    with pytest.raises(InputError, match="attack scores are NaN or infinite"):
        rates(np.array([np.nan]), np.array([1.0]), 0.01)
    with pytest.raises(InputError, match="fpr is 0; give a false positive rate above 0 and below 1"):
        rates(np.array([1.0]), np.array([1.0]), 0)
