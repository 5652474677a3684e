"""Rows that explain a prediction: ``python -m benchmarks.explain``.

mnist5k-relabel, 10 % of the training labels flipped; 50 test rows drawn by id, and 50 of those that the model gets
wrong. "Horizon" is the damping of `unlearn explain`, 2 / T; "default" that of `unlearn.influence`, a tenth of the mean
eigenvalue; "none" is the inner product of gradients without curvature. Shares are of the 8 rows listed for each query,
beside the share among all training rows: "own label" carries the query's label, "mislabelled" another label than its
true one, "same digit" is truly of the query's class and labelled otherwise, "rival" is labelled as the class that the
model thinks most likely beside the query's own. Tables show the mean over seeds, the worst seed in brackets.

The second part removes the 8 rows listed for a query and retrains with the original's seed and row order, for 6 of
the 50 queries: "right sign" is the share of queries whose loss rose without helpful rows, or fell without harmful ones,
"measured" and "foretold" the median change of the query's loss, "measured / foretold" the median of their ratio.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from benchmarks.setting import Setting, Table, logits, threads
from unlearn.curvature import fit_curvature
from unlearn.data import Rows
from unlearn.detect import influence
from unlearn.pipeline.run import horizon_damping
from unlearn.tasks import get_task
from unlearn.verification import train_references

SEEDS = (0, 1, 2)
QUERIES = 50
RETRAINED = 6
TOP = 8
NO_CURVATURE = 1e6
SHARES = ("own label", "mislabelled", "same digit", "rival")
CHANGES = ("right sign", "measured", "foretold", "measured / foretold")


class ShareTable(Table):
    """Shares of rows; for the worst seed larger is better."""

    LARGER = SHARES


class ChangeTable(Table):
    """Changes of the loss on removal; the worst seed is the one nearest to no change."""

    LARGER = ("right sign", "measured / foretold")

    def worst(self, name: str, column: str) -> float:
        """Return the smallest share or ratio, or the smallest change."""
        found = [values[column] for values in self.rows[name]]
        return min(found) if column in self.LARGER else min(found, key=abs)


def queries_of(setting: Setting) -> dict[str, Rows]:
    """Return test rows drawn by id, and those of them that the model gets wrong."""
    wrong = logits(setting.trained[0], setting.test).argmax(1) != setting.test.labels
    return {
        "test rows": setting.test.sample(QUERIES, setting.seed),
        "misclassified": setting.test.at(wrong.nonzero().flatten()).sample(QUERIES, setting.seed),
    }


def shares(setting: Setting, queries: Rows, chosen: Tensor) -> dict[str, float]:
    """Return the shares among the rows chosen for each query, (queries, rows)."""
    data = setting.data
    own = queries.labels[:, None]
    rival = logits(setting.trained[0], queries).scatter(1, own, float("-inf")).argmax(1)[:, None]
    given, truth = data.labels[chosen], data.truth[chosen]
    kinds = (given == own, given != truth, (truth == own) & (given != own), given == rival)
    return {name: float(kind.double().mean()) for name, kind in zip(SHARES, kinds, strict=True)}


def loss_of(model: torch.nn.Module, queries: Rows) -> Tensor:
    """Return the loss of each query."""
    return get_task("classification").loss(logits(model, queries), queries.labels)


def explain(setting: Setting, table: dict[str, ShareTable], changes: dict[str, ChangeTable]) -> None:
    """Add one seed to the tables."""
    model, data, record = setting.trained[0], setting.data, setting.trained[1]
    n, curvature = len(data), fit_curvature(model, data)
    dampings = {"horizon": horizon_damping(record), "default": None, "none": NO_CURVATURE}
    random = retrained(setting, data.sample(TOP, setting.seed, "random").ids)
    for kind, queries in queries_of(setting).items():
        drawn = queries.positions(queries.sample(RETRAINED, setting.seed, "retrained").ids)
        before = loss_of(model, queries)[drawn]
        for damping, value in dampings.items():
            matrix = influence(
                model, data, queries, curvature=curvature, damping=value, weight_decay=record.weight_decay
            ).double()
            order = matrix.argsort(dim=1, stable=True)
            for name, chosen in {"helpful": order[:, :TOP], "harmful": order[:, -TOP:]}.items():
                table[kind].add(f"{name}, {damping}", shares(setting, queries, chosen))
                after = [
                    loss_of(retrained(setting, [data.ids[i] for i in chosen[q].tolist()]), queries)[q] for q in drawn
                ]
                measured = torch.stack(after) - before
                foretold = -matrix.gather(1, chosen).sum(1)[drawn] / n
                facts = {
                    "right sign": float((foretold.sign() == measured.sign()).double().mean()),
                    "measured": float(np.median(measured)),
                }
                if damping != "none":
                    facts["foretold"] = float(np.median(foretold))
                    facts["measured / foretold"] = float(np.median(measured / foretold))
                changes[kind].add(f"{name}, {damping}", facts)
        table[kind].add("all training rows", shares(setting, queries, torch.arange(n).expand(len(queries), n)))
        changes[kind].add("random", {"measured": float(np.median(loss_of(random, queries)[drawn] - before))})


def retrained(setting: Setting, removed: Iterable[str]) -> torch.nn.Module:
    """Return the coupled retrain without some rows."""
    model, record, _ = setting.trained
    coupled = train_references(model, setting.data.without(removed), record, count=0).coupled
    if coupled is None:
        raise RuntimeError("the original can not be reproduced, so there is no coupled retrain")
    return coupled


def main() -> None:
    """Print the tables."""
    print("# python -m benchmarks.explain")
    print(f"\n{threads()}; seeds {SEEDS}\n\n{' '.join((__doc__ or '').split(chr(10), 2)[2].split())}")
    kinds = ("test rows", "misclassified")
    table = {kind: ShareTable(f"{kind}: the {TOP} rows listed", SHARES) for kind in kinds}
    changes = {
        kind: ChangeTable(f"{kind}: loss of {RETRAINED} queries when the {TOP} rows are removed", CHANGES)
        for kind in kinds
    }
    for seed in SEEDS:
        explain(Setting.of("mnist5k-relabel", seed), table, changes)
    for kind in kinds:
        print(table[kind])
    for kind in kinds:
        print(changes[kind])
    sys.stdout.flush()


if __name__ == "__main__":
    main()
