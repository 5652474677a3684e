"""Every detector on every kind of label noise: ``python -m benchmarks.detectors [RECIPE ...]``.

By default digits-quick and mnist5k-relabel (MLP). Tables show the mean over seeds, the worst seed in brackets; the best
mean of a column is in bold. Cost is counted in training epochs beyond the one training run that all have in common
(forward 1, backward 2 for each row; a training epoch is 3 n); "time" is the wall time of the score in measured training
epochs, rough where others use the machine. "found" is the share of the mislabelled rows among as many of the most
suspicious as are mislabelled. "ahead" is the average precision of the margin trajectory minus that of the row, mean
over seeds, with a 95 % interval by a bootstrap that draws training rows, the same for both. The rows of cleanlab are
its label quality scores of out-of-sample probabilities; the second is there where the package is installed.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.bootstrap import average_precisions, resampled
from benchmarks.setting import Setting, Table, threads
from unlearn.curvature import fit_curvature
from unlearn.data import Rows, load_data, pair_noise
from unlearn.detect import (
    Scores,
    found_curve,
    gif_scores,
    loss,
    margin_trajectory,
    out_of_sample_logits,
    outlier_gradients,
    ranking_quality,
    self_influence,
    tracin,
    wrong_rows,
)
from unlearn.models import build_model
from unlearn.pipeline import Run

SEEDS = (0, 1, 2)
LOOKALIKES = {4: 9, 9: 4, 3: 5, 5: 3, 1: 7, 7: 1}
NOISE: dict[str, tuple[Mapping[int, int] | None, float]] = {
    "symmetric 10 %": (None, 0.1),
    "symmetric 40 %": (None, 0.4),
    "look-alikes 20 % (4-9, 3-5, 1-7)": (LOOKALIKES, 0.2),
}
COLUMNS = ("AUROC", "average precision", "found", "cost", "time")
QUALITY = COLUMNS[:3]
BEST = "margin trajectory"
OUT_OF_SAMPLE = "out of sample (cleanlab self-confidence)"
CLEANLAB = "cleanlab normalized margin"
FOLDS = 5


@dataclass(frozen=True)
class NoisySetting(Setting):
    """A setting whose noise may be between pairs of classes.

    Attributes:
        pairs: the label that each class gets; symmetric noise if None.
    """

    pairs: Mapping[int, int] | None = None

    @cached_property
    def data(self) -> Rows:
        """Noisy training rows."""
        if self.pairs is None:
            return Setting.data.func(self)  # type: ignore[attr-defined]
        section = self.recipe.data
        clean = load_data(section.source, split_seed=section.split_seed, options=section.options)
        return pair_noise(clean, self.pairs, self.rate or 0.0, self.seed)

    @cached_property
    def held_out(self) -> tuple[Tensor, float]:
        """Logits of every row by a model that did not see it, and the seconds that took."""
        section, begin = self.recipe.model, time.perf_counter()
        start = build_model(section.name, seed=self.seed, **section.options)
        settings = Run(Path("."), self.recipe).settings
        logits = out_of_sample_logits(start, self.data, settings, folds=FOLDS, seed=self.seed)
        return logits, time.perf_counter() - begin


class QualityTable(Table):
    """A table in which larger is better but for cost and time, with the best mean in bold, and a paired comparison."""

    LARGER = QUALITY

    def __init__(self, title: str, columns: tuple[str, ...]) -> None:
        super().__init__(title, columns)
        self.resamples: dict[str, list[np.ndarray]] = {}

    def add_resamples(self, name: str, scores: Scores, data: Rows, seed: int) -> None:
        """Add average precisions of one seed over draws of its rows, the same draws for every score."""
        bad = set(wrong_rows(data))
        wrong = np.array([row in bad for row in scores.ids])
        self.resamples.setdefault(name, []).append(
            average_precisions(scores.values, wrong, resampled(len(scores), seed))
        )

    def ahead(self, name: str) -> str:
        """Return how far the margin trajectory is ahead of a score, with its interval."""
        if name == BEST:
            return "-"
        differences = np.mean([a - b for a, b in zip(self.resamples[BEST], self.resamples[name], strict=True)], axis=0)
        low, high = np.quantile(differences, [0.025, 0.975])
        mean = self.mean(BEST, "average precision") - self.mean(name, "average precision")
        return f"{mean:.3f} ({low:.3f} to {high:.3f})"

    def __str__(self) -> str:
        lines = super().__str__().splitlines()
        for place, column in enumerate(QUALITY, 2):
            best = max(self.mean(name, column) for name in self.rows)
            for number, name in enumerate(self.rows, 5):  # the first rows are title and head
                if self.mean(name, column) == best:
                    cells = lines[number].split("|")
                    cells[place] = f" **{cells[place].strip()}** "
                    lines[number] = "|".join(cells)
        extra = ["ahead", "---", *(self.ahead(name) for name in self.rows)]
        return "\n".join(lines[:3] + [f"{line} {cell} |" for line, cell in zip(lines[3:], extra, strict=True)])


def detectors(setting: NoisySetting) -> dict[str, tuple[Callable[[], Scores], float]]:
    """Return every detector with its cost in training epochs; a score that states its own cost overrules it."""
    model, record, trajectory = setting.trained
    data, decay = setting.data, record.weight_decay
    held_out_cost = (FOLDS - 1) * setting.recipe.train.epochs + 1 / 3
    # EK-FAC fit: two passes forward and backward; then one to score
    found: dict[str, tuple[Callable[[], Scores], float]] = {
        BEST: (lambda: margin_trajectory(trajectory, data), 0.0),
        "loss": (lambda: loss(model, data), 1 / 3),
        "self-influence": (lambda: self_influence(model, data, weight_decay=decay), 3.0),
        "GIF": (lambda: gif_scores(model, data, weight_decay=decay), 3.0),
        "outlier gradients, forest": (lambda: outlier_gradients(model, data, seed=setting.seed), 0.0),
        "outlier gradients, L1": (lambda: outlier_gradients(model, data, detector="l1"), 0.0),
        "outlier gradients, L2": (lambda: outlier_gradients(model, data, detector="l2"), 0.0),
        "TracIn, all snapshots": (lambda: tracin(model, data, record=record), 0.0),
        "self-influence, 5 snapshots": (lambda: at_snapshots(setting), 0.0),
        OUT_OF_SAMPLE: (lambda: held_out_doubt(setting), held_out_cost),
    }
    if importlib.util.find_spec("cleanlab") is not None:
        found[CLEANLAB] = (lambda: cleanlab_margin(setting), held_out_cost)
    return found


def at_snapshots(setting: NoisySetting) -> Scores:
    """Return self-influence over five snapshots, the last among them, with the factors of the last."""
    model, record, _ = setting.trained
    steps = sorted(record.snapshots)
    chosen = [steps[len(steps) * k // 5 - 1] for k in range(1, 6)]
    factors = fit_curvature(model, setting.data)
    decay = record.weight_decay
    scores = self_influence(model, setting.data, curvature=factors, record=record, steps=chosen, weight_decay=decay)
    cost = float(scores.options["cost_epochs"]) + 2.0  # type: ignore[arg-type]
    return Scores(scores.ids, scores.values, scores.method, {**scores.options, "cost_epochs": cost})


def held_out_doubt(setting: NoisySetting) -> Scores:
    """Return 1 - p of the given label, held out, which is what ``out_of_sample`` and cleanlab's self-confidence are."""
    probabilities = setting.held_out[0].double().softmax(1)
    doubt = 1 - probabilities.gather(1, setting.data.labels[:, None]).squeeze(1)
    return Scores(setting.data.ids, doubt.numpy(), "out-of-sample")


def cleanlab_margin(setting: NoisySetting) -> Scores:
    """Return 1 - cleanlab's label quality of the held-out probabilities (arXiv 1911.00068)."""
    from cleanlab.rank import get_label_quality_scores

    probabilities = setting.held_out[0].double().softmax(1).numpy()
    quality = get_label_quality_scores(setting.data.labels.numpy(), probabilities, method="normalized_margin")
    return Scores(setting.data.ids, 1 - quality, "normalized-margin")


def table(recipe: str, noise: str, seeds: tuple[int, ...] = SEEDS) -> QualityTable:
    """Return the table of one recipe and one kind of noise."""
    pairs, rate = NOISE[noise]
    found = QualityTable(f"{recipe}, {noise}", COLUMNS)
    for seed in seeds:
        base = Setting.of(recipe, seed, rate)
        setting = NoisySetting(base.recipe, seed, rate, pairs)
        begin = time.perf_counter()
        _ = setting.trained
        epoch = (time.perf_counter() - begin) / setting.recipe.train.epochs
        for name, (score, cost) in detectors(setting).items():
            trained = "held_out" in vars(setting)
            begin = time.perf_counter()
            scores = score()
            spent = time.perf_counter() - begin
            if trained and name == CLEANLAB:
                spent += setting.held_out[1]
            found.add_resamples(name, scores, setting.data, seed)
            quality, curve = ranking_quality(scores, setting.data), found_curve(scores, setting.data)
            found.add(
                name,
                {
                    "AUROC": quality["auroc"],
                    "average precision": quality["average_precision"],
                    "found": curve[curve[-1]] / curve[-1],
                    "cost": float(scores.options.get("cost_epochs", cost)),  # type: ignore[arg-type]
                    "time": spent / epoch,
                },
            )
    return found


def main(recipes: list[str]) -> None:
    """Print the tables."""
    print(" ".join(["# python -m benchmarks.detectors", *recipes]))
    print(f"\n{threads()}; seeds {SEEDS}\n\n{' '.join((__doc__ or '').split(chr(10), 2)[2].split())}")
    for recipe in recipes or ["digits-quick", "mnist5k-relabel"]:
        for noise in NOISE:
            print(table(recipe, noise))
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
