"""Paired bootstrap over rows: how sure one score is better than another on the same rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 500


def average_precisions(values: Floats, wrong: npt.NDArray[np.bool_], weights: npt.NDArray[np.int64]) -> Floats:
    """Return the average precision of each resample; rows with equal values are taken at once.

    Args:
        values: scores, (n,); larger is more suspicious.
        wrong: whether a row is mislabelled, (n,).
        weights: how often a row is drawn in each resample, (resamples, n).

    >>> values, wrong = np.array([0.9, 0.5, 0.1]), np.array([True, False, True])
    >>> average_precisions(values, wrong, np.array([[1, 1, 1], [1, 2, 1]])).round(3).tolist()
    [0.833, 0.75]
    """
    order = np.argsort(-values, kind="stable")
    last_of_equals = np.searchsorted(-values[order], -values[order], side="right") - 1
    drawn, hits = weights[:, order], weights[:, order] * wrong[order]
    found, looked_at = hits.cumsum(1)[:, last_of_equals], drawn.cumsum(1)[:, last_of_equals]
    precision = found / np.maximum(looked_at, 1)
    averages: Floats = (precision * hits).sum(1) / hits.sum(1)
    return averages


def resampled(rows: int, seed: int, resamples: int = RESAMPLES) -> npt.NDArray[np.int64]:
    """Return how often each row is drawn in each resample, shape (resamples, rows)."""
    return np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=resamples)
