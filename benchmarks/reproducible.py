"""What part of a coupled retrain's change is reproducible: ``python -m benchmarks.reproducible [mlp|cnn] [SEED ...]``.

Training amplifies small differences, so a coupled retrain differs from the original by what the removed rows did and by
amplified noise. Original and retrain are trained again as pairs in which two neighbouring batches of the first epoch
are swapped, the same in both; what the pairs' changes of logits share is reproducible. ``share`` is the mean product of
two pairs' changes over their mean square: 1 if all is reproducible. No edit that does not know the noise can expect a
cosine with the coupled retrain above its root, the ``ceiling``. Edits are scored against the coupled retrain's change
and against the mean change of the perturbed pairs, which the coupled one is not part of; ``corrected`` divides the
second cosine by the root of that mean's own reproducible share.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.landing import FEW, edited
from benchmarks.setting import Setting, Table, logits, threads
from unlearn.data import Rows
from unlearn.models import build_model
from unlearn.repair import RIVALS, Changes
from unlearn.training import TrainingRecord, replay
from unlearn.training.order import BatchOrder

RECIPES = {"mlp": "mnist5k-remove", "cnn": "mnist5k-cnn-relabel"}
SEEDS = (0, 1, 2)
PAIRS = 4
ROWS = 20
COLUMNS = tuple(
    f"{what}, {rows}" for rows in ("changed", "test") for what in ("cosine coupled", "cosine perturbed", "corrected")
)


def swapped(record: TrainingRecord, step: int) -> TrainingRecord:
    """Return the record with the batches of two neighbouring steps swapped."""
    order = record.order
    assert order is not None
    positions = order.positions.clone()
    positions[[step, step + 1]] = positions[[step + 1, step]]
    return replace(record, order=BatchOrder(order.ids, positions))


def trained(setting: Setting, rows: Rows, record: TrainingRecord) -> nn.Module:
    """Return the recorded training from its first weights on these rows."""
    section = setting.recipe.model
    start = build_model(section.name, seed=setting.seed, **section.options)
    record.snapshot(0).restore(start)
    return replay(start, rows, record, snapshot=record.snapshot(0))[0]


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two changes of logits, of all rows together."""
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-300))


def share_of(changes: list[Tensor]) -> float:
    """Return the mean product of two changes over their mean square."""
    product = sum(float((a * b).sum()) for a, b in itertools.combinations(changes, 2)) / math.comb(len(changes), 2)
    return product / (sum(float((a * a).sum()) for a in changes) / len(changes))


def one_seed(name: str, seed: int, shares: Table, table: Table) -> None:
    """Add one seed to the tables."""
    setting = Setting.of(RECIPES[name], seed)
    model, record, _ = setting.trained
    changes = setting.flipped(ROWS)
    places = {"changed": setting.data.only(changes.ids), "test": setting.test}
    after = changes.apply(setting.data)
    own = {place: logits(model, rows) for place, rows in places.items()}
    coupled = _change(trained(setting, after, record), own, places)
    perturbed = []
    for k in range(PAIRS):
        other = swapped(record, 2 * k + 1)
        base = trained(setting, setting.data, other)
        start = {place: logits(base, rows) for place, rows in places.items()}
        perturbed.append(_change(trained(setting, after, other), start, places))
    mean = {place: sum(pair[place] for pair in perturbed) / PAIRS for place in places}
    share = {place: share_of([coupled[place], *(pair[place] for pair in perturbed)]) for place in places}
    # of the mean of K pairs the reproducible share is s / (s + (1 - s) / K)
    reliable = {p: math.sqrt(max(share[p], 1e-12) / (share[p] + (1 - share[p]) / PAIRS)) for p in places}
    shares.add(
        name,
        {f"share, {place}": share[place] for place in places}
        | {f"ceiling, {place}": math.sqrt(max(share[place], 0.0)) for place in places},
    )
    models = dict(_models(setting, changes, model, record))
    for title, other_model in models.items():
        change = _change(other_model, own, places)
        values: dict[str, float] = {}
        for place in places:
            against = cosine(change[place], mean[place])
            values[f"cosine coupled, {place}"] = cosine(change[place], coupled[place])
            values[f"cosine perturbed, {place}"] = against
            values[f"corrected, {place}"] = against / reliable[place]
        table.add(title, values)


def _change(model: nn.Module, before: dict[str, Tensor], places: dict[str, Rows]) -> dict[str, Tensor]:
    return {place: logits(model, rows) - before[place] for place, rows in places.items()}


def _models(
    setting: Setting, changes: Changes, model: nn.Module, record: TrainingRecord
) -> list[tuple[str, nn.Module]]:
    with tempfile.TemporaryDirectory() as folder:
        found = [(t, edited(setting, changes, budget, how, Path(folder)).model) for t, (budget, how) in FEW.items()]
    for epochs in (1, 3):
        made = RIVALS["replay"](model, setting.data, changes, record, setting={"epochs": epochs}, seed=setting.seed + 1)
        found.append((f"replay, {epochs} epochs", made.model))
    return found


def main(words: list[str]) -> None:
    """Print both tables of each model."""
    names = [word for word in words if word in RECIPES] or list(RECIPES)
    seeds = [int(word) for word in words if word not in RECIPES] or list(SEEDS)
    print(" ".join(["# python -m benchmarks.reproducible", *words]))
    print(f"\n{threads()}; {ROWS} flipped rows removed, {PAIRS} perturbed pairs; mean over seeds {seeds} (worst)")
    for name in names:
        shares = Table(
            f"{name}: how much is reproducible",
            tuple(f"{what}, {place}" for place in ("changed", "test") for what in ("share", "ceiling")),
        )
        table = Table(f"{name}: cosine of the logit change", COLUMNS)
        for seed in seeds:
            one_seed(name, seed, shares, table)
        print(shares)
        print(table, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(torch.get_num_threads())
    main(sys.argv[1:])
