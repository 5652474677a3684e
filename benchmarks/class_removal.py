"""Removing a class, all of it and a tenth of it: ``python -m benchmarks.class_removal [mlp|cnn] [SEED ...]``.

The digit 3 out of mnist5k, MLP (the recipe mnist5k-class-removal) and CNN (the architecture of mnist5k-cnn-relabel),
no label noise. Distances are to the coupled retrain. What an edit does (where it starts, its damping, its length) is
decided by the record and the training rows alone; test rows are only measured. Costs in training epochs, factors
included.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from torch import nn

from benchmarks.setting import Bars, Setting, Table, logits, threads
from unlearn.data import Rows
from unlearn.recipe import load_recipe
from unlearn.repair import RIVALS, Changes, apply_changes
from unlearn.tasks import phi
from unlearn.verification import train_references
from unlearn.verification.distances import kl, phi_error

SEEDS = (0, 1, 2)
CLASS = 3
BUDGETS = {3.0: "edit, budget 3", 1.0: "edit, budget 1", 0.0: "edit, final weights"}
COLUMNS = (
    "forgotten accuracy, %",
    "other accuracy, %",
    "others - retrain, points",
    "KL, forgotten test rows",
    "KL, other test rows",
    "phi error, changed",
    "phi, changed",
    "cost",
)
MODELS = ("mlp", "cnn")
REQUESTS = ("the whole class", "a tenth of the class")


def setting_of(model: str, seed: int) -> Setting:
    """Return the setting of an architecture under a seed."""
    recipe = load_recipe("mnist5k-class-removal")
    if model == "cnn":
        other = load_recipe("mnist5k-cnn-relabel")
        recipe = recipe.model_copy(update={"model": other.model, "train": other.train})
    return Setting(recipe, seed, 0.0)


def request(setting: Setting, which: str) -> Changes:
    """Return the removal of the class, or of a tenth of its rows drawn by the seed."""
    if which == REQUESTS[0]:
        return Changes(removed_classes=(CLASS,)).on(setting.data)
    rows = [row for row, label in zip(setting.data.ids, setting.data.labels.tolist(), strict=True) if label == CLASS]
    chosen = np.random.default_rng(setting.seed).permutation(len(rows))[: len(rows) // 10]
    return Changes(removed=tuple(rows[k] for k in chosen))


def measure(model: nn.Module, retrained: nn.Module, changed: Rows, test: Rows) -> dict[str, float]:
    """Return accuracies, and distances to the retrained model."""
    gone = test.labels == CLASS
    have, want = logits(model, test), logits(retrained, test)
    right, right_there = ((z.argmax(1) == test.labels).double() for z in (have, want))
    mine, theirs = logits(model, changed), logits(retrained, changed)
    return {
        "forgotten accuracy, %": 100 * float(right[gone].mean()),
        "other accuracy, %": 100 * float(right[~gone].mean()),
        "others - retrain, points": 100 * float((right - right_there)[~gone].mean()),
        "KL, forgotten test rows": kl(want[gone], have[gone]),
        "KL, other test rows": kl(want[~gone], have[~gone]),
        "phi error, changed": phi_error(mine, theirs, changed.labels),
        "phi, changed": float(phi(mine, changed.labels).mean()),
    }


def one_seed(model: str, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the measures of every model by request."""
    os.nice(10)
    torch.set_num_threads(1)
    setting = setting_of(model, seed)
    original, record, _ = setting.trained
    found: dict[str, dict[str, dict[str, float]]] = {}
    for which in REQUESTS:
        changes = request(setting, which)
        edited, changed = changes.apply(setting.data), setting.data.only(changes.removed)
        references = train_references(original, edited, record, count=0)
        retrained = references.coupled
        assert retrained is not None
        models = {"unedited": (original, 0.0)}
        for budget, name in BUDGETS.items():
            edit = apply_changes(original, setting.data, changes, record=record, budget=budget)
            models[name] = (edit.model, edit.cost.total)
        replayed = RIVALS["replay"](original, setting.data, changes, record, setting={"epochs": 3})
        models["replay, 3 epochs"] = (replayed.model, replayed.cost)
        models["coupled retrain"] = (retrained, float(setting.recipe.train.epochs))
        found[which] = {
            name: {**measure(one, retrained, changed, setting.test), "cost": cost}
            for name, (one, cost) in models.items()
        }
        print(f"{model}, seed {seed}, {which}: done", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Print the tables and the bars."""
    seeds = tuple(int(word) for word in sys.argv[1:] if word not in MODELS) or SEEDS
    chosen = [model for model in MODELS if model in sys.argv[1:]] or MODELS
    jobs = [(model, seed) for model in chosen for seed in seeds]
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        done = dict(zip(jobs, pool.map(one_seed, *zip(*jobs, strict=True)), strict=True))
    print(f"# python -m {' '.join(['benchmarks.class_removal', *sys.argv[1:]])}\n")
    print(f"{threads()}; mean over seeds {', '.join(map(str, seeds))} (worst)")
    bars = Bars()
    for model in chosen:
        for which in REQUESTS:
            table = Table(f"{model.upper()}: removing {which} ({CLASS})", COLUMNS)
            for seed in seeds:
                for name, values in done[model, seed][which].items():
                    table.add(name, values)
            print(table)
            for name in BUDGETS.values() if which == REQUESTS[0] else ():
                least = -table.mean(name, "others - retrain, points")
                bars.hold(f"{model}, {name}: forgotten accuracy, %", table.mean(name, "forgotten accuracy, %"), 0.5)
                bars.hold(f"{model}, {name}: others below retraining, points", least, 0.5)
    print(bars)


if __name__ == "__main__":
    main()
