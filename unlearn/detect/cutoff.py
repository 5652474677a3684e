"""How many rows to act on, estimated without the truth.

Under noise the mean margins of training have two populations: rows whose given label wins, and rows whose label
loses. A mixture of four normal distributions (two for each population, since neither is normal) is fitted; the
components with a negative mean are the mislabelled population: on average another class beats their label. Clean data
has no such component, however long its left tail, so nothing is acted on there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.mixture import GaussianMixture

from unlearn.detect.scores import Scores
from unlearn.errors import InputError

COMPONENTS = 4


@dataclass(frozen=True)
class Cutoff:
    """Rows to act on.

    Attributes:
        ids: their ids, the most suspicious first.
        threshold: the score of the last of them; infinite if there is none.
        how: ``mixture`` or ``count``, for the report.
        means: means of the fitted components, as scores (positive = mislabelled population); empty for a count.
        weights: their shares.
    """

    ids: tuple[str, ...]
    threshold: float
    how: str
    means: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()


def estimate_cutoff(scores: Scores) -> Cutoff:
    """Return the rows that belong rather to the mislabelled than to the clean population.

    Args:
        scores: of the method ``margin-trajectory``, whose sign has a meaning: positive is a label that lost.

    Returns:
        As many of the top rows as have a posterior above one half.

    Raises:
        InputError: scores of another method, or too few rows to fit.

    >>> rng = np.random.default_rng(0)
    >>> clean, wrong = -rng.normal(3, 1, 900), rng.normal(3, 1, 100)
    >>> values = np.concatenate([clean, wrong])
    >>> cut = estimate_cutoff(Scores(tuple(map(str, range(1000))), values, "margin-trajectory"))
    >>> 90 <= len(cut.ids) <= 110, len(estimate_cutoff(Scores(cut.ids * 0 + tuple(map(str, range(900))), clean,
    ...     "margin-trajectory")).ids)
    (True, 0)
    """
    if scores.method != "margin-trajectory":
        raise InputError(
            f"no cut-off can be estimated for {scores.method!r}: only the margin trajectory has a natural zero; give a "
            "count of rows, or record the trajectory in training"
        )
    if len(scores) < 10 * COMPONENTS:
        raise InputError(f"{len(scores)} rows are too few to estimate a cut-off; give a count of rows")
    values = scores.values[:, None]
    mixture = GaussianMixture(COMPONENTS, n_init=5, random_state=0).fit(values)
    means: npt.NDArray[np.float64] = mixture.means_[:, 0]
    wrong = mixture.predict_proba(values)[:, means > 0].sum(1)
    by_mean = np.argsort(means)
    return _cut(
        scores,
        int((wrong > 0.5).sum()),
        "mixture",
        tuple(means[by_mean].tolist()),
        tuple(mixture.weights_[by_mean].tolist()),
    )


def count_cutoff(scores: Scores, count: int) -> Cutoff:
    """Return the ``count`` most suspicious rows: the user's own choice.

    Raises:
        InputError: count is not between 0 and the number of rows.
    """
    if not 0 <= count <= len(scores):
        raise InputError(f"count is {count}; give a number from 0 to the {len(scores)} rows")
    return _cut(scores, count, "count")


def _cut(
    scores: Scores, count: int, how: str, means: tuple[float, ...] = (), weights: tuple[float, ...] = ()
) -> Cutoff:
    top = scores.top(count)
    threshold = top[-1][1] if top else float("inf")
    return Cutoff(tuple(row for row, _ in top), threshold, how, means, weights)
