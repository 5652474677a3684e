"""Every detector on corruptions other than wrong labels: ``python -m benchmarks.corruptions [RECIPE ...]``.

By default digits-quick and mnist5k-relabel (MLP), without label noise; one row in ten is corrupted, or added. Tables
show the mean over seeds, the worst seed in brackets; the best mean of a column is in bold. A detector finds a corrupted
row by ranking it high; for duplicates, the copy and its original both count as found. A score that knows nothing has
AUROC 0.5 and an average precision that is the share of such rows, stated in the title. "found" is the share of them
among as many of the most suspicious. "duplicates" is the largest cosine similarity to another row, of inputs or of what
enters the last layer; "far from all" is the same with the sign turned. Cost is counted in training epochs beyond the
one training run (forward 1, backward 2 for each row; a training epoch is 3 n). The out-of-sample score is measured on
digits-quick alone, for the time it takes. The last table of a recipe: precision and recall of the pairs (copy,
original) that are more similar than a threshold; "-" where no pair is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.setting import Setting, Table, threads
from unlearn.data import Corrupted, Rows, add_duplicates, add_outliers, corrupt_inputs, load_data
from unlearn.detect import (
    Scores,
    duplicate_pairs,
    duplicate_scores,
    gif_scores,
    loss,
    margin_trajectory,
    out_of_sample,
    outlier_gradients,
    self_influence,
)
from unlearn.models import build_model
from unlearn.pipeline import Run
from unlearn.recipe import load_recipe

SEEDS = (0, 1, 2)
RATE = 0.1
OTHER = {"digits": "mnist5k", "mnist5k": "digits"}
REFITTED = ("digits-quick",)  # recipes small enough for the out-of-sample score
THRESHOLDS = {"inputs": (0.99999, 0.99, 0.98, 0.97), "features": (0.99999, 0.999, 0.99)}
CORRUPTIONS: dict[str, Callable[[Rows, int], Corrupted]] = {
    "pixel noise (gaussian, deviation 0.5)": lambda rows, seed: corrupt_inputs(rows, RATE, seed),
    "occlusion (half the side)": lambda rows, seed: corrupt_inputs(rows, RATE, seed, kind="occlusion"),
    "permutation (every row in its own way)": lambda rows, seed: corrupt_inputs(rows, RATE, seed, kind="permutation"),
    "exact duplicates": lambda rows, seed: add_duplicates(rows, RATE, seed),
    "near duplicates (gaussian, deviation 0.05)": lambda rows, seed: add_duplicates(rows, RATE, seed, near="gaussian"),
    "near duplicates (shift by one pixel)": lambda rows, seed: add_duplicates(rows, RATE, seed, near="shift"),
    "outliers (permuted in one way, random labels)": lambda rows, seed: add_outliers(rows, RATE, seed),
    "outliers (the other digits, resized, random labels)": lambda rows, seed: add_outliers(
        rows, RATE, seed, other=load_data(OTHER[rows.name])
    ),
}
COLUMNS = ("AUROC", "average precision", "found", "cost")


@dataclass(frozen=True)
class CorruptedSetting(Setting):
    """A setting without label noise and with a corruption.

    Attributes:
        corruption: its title.
    """

    corruption: str = ""

    @cached_property
    def corrupted(self) -> Corrupted:
        """Training rows and which are corrupted."""
        section = self.recipe.data
        rows = load_data(section.source, split_seed=section.split_seed, options=section.options)
        return CORRUPTIONS[self.corruption](rows, self.seed)

    @cached_property
    def data(self) -> Rows:
        """Corrupted training rows."""
        return self.corrupted.rows


class RankingTable(Table):
    """A table with the best mean of each column but the cost in bold."""

    LARGER = COLUMNS[:3]

    def __str__(self) -> str:
        best = {column: max(self.mean(name, column) for name in self.rows) for column in self.LARGER}
        lines = super().__str__().splitlines()
        for number, name in enumerate(self.rows, len(lines) - len(self.rows)):
            cells = lines[number].split("|")
            for place, column in enumerate(self.LARGER, 2):
                if self.mean(name, column) == best[column]:
                    cells[place] = f" **{cells[place].strip()}** "
            lines[number] = "|".join(cells)
        return "\n".join(lines)


def detectors(setting: CorruptedSetting) -> dict[str, tuple[Callable[[], Scores], float]]:
    """Return every detector with its cost in training epochs; a score that states its own cost overrules it."""
    model, record, trajectory = setting.trained
    data, decay, section = setting.data, record.weight_decay, setting.recipe.model
    settings = Run(Path("."), setting.recipe).settings
    start = build_model(section.name, seed=setting.seed, **section.options)
    refitted: dict[str, tuple[Callable[[], Scores], float]] = {
        "out of sample, 5 folds": (lambda: out_of_sample(start, data, settings, seed=setting.seed), 0.0),
    }
    # EK-FAC fit: two passes forward and backward; then one to score
    return {
        "margin trajectory": (lambda: margin_trajectory(trajectory, data), 0.0),
        "loss": (lambda: loss(model, data), 1 / 3),
        "self-influence": (lambda: self_influence(model, data, weight_decay=decay), 3.0),
        "GIF": (lambda: gif_scores(model, data, weight_decay=decay), 3.0),
        "outlier gradients, forest": (lambda: outlier_gradients(model, data, seed=setting.seed), 0.0),
        "outlier gradients, L1": (lambda: outlier_gradients(model, data, detector="l1"), 0.0),
        "outlier gradients, L2": (lambda: outlier_gradients(model, data, detector="l2"), 0.0),
        **(refitted if setting.recipe.name in REFITTED else {}),
        "duplicates, by inputs": (lambda: duplicate_scores(data), 0.0),
        "duplicates, by features": (lambda: duplicate_scores(data, model=model), 0.0),
        "far from all, by inputs": (lambda: _negated(duplicate_scores(data)), 0.0),
        "far from all, by features": (lambda: _negated(duplicate_scores(data, model=model)), 0.0),
    }


def _negated(scores: Scores) -> Scores:
    return Scores(scores.ids, -scores.values, f"not-{scores.method}", scores.options)


def _or_dash(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def tables(recipe: str, corruption: str) -> tuple[RankingTable, list[str]]:
    """Return the table of one recipe and corruption, and for duplicates the lines on pairs."""
    pairs: dict[tuple[str, float], list[tuple[float, float]]] = {}
    table, share = RankingTable("", COLUMNS), 0.0
    for seed in SEEDS:
        setting = CorruptedSetting(load_recipe(recipe), seed, 0.0, corruption)
        found, rows = setting.corrupted, setting.data
        wanted = {*found.ids, *found.copy_of.values()}
        share = len(wanted) / len(rows)
        for name, (score, cost) in detectors(setting).items():
            scores = score()
            truth = np.array([row in wanted for row in scores.ids])
            hits = truth[scores.order()[: truth.sum()]]
            table.add(
                name,
                {
                    "AUROC": float(roc_auc_score(truth, scores.values)),
                    "average precision": float(average_precision_score(truth, scores.values)),
                    "found": float(hits.mean()),
                    "cost": float(scores.options.get("cost_epochs", cost)),  # type: ignore[arg-type]
                },
            )
        if found.copy_of:
            true = {frozenset(pair) for pair in found.copy_of.items()}
            for features, model in (("inputs", None), ("features", setting.trained[0])):
                near = duplicate_pairs(rows, similarity=min(THRESHOLDS[features]), model=model)
                for threshold in THRESHOLDS[features]:
                    given = {frozenset(pair[:2]) for pair in near if pair[2] >= threshold}
                    right = len(given & true)
                    figures = (right / len(given) if given else float("nan"), right / len(true))
                    pairs.setdefault((features, threshold), []).append(figures)
    table.title = f"{recipe}, {corruption}; share {share:.3f}"
    lines = [
        f"| {corruption} | {features} | {threshold} | {_or_dash(mean(p for p, _ in figures))} "
        f"| {mean(r for _, r in figures):.3g} |"
        for (features, threshold), figures in pairs.items()
    ]
    return table, lines


def main(recipes: list[str]) -> None:
    """Print the tables."""
    print(" ".join(["# python -m benchmarks.corruptions", *recipes]))
    print(f"\n{threads()}; seeds {SEEDS}\n\n{' '.join((__doc__ or '').split(chr(10), 2)[2].split())}")
    for recipe in recipes or ["digits-quick", "mnist5k-relabel"]:
        pairs = [
            f"\n### {recipe}, pairs found\n",
            "| duplicates | compared by | least similarity | precision | recall |",
            "|---" * 5 + "|",
        ]
        for corruption in CORRUPTIONS:
            table, lines = tables(recipe, corruption)
            pairs += lines
            print(table)
            sys.stdout.flush()
        print("\n".join(pairs))


if __name__ == "__main__":
    main(sys.argv[1:])
