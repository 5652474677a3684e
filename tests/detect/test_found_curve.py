import numpy as np
import pytest
import torch

from unlearn.data import Rows
from unlearn.detect import Scores, found_curve, ranking_quality
from unlearn.errors import InputError, RowNotFoundError

ROWS = Rows.from_tensors(torch.zeros(5, 1), torch.tensor([0, 1, 2, 0, 1]), ids=list("abcde"), classes=3)
NOISY = ROWS.with_truth(torch.tensor([0, 2, 2, 1, 1]))  # b and d are wrong


def test_by_hand():
    # order d, a, b, c, e
    scores = Scores(tuple("abcde"), np.array([4.0, 3.0, 2.0, 5.0, 1.0]), "loss")
    assert found_curve(scores, NOISY).tolist() == [0, 1, 1, 2, 2, 2]


def test_ties_are_in_the_order_of_ids_whatever_the_order_of_rows():
    scores = Scores(tuple("dbace"), np.zeros(5), "loss")
    assert found_curve(scores, NOISY).tolist() == [0, 0, 1, 1, 2, 2]


def test_its_area_is_that_of_auroc():
    # each clean row checked has found[k] wrong rows before it: the pairs in the right order, by another way
    draw = np.random.default_rng(0)
    truth = torch.from_numpy(draw.integers(0, 2, 50))
    rows = Rows.from_tensors(torch.zeros(50, 1), torch.zeros(50, dtype=torch.long), classes=2).with_truth(truth)
    scores = Scores(rows.ids, draw.normal(size=50), "loss")
    curve = found_curve(scores, rows)
    clean = np.diff(curve) == 0
    pairs = curve[-1] * clean.sum()
    assert curve[1:][clean].sum() / pairs == pytest.approx(ranking_quality(scores, rows)["auroc"])


def test_a_part_of_the_rows_counts_its_own_wrong_rows():
    assert found_curve(Scores(("b", "a"), np.array([1.0, 2.0]), "loss"), NOISY).tolist() == [0, 0, 1]


def test_bad_input():
    with pytest.raises(InputError, match="true labels of data are not known"):
        found_curve(Scores(("a",), np.zeros(1), "loss"), ROWS)
    with pytest.raises(RowNotFoundError, match="'z'"):
        found_curve(Scores(("z",), np.zeros(1), "loss"), NOISY)
