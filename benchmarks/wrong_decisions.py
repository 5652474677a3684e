"""What wrong decisions do to a repair: ``python -m benchmarks.wrong_decisions``.

All truly mislabelled rows of mnist5k, or 20 of them, are acted on, and clean rows beside them until these are 10 % or
50 % of all rows acted on: clean rows are removed, or get the most likely wrong label as their new one. The right
decisions are the same in every row of a table. Edit and unedited model are held against the coupled retrain on the
decisions as they were made (does the edit do what it was told?) and against the one on the right decisions (what did
the mistakes cost?); the coupled retrain on the wrong decisions stands beside them, since no edit can be better than
what it was told. phi errors are over all rows acted on, in spreads of independent retrains on the decisions as made.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from benchmarks.setting import Comparison, Setting, Table, threads
from unlearn.detect import suggest_labels
from unlearn.pipeline.repair_benchmark import known_wrong
from unlearn.repair import Changes
from unlearn.verification import References, RetrainDistances, train_references

SEEDS = (0, 1, 2)
SHARES = (0.0, 0.1, 0.5)
BUDGET = 3.0
REFERENCES = 3
COLUMNS = (
    "test accuracy",
    "KL, as made",
    "phi error, as made",
    "cosine changed",
    "KL, right",
    "phi error, right",
    "cost",
)


def with_clean_rows(setting: Setting, right: Changes, share: float) -> Changes:
    """Return the right decisions and as many wrong ones, on clean rows, as make up ``share`` of all."""
    data = setting.data
    clean = [row for row, given, true in zip(data.ids, data.labels, data.truth, strict=True) if given == true]
    count = round(share / (1 - share) * len(right.ids))
    chosen = [clean[k] for k in np.random.default_rng(setting.seed + 1).permutation(len(clean))[:count]]
    if right.removed:
        return Changes(removed=(*right.removed, *chosen))
    wrong = suggest_labels(data, trajectory=setting.trained[2])
    return Changes(relabelled={**right.relabelled, **{row: wrong[row] for row in chosen}})


def compare(
    setting: Setting, right: Changes, on_right: nn.Module, share: float, references: int = REFERENCES
) -> dict[str, dict[str, float]]:
    """Return the measures of the unedited model, two edits and the coupled retrain, for one share of wrong decisions.

    One edit follows the decisions as made, the other the right ones alone.

    Args:
        setting: gives original and data.
        right: the right decisions.
        on_right: the coupled retrain on them.
        share: of wrong decisions among all.
        references: independent retrains, for the spread.
    """
    model = setting.trained[0]
    made = with_clean_rows(setting, right, share)
    as_made = Comparison.of(setting, made, count=references)
    floor = References(on_right, as_made.references.independent, 0)
    to_right = RetrainDistances(model, setting.data, made, setting.test, floor)
    edit, on_right_alone = as_made.edit(BUDGET), replace(as_made, changes=right).edit(BUDGET)
    found = {}
    for name, candidate, cost in (
        ("unedited", model, 0.0),
        ("edited", edit.model, edit.cost.total),
        ("edited by the right decisions alone", on_right_alone.model, on_right_alone.cost.total),
        ("coupled retrain", as_made.references.coupled, float(setting.recipe.train.epochs)),
    ):
        one, other = as_made.measure(candidate), to_right.measure(candidate)
        found[name] = {
            "test accuracy": one["test accuracy"],
            "KL, as made": one["KL"],
            "phi error, as made": one["phi error / spread"],
            "cosine changed": one["cosine changed"],
            "KL, right": other["KL"],
            "phi error, right": other["phi error / spread"],
            "cost": cost,
        }
    return found


def table(recipe: str, count: int | None, seeds: Sequence[int] = SEEDS) -> Table:
    """Return the table of one recipe's action, on ``count`` right rows or all of them."""
    action = Setting.of(recipe, 0).recipe.repair.action
    out = Table(f"{recipe}: {action} {count or 'all'} mislabelled rows, budget {BUDGET:g}", COLUMNS)
    for seed in seeds:
        setting = Setting.of(recipe, seed)
        wrong = int((setting.data.labels != setting.data.truth).sum())
        right = known_wrong(setting.data, count or wrong, action, seed)
        model, record, _ = setting.trained
        on_right = train_references(model, right.apply(setting.data), record, count=0).coupled
        for share in SHARES:
            for name, values in compare(setting, right, on_right, share).items():
                out.add(f"{share:.0%} wrong decisions: {name}", values)
        print(f"{recipe}, {count or wrong} rows, seed {seed}", file=sys.stderr)
    return out


def main() -> None:
    """Print the tables."""
    print(f"# python -m benchmarks.wrong_decisions\n\n{threads()}; seeds {SEEDS}, mean (worst)")
    for recipe in ("mnist5k-remove", "mnist5k-relabel"):
        for count in (20, None):
            print(table(recipe, count))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
