import numpy as np
import pytest

from unlearn.detect import Scores, count_cutoff, estimate_cutoff
from unlearn.errors import InputError

N = 1500


def mixture(share, seed=0):
    """Scores of clean rows with a long tail towards 0, and of wrong rows on the other side."""
    rng = np.random.default_rng(seed)
    wrong = round(share * N)
    clean = -rng.gamma(4.0, 1.2, N - wrong)
    values = np.concatenate([clean, rng.normal(2.5, 1.2, wrong)])
    ids = tuple(f"{'clean' if i < N - wrong else 'wrong'}-{i:04d}" for i in range(N))
    return Scores(ids, values, "margin-trajectory")


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_finds_the_mislabelled_population(share):
    # a fixed share, or a threshold at a quantile, would fit one of the two at most
    cut = estimate_cutoff(mixture(share))
    right = sum(row.startswith("wrong") for row in cut.ids)
    assert abs(len(cut.ids) - share * N) < 0.1 * share * N
    assert right / len(cut.ids) > 0.93
    assert right / (share * N) > 0.93
    assert cut.how == "mixture"
    assert sum(w for w, m in zip(cut.weights, cut.means, strict=True) if m > 0) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_clean_data_is_left_alone(seed):
    cut = estimate_cutoff(mixture(0.0, seed))
    assert cut.ids == ()
    assert cut.threshold == float("inf")


def test_the_cut_is_where_both_are_equally_likely():
    # N(-2, 1) and N(2, 1), 70 and 30 %: equal at ln(7 / 3) / 4; at a posterior of 0.05 it would be 147 rows more
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(-2, 1, 2100), rng.normal(2, 1, 900)])
    cut = estimate_cutoff(Scores(tuple(map(str, range(3000))), values, "margin-trajectory"))
    assert abs(len(cut.ids) - (values > np.log(7 / 3) / 4).sum()) < 60


def test_hard_clean_rows_are_left_alone():
    # a population of its own, with small margins, but on the right side of 0
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(-6, 1, 1200), rng.normal(-0.7, 0.2, 300)])
    cut = estimate_cutoff(Scores(tuple(map(str, range(1500))), values, "margin-trajectory"))
    assert cut.ids == ()
    assert -1 < max(cut.means) < 0


def test_rows_come_from_the_top_and_the_threshold_is_the_last():
    scores = mixture(0.1)
    cut = estimate_cutoff(scores)
    assert list(cut.ids) == [row for row, _ in scores.top(len(cut.ids))]
    assert cut.threshold == scores.top(len(cut.ids))[-1][1]
    assert estimate_cutoff(scores) == cut


def test_only_the_margin_trajectory_has_a_zero():
    scores = mixture(0.1)
    with pytest.raises(InputError, match="only the margin trajectory has a natural zero; give a count"):
        estimate_cutoff(Scores(scores.ids, scores.values, "loss"))
    with pytest.raises(InputError, match="20 rows are too few"):
        estimate_cutoff(Scores(scores.ids[:20], scores.values[:20], "margin-trajectory"))


def test_count_is_the_users_choice():
    scores = Scores(("a", "b", "c"), np.array([1.0, 3.0, 2.0]), "loss")
    cut = count_cutoff(scores, 2)
    assert (cut.ids, cut.threshold, cut.how) == (("b", "c"), 2.0, "count")
    assert count_cutoff(scores, 0).ids == ()
    for count in (-1, 4):
        with pytest.raises(InputError, match="from 0 to the 3 rows"):
            count_cutoff(scores, count)
