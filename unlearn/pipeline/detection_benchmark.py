"""How well every score finds the wrong rows of a recipe whose true labels are known, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unlearn.detect import found_curve, ranking_quality
from unlearn.errors import InputError
from unlearn.pipeline.detectors import DETECTORS
from unlearn.pipeline.run import Run
from unlearn.progress import track

Measures = dict[str, float]


def count_wrong_rows(run: Run) -> int:
    """Return how many rows of a run carry a wrong label.

    Raises:
        InputError: that is not known, or it is none or all of them, so that no score can be measured.
    """
    rows = run.data
    where = f"recipe {run.recipe.name!r}"
    if rows.truth is None:
        raise InputError(
            f"the true labels of {where} are not known, so scores can not be measured on it; add noise to [data], such "
            'as noise = { kind = "symmetric", rate = 0.1 }, or choose a recipe that has it'
        )
    wrong = int((rows.labels != rows.truth).sum())
    if not 0 < wrong < len(rows):
        raise InputError(
            f"{wrong} of {len(rows)} rows of {where} have a wrong label, so scores can not be measured on it; state a "
            "rate of noise above 0 and below 1"
        )
    return wrong


def measure_detectors(run: Run, methods: Sequence[str] = tuple(DETECTORS)) -> dict[str, Measures]:
    """Return the quality and the cost of each method on a trained run.

    Returns:
        By method ``auroc``, ``average_precision``, ``found`` (the share of the wrong rows that are among as many of
        the most suspicious as are wrong) and ``cost_epochs`` (beyond the original training).

    Raises:
        InputError: the true labels are not known, or a method can not score this run.
    """
    wrong = count_wrong_rows(run)
    measured: dict[str, Measures] = {}
    for method in track(methods, "scores"):
        with torch.random.fork_rng(devices=[]):
            scores = DETECTORS[method].score(run)
        quality = ranking_quality(scores, run.data)
        measured[method] = {
            **{name: value for name, value in quality.items() if value is not None},
            "found": float(found_curve(scores, run.data)[wrong]) / wrong,
            "cost_epochs": DETECTORS[method].cost(scores, run),
        }
    return measured
