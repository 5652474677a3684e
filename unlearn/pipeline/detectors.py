"""Every score that a recipe, ``unlearn detect`` and ``unlearn benchmark detect`` know, by name and with its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unlearn import detect
from unlearn.detect import Scores
from unlearn.detect.damped_solver import FIT_EPOCHS
from unlearn.detect.outlier_gradients import OutlierDetector
from unlearn.detect.shards import ROW_SCORES, SHARD_ROWS, score_shards
from unlearn.errors import InputError
from unlearn.pipeline.run import Run

FIT_COST = FIT_EPOCHS["ekfac"]


@dataclass(frozen=True)
class Detector:
    """A score of a run's rows.

    Attributes:
        score: computes it.
        cost_epochs: training epochs beyond the original training (forward 1, backward 2 for each row; an epoch is 3 n),
            with the fit of factors where it needs them, though a run fits them once for all scores; None where it
            depends on the run, and the scores say it.
        fits: whether it needs the run's curvature.
    """

    score: Callable[[Run], Scores]
    cost_epochs: float | None = None
    fits: bool = False

    def cost(self, scores: Scores, run: Run) -> float:
        """Return the training epochs that these scores of a run cost."""
        said = scores.options.get("cost_epochs") if self.cost_epochs is None else self.cost_epochs
        if not isinstance(said, (int, float)):
            raise InputError(f"score {scores.method!r} states no cost; give cost_epochs in its options")
        streamed = self.fits and run.recipe.detect.stream_factors
        return float(said) + ((run.curvature().passes or FIT_COST) - FIT_COST if streamed else 0.0)


def _margin_trajectory(run: Run) -> Scores:
    if run.trajectory is None:
        raise InputError("the run has no trajectory.safetensors; choose another method or train with the recorder")
    return detect.margin_trajectory(run.trajectory, run.data)


def _row_by_row(method: str) -> Callable[[Run], Scores]:
    """Return a score that goes row by row; of many rows it is written in shards, in the folder ``scores-<method>``."""

    def score(run: Run) -> Scores:
        model, record = run.original
        options: dict[str, Any] = {"task": record.task}
        if method != "loss":
            options |= {"curvature": run.curvature(), "weight_decay": record.weight_decay}
        if len(run.data) > SHARD_ROWS:
            return score_shards(method, model, run.data, run.folder / f"scores-{method}", **options).scores()
        return ROW_SCORES[method](model, run.data, **options)

    return score


def _outlier_gradients(detector: OutlierDetector) -> Callable[[Run], Scores]:
    def score(run: Run) -> Scores:
        model, record = run.original
        seed = run.recipe.train.train_seed
        return detect.outlier_gradients(model, run.data, detector=detector, seed=seed, task=record.task)

    return score


def _tracin(run: Run) -> Scores:
    model, record = run.original
    return detect.tracin(model, run.data, record=record, task=record.task)


def _out_of_sample(run: Run) -> Scores:
    return detect.out_of_sample(run.build(), run.data, run.settings, seed=run.recipe.train.train_seed)


DETECTORS: Mapping[str, Detector] = {
    "margin-trajectory": Detector(_margin_trajectory, 0.0),
    "loss": Detector(_row_by_row("loss"), 1 / 3),
    "self-influence": Detector(_row_by_row("self-influence"), FIT_COST + 1, fits=True),
    "gif": Detector(_row_by_row("gif"), FIT_COST + 1, fits=True),
    "outlier-gradients": Detector(_outlier_gradients("isolation-forest")),
    "outlier-gradients-l1": Detector(_outlier_gradients("l1")),
    "outlier-gradients-l2": Detector(_outlier_gradients("l2")),
    "tracin": Detector(_tracin),
    "out-of-sample": Detector(_out_of_sample),
}
