"""Every detector on every kind of label noise: ``python -m benchmarks.detectors [RECIPE ...]``.

By default digits-quick and mnist5k-relabel (MLP). Tables show the mean over seeds, the worst seed in brackets; the best
mean of a column is in bold. Cost is counted in training epochs beyond the one training run that all have in common
(forward 1, backward 2 for each row; a training epoch is 3 n); "time" is the wall time of the score in measured training
epochs, rough where others use the machine. "found" is the share of the mislabelled rows among as many of the most
suspicious as are mislabelled.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.setting import Setting, Table, threads
from unlearn.data import Rows, load_data, pair_noise
from unlearn.detect import (
    Scores,
    found_curve,
    gif_scores,
    loss,
    margin_trajectory,
    out_of_sample,
    outlier_gradients,
    ranking_quality,
    self_influence,
    tracin,
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
        clean = load_data(section.source, split_seed=section.split_seed)
        return pair_noise(clean, self.pairs, self.rate or 0.0, self.seed)


class QualityTable(Table):
    """A table in which larger is better but for cost and time, with the best mean in bold."""

    LARGER = QUALITY

    def __str__(self) -> str:
        lines = super().__str__().splitlines()
        for place, column in enumerate(QUALITY, 2):
            best = max(self.mean(name, column) for name in self.rows)
            for number, name in enumerate(self.rows, 5):  # the first rows are title and head
                if self.mean(name, column) == best:
                    cells = lines[number].split("|")
                    cells[place] = f" **{cells[place].strip()}** "
                    lines[number] = "|".join(cells)
        return "\n".join(lines)


def detectors(setting: NoisySetting) -> dict[str, tuple[Callable[[], Scores], float]]:
    """Return every detector with its cost in training epochs; a score that states its own cost overrules it."""
    model, record, trajectory = setting.trained
    data, decay = setting.data, record.weight_decay
    section = setting.recipe.model
    settings = Run(Path("."), setting.recipe).settings
    start = build_model(section.name, seed=setting.seed, **section.options)
    # EK-FAC fit: two passes forward and backward; then one to score
    return {
        "margin trajectory": (lambda: margin_trajectory(trajectory, data), 0.0),
        "loss": (lambda: loss(model, data), 1 / 3),
        "self-influence": (lambda: self_influence(model, data, weight_decay=decay), 3.0),
        "GIF": (lambda: gif_scores(model, data, weight_decay=decay), 3.0),
        "outlier gradients, forest": (lambda: outlier_gradients(model, data, seed=setting.seed), 0.0),
        "outlier gradients, L1": (lambda: outlier_gradients(model, data, detector="l1"), 0.0),
        "outlier gradients, L2": (lambda: outlier_gradients(model, data, detector="l2"), 0.0),
        "TracIn, all snapshots": (lambda: tracin(model, data, record=record), 0.0),
        "out of sample, 5 folds": (lambda: out_of_sample(start, data, settings, seed=setting.seed), 0.0),
    }


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
            begin = time.perf_counter()
            scores = score()
            spent = time.perf_counter() - begin
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
