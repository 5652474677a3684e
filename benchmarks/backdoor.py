"""A backdoor relabelled by GIF, its neighbours and what else there is: ``python -m benchmarks.backdoor CASE [FOLDER]``.

CASE is ``mnist5k``, the recipe ``mnist5k-backdoor``, or ``digits``, a small one of the same kind. Every method takes
``STEPS`` steps on the same Kronecker factors, each with a line search on the edited objective, at its best damping from
one grid, the same for all. The best is that of the largest harmonic mean of two accuracies on *training* rows of the
first seed: a sample of rows without the trigger at their labels, rows with it at their true labels. The other seeds
take over its damping. Fine-tuning has its learning rate chosen in the same way, at one epoch. No choice sees test rows.

With a FOLDER, trained models and finished measurements are kept in it and read from it.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.setting import Bars, Table, threads
from unlearn.atomic import write_atomically
from unlearn.curvature import Curvature, fit_curvature, load_curvature
from unlearn.data import Rows
from unlearn.pipeline import Run
from unlearn.pipeline.reseeded import reseeded
from unlearn.pipeline.stages import train_stage
from unlearn.predict import predict
from unlearn.recipe import Recipe, load_recipe, parse_recipe
from unlearn.repair import RIVALS, Changes, apply_changes, restricted_edit
from unlearn.repair.rivals.rates import rates_to_try
from unlearn.verification import train_references

SEEDS = (0, 1, 2)
DAMPINGS = (0.01, 0.1, 1.0)
STEPS = 8
PROCESSES = 2
SAMPLE = 400
JUDGED = 1000
JUDGED_BY = "Harmonic mean on training rows"
BUDGETS = {
    "edit of the final weights": 0.0,
    "rewind, edit, replay, budget 1": 1.0,
    "rewind, edit, replay, budget 3": 3.0,
}
FACTOR_ROWS = 1000
METHODS: dict[str, dict[str, Any]] = {
    "GIF 5 %, outputs": {"method": "gif", "select": "outputs"},
    "GIF 5 %, gradients": {"method": "gif", "select": "gradients"},
    "FIF 5 %, outputs": {"method": "frozen", "select": "outputs"},
    "FIF 5 %, gradients": {"method": "frozen", "select": "gradients"},
    "PIF 5 %, outputs": {"method": "projected", "select": "outputs"},
    "PIF 5 %, gradients": {"method": "projected", "select": "gradients"},
    "IF": {"method": "full"},
    "SIF": {"method": "second-order"},
}
GIF = [name for name in METHODS if name.startswith("GIF")]
NEIGHBOURS = [name for name in METHODS if not name.startswith("GIF")]
COLUMNS = (
    "clean accuracy",
    "triggered training rows",
    "triggered test rows",
    "harmonic mean",
    "still sent to the label",
    "cost",
)


DIGITS = """
name = "digits-backdoor"
data.source = "digits"
data.corruption = { kind = "trigger", rate = 0.1, label = 4, strength = 0.3 }
model.name = "tinynet"
model.options = { size = 8, widths = [16, 32] }
train.optimizer = "adam"
train.lr = 3e-3
train.weight_decay = 1e-4
train.epochs = 8
train.batch_size = 64
repair.action = "true-labels"
"""
CASES = {"mnist5k": lambda: load_recipe("mnist5k-backdoor"), "digits": lambda: parse_recipe(DIGITS)}


@dataclass(frozen=True)
class Backdoor:
    """One seed: the run with its original, and the request to relabel the triggered rows."""

    run: Run

    @classmethod
    def of(cls, recipe: Recipe, seed: int, folder: Path) -> Backdoor:
        """Train the original, or read it."""
        place = folder / f"seed-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        run = Run(place, reseeded(recipe, seed))
        if not (place / "original.safetensors").exists():
            train_stage(run)
        return cls(run)

    @cached_property
    def changes(self) -> Changes:
        """Back to the true labels."""
        assert self.run.stated is not None
        return self.run.stated

    @cached_property
    def retrained(self) -> nn.Module:
        """The coupled retrain."""
        model, record = self.run.original
        found = train_references(
            model, self.changes.apply(self.run.data), record, count=0, folder=self.run.folder / "references"
        )
        assert found.coupled is not None
        return found.coupled

    @cached_property
    def factors(self) -> Curvature:
        """Factors of the original, shared by all methods and processes."""
        rows = self.changes.apply(self.run.data).sample(FACTOR_ROWS, 0, "factor-rows")
        place = self.run.folder / "factors"
        if not (place / "manifest.json").exists():
            fit_curvature(self.run.original[0], rows, kind="kfac").save(place)
        return load_curvature(place, self.run.original[0], rows)

    @property
    def triggered(self) -> Rows:
        """Training rows with the trigger, at their true labels."""
        assert self.run.corrupted is not None
        rows = self.run.corrupted.rows.only(self.run.corrupted.ids)
        return self.changes.apply(self.run.data).only(rows.ids)

    def step(self, name: str, damping: float) -> tuple[nn.Module, float]:
        """Return a model edited by a method, and its cost; factors are in it."""
        model, record = self.run.original
        edit = restricted_edit(
            model,
            self.run.data,
            self.changes,
            path="kfac",
            record=record,
            curvature=self.factors,
            damping=damping,
            steps=STEPS,
            sample=SAMPLE,
            **METHODS[name],
        )
        return edit.model, edit.cost.total + 2 * FACTOR_ROWS / len(self.run.data)

    def on_training_rows(self, model: nn.Module) -> float:
        """Return what settings are chosen by."""
        kept = self.run.data.without(self.triggered.ids).sample(JUDGED, 0, "judged-rows")
        return harmonic(accuracy(model, kept), accuracy(model, self.triggered))

    def measure(self, model: nn.Module, cost: float) -> dict[str, float]:
        """Return the columns of the table."""
        test, marked = self.run.test, self.run.triggered_test
        assert marked is not None
        label = self.run.recipe.data.corruption.label  # type: ignore[union-attr]
        found = predict(model, marked).argmax(1)
        clean, repaired = accuracy(model, test), accuracy(model, self.triggered)
        return {
            "clean accuracy": clean,
            "triggered training rows": repaired,
            "triggered test rows": share(found == marked.labels),
            "harmonic mean": harmonic(clean, repaired),
            "still sent to the label": share(found[marked.labels != label] == label),
            "cost": cost,
        }


def accuracy(model: nn.Module, rows: Rows) -> float:
    """Return the share of rows whose largest output is that of their label."""
    return share(predict(model, rows).argmax(1) == rows.labels)


def share(found: Tensor) -> float:
    """Return the mean of a mask."""
    return float(found.double().mean())


def harmonic(a: float, b: float) -> float:
    """Return the harmonic mean."""
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


@cache
def opened(seed: int, folder: Path) -> Backdoor:
    """Return a seed of the case that the folder is named after, once in a process."""
    torch.set_num_threads(1)
    return Backdoor.of(CASES[folder.name](), seed, folder)


def prepare(folder: Path, seed: int) -> None:
    """Train the original and its retrain, and fit its factors, where that is not done."""
    backdoor = opened(seed, folder)
    backdoor.retrained, backdoor.factors  # noqa: B018


def restricted_row(folder: Path, task: tuple[int, str, float]) -> dict[str, float]:
    """Return the measures of a method at a damping, with what settings are chosen by."""
    seed, name, damping = task

    def row() -> dict[str, float]:
        model, cost = opened(seed, folder).step(name, damping)
        return {**opened(seed, folder).measure(model, cost), JUDGED_BY: opened(seed, folder).on_training_rows(model)}

    return kept(folder, row, name, damping, seed)


def tuned_row(folder: Path, task: tuple[int, int, float]) -> dict[str, float]:
    """Return the measures of fine-tuning for some epochs at a learning rate, with what rates are chosen by."""
    seed, epochs, lr = task

    def row() -> dict[str, float]:
        backdoor = opened(seed, folder)
        model, record = backdoor.run.original
        setting = {"epochs": epochs, "lr": lr}
        tuned = RIVALS["fine-tune"](model, backdoor.run.data, backdoor.changes, record, setting=setting)
        return {**backdoor.measure(tuned.model, tuned.cost), JUDGED_BY: backdoor.on_training_rows(tuned.model)}

    return kept(folder, row, "fine-tune", epochs, lr, seed)


def standing_row(folder: Path, task: tuple[int, str]) -> dict[str, float]:
    """Return the measures of the original, its retrain, or the edit with a budget."""
    seed, name = task

    def row() -> dict[str, float]:
        backdoor = opened(seed, folder)
        model, record = backdoor.run.original
        if name == "unedited":
            return backdoor.measure(model, 0.0)
        if name == "retrained":
            return backdoor.measure(backdoor.retrained, float(backdoor.run.recipe.train.epochs))
        edit = apply_changes(model, backdoor.run.data, backdoor.changes, record=record, budget=BUDGETS[name])
        return backdoor.measure(edit.model, edit.cost.total)

    return kept(folder, row, name, seed)


def kept(folder: Path, make: Callable[[], dict[str, float]], *keys: object) -> dict[str, float]:
    """Return a measurement that was kept in the folder, or make and keep it."""
    name = "-".join(str(key).replace(" ", "_").replace(",", "").replace("%", "") for key in keys)
    path = folder / f"{name}.json"
    if not path.exists():
        write_atomically(path, json.dumps(make()).encode())
        print(f"{name}: {path.read_text()}", file=sys.stderr, flush=True)
    found: dict[str, float] = json.loads(path.read_text())
    return found


def hold_bars(table: Table, bars: Bars) -> None:
    """Note the bars of GIF against retraining and against each neighbour."""
    for gif in GIF:
        for column, most in (("clean accuracy", 0.01), ("triggered training rows", 0.03)):
            behind = table.mean("retrained", column) - table.mean(gif, column)
            bars.hold(f"{gif}: {column}, points below retraining", 100 * behind, 100 * most)
    for gif in GIF:
        for name in NEIGHBOURS:
            lead = table.mean(gif, "harmonic mean") - table.mean(name, "harmonic mean")
            bars.hold(f"{gif}: harmonic mean, points ahead of {name}", 100 * lead, 1e-9, at_least=True)


def main(folder: Path) -> None:
    """Print the tables."""
    table, bars = Table(f"Backdoor relabelled to the true labels: {folder.name}", COLUMNS), Bars()
    first, *others = SEEDS
    with ProcessPoolExecutor(PROCESSES) as pool:
        list(pool.map(partial(prepare, folder), SEEDS))
        rates = rates_to_try(opened(first, folder).run.original[1])
        grid = [(first, name, damping) for name in METHODS for damping in DAMPINGS]
        rows = dict(zip(grid, pool.map(partial(restricted_row, folder), grid), strict=True))
        tuned = [(first, 1, lr) for lr in rates]
        tries = dict(zip(tuned, pool.map(partial(tuned_row, folder), tuned), strict=True))
        best = {name: max(DAMPINGS, key=lambda d: rows[first, name, d][JUDGED_BY]) for name in METHODS}
        lr = max(rates, key=lambda rate: tries[first, 1, rate][JUDGED_BY])
        more = [(seed, name, best[name]) for seed in others for name in METHODS]
        rows |= zip(more, pool.map(partial(restricted_row, folder), more), strict=True)
        standing = list(itertools.product(SEEDS, ("unedited", *BUDGETS, "retrained")))
        beside = dict(zip(standing, pool.map(partial(standing_row, folder), standing), strict=True))
        tuned = [(seed, epochs, lr) for seed in SEEDS for epochs in (1, 3)]
        tries |= zip(tuned, pool.map(partial(tuned_row, folder), tuned), strict=True)
    for seed in SEEDS:
        table.add("unedited", beside[seed, "unedited"])
        for name in METHODS:
            table.add(name, rows[seed, name, best[name]])
        for name in BUDGETS:
            table.add(name, beside[seed, name])
        for epochs in (1, 3):
            table.add(f"fine-tune, {epochs} epochs, lr {lr:g}", tries[seed, epochs, lr])
        table.add("retrained", beside[seed, "retrained"])
    worst = min(values["still sent to the label"] for values in table.rows["unedited"])
    bars.hold(
        "precondition: triggered test rows of other classes sent to the label (worst)", worst, 0.95, at_least=True
    )
    hold_bars(table, bars)
    print(f"# python -m benchmarks.backdoor {folder.name}\n\n{threads()}; mean over seeds 0, 1, 2 (worst)")
    print(table)
    print(f"\n### {JUDGED_BY}, seed 0, by which dampings were chosen\n")
    print("| method | " + " | ".join(f"d = {d:g}" for d in DAMPINGS) + " |")
    print("|---" * (len(DAMPINGS) + 1) + "|")
    for name in METHODS:
        print(f"| {name} | " + " | ".join(f"{rows[first, name, d][JUDGED_BY]:.4f}" for d in DAMPINGS) + " |")
    print(bars)


if __name__ == "__main__":
    chosen, *given = sys.argv[1:] or [""]
    if chosen not in CASES:
        raise SystemExit(f"give one of the cases {', '.join(CASES)}, not {chosen!r}")
    if given:
        main(Path(given[0]) / chosen)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary) / chosen)
