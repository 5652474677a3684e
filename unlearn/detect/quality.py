"""How good a detection was, where the true labels are known; nothing here feeds back into decisions."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from unlearn.data import Rows
from unlearn.detect.scores import Scores
from unlearn.errors import InputError


def wrong_rows(data: Rows) -> list[str]:
    """Return ids of the rows whose given label is not the true one.

    Raises:
        InputError: the true labels are not known.
    """
    if data.truth is None:
        raise InputError(f"true labels of {data.name} are not known; quality can only be measured where they are")
    return [data.ids[i] for i in (data.labels != data.truth).nonzero().flatten().tolist()]


def ranking_quality(scores: Scores, data: Rows) -> dict[str, float | None]:
    """Return AUROC and average precision of mislabelled against clean rows; None where one kind is missing.

    Raises:
        InputError: the true labels are not known.
        RowNotFoundError: a scored row is not in the data.

    >>> import torch
    >>> rows = Rows.from_tensors(torch.zeros(3, 1), torch.tensor([0, 1, 1]))
    >>> rows = rows.with_truth(torch.tensor([0, 1, 0]))  # row 2 is mislabelled
    >>> ranking_quality(Scores(rows.ids, np.array([0.1, 0.9, 0.5]), "loss"), rows)
    {'auroc': 0.5, 'average_precision': 0.5}
    """
    bad = set(wrong_rows(data))
    data.positions(scores.ids)
    truth = np.array([row in bad for row in scores.ids])
    if truth.all() or not truth.any():
        return {"auroc": None, "average_precision": None}
    return {
        "auroc": float(roc_auc_score(truth, scores.values)),
        "average_precision": float(average_precision_score(truth, scores.values)),
    }


def found_curve(scores: Scores, data: Rows) -> npt.NDArray[np.int64]:
    """Return how many mislabelled rows are found when the k most suspicious are checked, for each k from 0 to all.

    Rows with equal scores are checked in the order of their ids.

    Returns:
        Counts of shape (scored rows + 1,); the last is the number of mislabelled rows among them.

    Raises:
        InputError: the true labels are not known.
        RowNotFoundError: a scored row is not in the data.

    >>> import torch
    >>> rows = Rows.from_tensors(torch.zeros(3, 1), torch.tensor([0, 1, 1])).with_truth(torch.tensor([0, 1, 0]))
    >>> found_curve(Scores(rows.ids, np.array([0.1, 0.9, 0.5]), "loss"), rows).tolist()  # row 2 is mislabelled
    [0, 0, 1, 1]
    """
    bad = set(wrong_rows(data))
    data.positions(scores.ids)
    hits = np.array([scores.ids[i] in bad for i in scores.order()], dtype=np.int64)
    return np.concatenate([np.zeros(1, dtype=np.int64), hits.cumsum()])


def decision_quality(acted: Collection[str], suggestions: Mapping[str, int], data: Rows) -> dict[str, float | None]:
    """Return precision and recall of the rows acted on, and the share of right labels among their suggestions.

    Args:
        acted: ids of the rows acted on.
        suggestions: suggested labels; rows acted on without one (removed rows) do not count in that share.
        data: rows with their true labels.

    Returns:
        Counts ``acted`` and ``mislabelled``; ``precision``, ``recall`` and ``suggestions_right``, None where there
        is nothing to divide by.

    Raises:
        InputError: the true labels are not known, or a row is named twice.
        RowNotFoundError: a row acted on is not in the data.
    """
    bad = set(wrong_rows(data))
    at = dict(zip(acted, data.positions(acted).tolist(), strict=True))
    hit = sum(row in bad for row in acted)
    suggested = [row for row in acted if row in suggestions]
    right = sum(data.truth is not None and suggestions[row] == int(data.truth[at[row]]) for row in suggested)
    return {
        "acted": float(len(acted)),
        "mislabelled": float(len(bad)),
        "precision": hit / len(acted) if acted else None,
        "recall": hit / len(bad) if bad else None,
        "suggestions_right": right / len(suggested) if suggested else None,
    }
