import numpy as np
import pytest
import torch

from unlearn.data import Rows
from unlearn.detect import Scores, decision_quality, ranking_quality, wrong_rows
from unlearn.errors import InputError, RowNotFoundError

ROWS = Rows.from_tensors(torch.zeros(5, 1), torch.tensor([0, 1, 2, 0, 1]), ids=list("abcde"), classes=3)
NOISY = ROWS.with_truth(torch.tensor([0, 2, 2, 1, 1]))  # b and d are wrong


def test_wrong_rows_are_those_whose_label_is_not_the_truth():
    assert wrong_rows(NOISY) == ["b", "d"]
    with pytest.raises(InputError, match="true labels of data are not known"):
        wrong_rows(ROWS)


def test_ranking_by_hand():
    # order d, a, b, c, e: of 2 * 3 pairs 5 are right; precision is 1 at d and 2/3 at b
    scores = Scores(tuple("abcde"), np.array([4.0, 3.0, 2.0, 5.0, 1.0]), "loss")
    assert ranking_quality(scores, NOISY) == {
        "auroc": pytest.approx(5 / 6),
        "average_precision": pytest.approx((1 + 2 / 3) / 2),
    }


def test_ranking_without_wrong_rows_is_unknown():
    scores = Scores(tuple("abcde"), np.arange(5.0), "loss")
    clean = ROWS.with_truth(ROWS.labels)
    assert ranking_quality(scores, clean) == {"auroc": None, "average_precision": None}


def test_a_strange_row_is_refused():
    scores = Scores(("a", "z"), np.arange(2.0), "loss")
    with pytest.raises(RowNotFoundError, match="'z'"):
        ranking_quality(scores, NOISY)
    with pytest.raises(RowNotFoundError, match="'z'"):
        decision_quality(["z"], {}, NOISY)


def test_decisions_by_hand():
    # acted on b (right class 2 suggested), d (wrong class 2, truth 1) and c, which was clean
    found = decision_quality(["b", "d", "c"], {"b": 2, "d": 2, "c": 0, "a": 0}, NOISY)
    assert found == {
        "acted": 3,
        "mislabelled": 2,
        "precision": pytest.approx(2 / 3),
        "recall": 1.0,
        "suggestions_right": pytest.approx(1 / 3),
    }


def test_removed_rows_have_no_suggestion():
    found = decision_quality(["b", "d"], {"b": 2}, NOISY)
    assert (found["precision"], found["suggestions_right"]) == (1.0, 1.0)


def test_nothing_acted_on():
    found = decision_quality([], {}, NOISY)
    assert (found["precision"], found["recall"], found["suggestions_right"]) == (None, 0.0, None)
    assert decision_quality([], {}, ROWS.with_truth(ROWS.labels))["recall"] is None
