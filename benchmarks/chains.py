"""Twenty edits of four rows beside one edit of eighty: ``python -m benchmarks.chains [SEED ...]``.

Flipped rows of mnist5k-remove, with snapshots at a budget of one epoch and from the final weights. Distances are to the
coupled retrain without all rows removed so far. The second table holds what a chain knows of itself, its drift, against
how far it truly is.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

import numpy as np
from torch import nn

from benchmarks.setting import Bars, Comparison, Setting, Table, logits, threads
from unlearn.repair import Changes, EditChain
from unlearn.training import replay
from unlearn.verification.distances import kl, phi_error

SEEDS = (0, 1, 2)
NAMES = {1.0: "budget 1", 0.0: "final weights"}
COLUMNS = ("phi error", "phi error / spread", "KL", "KL / unedited", "cosine changed", "cosine test", "cost")
DRIFT = ("drift, nats", "KL to retraining", "KL / drift", "remainder of E", "phi error", "unedited KL")


def coupled(setting: Setting, changes: Changes) -> nn.Module:
    """Return the coupled retrain without the changed rows."""
    model, record, _ = setting.trained
    first = record.snapshot(0)
    start = copy.deepcopy(model)
    first.restore(start)
    return replay(start, changes.apply(setting.data), record, snapshot=first)[0]


def run_chain(setting: Setting, changes: Changes, size: int, budget: float) -> list[tuple[EditChain, dict[str, float]]]:
    """Remove the rows in edits of ``size``; return the chain's model, drift and running sums after every edit."""
    model, record, _ = setting.trained
    found = []
    with tempfile.TemporaryDirectory() as folder:
        chain = EditChain(model, setting.data, record=record, folder=Path(folder), budget=budget, limit=float("inf"))
        cost = factors = remainder = 0.0
        for k in range(0, len(changes.removed), size):
            edit = chain.remove(changes.removed[k : k + size])
            cost += edit.cost.total
            factors += edit.cost.factors > 0
            remainder += sum(abs(step.actual - step.predicted) for step in edit.steps)
            here = {"drift, nats": chain.drift.moved, "remainder of E": remainder, "cost": cost, "fits": factors}
            found.append((copy.copy(chain), here))
    return found


def compare(
    comparison: Comparison, size: int, table: Table, drift: Table, *, budgets: tuple[float, ...] = tuple(NAMES)
) -> None:
    """Add one setting's chains and single edits to the tables."""
    setting, changes = comparison.setting, comparison.changes
    table.add("unedited", {**measured(comparison, setting.trained[0]), "cost": 0.0})
    steps = len(changes.removed) // size
    for budget in budgets:
        one = comparison.edit(budget)
        name = f"one edit of {len(changes.removed)}, {NAMES[budget]}"
        table.add(name, {**measured(comparison, one.model), "cost": one.cost.total})
        chain = run_chain(setting, changes, size, budget)
        name = f"{steps} edits of {size}, {NAMES[budget]}"
        table.add(name, {**measured(comparison, chain[-1][0].model), "cost": chain[-1][1]["cost"]})
        print(f"seed {setting.seed}, {name}: factors fitted {chain[-1][1]['fits']:g} times", file=sys.stderr)
        for k in sorted({steps // 4, steps // 2, steps}):
            part = Changes(removed=changes.removed[: k * size])
            retrained = comparison.references.coupled if k == steps else coupled(setting, part)
            assert retrained is not None
            changed = setting.data.only(part.removed)
            edited, sums = chain[k - 1][0].model, chain[k - 1][1]
            want, have, before = (logits(m, setting.test) for m in (retrained, edited, setting.trained[0]))
            goal, now = (logits(m, changed) for m in (retrained, edited))
            values = {
                **sums,
                "KL to retraining": kl(want, have),
                "KL / drift": kl(want, have) / sums["drift, nats"],
                "phi error": phi_error(now, goal, changed.labels),
                "unedited KL": kl(want, before),
            }
            drift.add(f"after {k} edits, {NAMES[budget]}", values)


def measured(comparison: Comparison, model: nn.Module) -> dict[str, float]:
    """Return the distances, with the phi error as it is."""
    found = comparison.measure(model)
    return {**found, "phi error": found["phi error / spread"] * comparison.distances.spread}


def ratios(table: Table, name: str, other: str, column: str) -> list[float]:
    """Return the ratio of two models' distances, seed by seed."""
    pairs = zip(table.rows[name], table.rows[other], strict=True)
    return [one[column] / two[column] for one, two in pairs]


def main() -> None:
    """Print the tables and the bar."""
    seeds = tuple(map(int, sys.argv[1:])) or SEEDS
    table = Table("Removing 80 flipped rows of mnist5k, MLP", COLUMNS)
    drift = Table("What the chain knows of itself", DRIFT)
    for seed in seeds:
        setting = Setting.of("mnist5k-remove", seed)
        compare(Comparison.of(setting, setting.flipped(80)), 4, table, drift)
    bars = Bars()
    for name in NAMES.values():
        chain, one = f"20 edits of 4, {name}", f"one edit of 80, {name}"
        for column in ("phi error", "KL"):
            found = ratios(table, chain, one, column)
            mean = table.mean(chain, column) / table.mean(one, column)
            bars.hold(f"{name}: {column} of 20 edits / of one edit (worst seed {max(found):.3g})", mean, 1.3)
    shares = [row["KL / drift"] for rows in drift.rows.values() for row in rows]
    print(f"# python -m {' '.join(['benchmarks.chains', *sys.argv[1:]])}\n")
    print(f"{threads()}; mean over seeds {', '.join(map(str, seeds))} (worst)")
    print(table)
    print(drift)
    print(
        f"\nKL to retraining / drift: {min(shares):.2g} to {max(shares):.2g}, median {float(np.median(shares)):.2g}. "
        "The remainder of E is the sum over edits of |actual - predicted change| of the objective."
    )
    print(bars)


if __name__ == "__main__":
    main()
