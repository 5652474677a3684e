"""How near the edits land: ``python -m benchmarks.landing [PART ...]``, parts as in ``PARTS``; all by default.

Tables show the mean over seeds, the worst seed in brackets. Distances are to the coupled retrain. ``budget`` is what
the edit may replay; ``cost`` is all that a request costs beside factors, which belong to the training and are shared
(``factors``: what fitting them once cost, in training epochs). Replay and fine-tuning are shown at the same number of
epochs of training on the changed rows, and at the edit's whole cost rounded up.
"""

from __future__ import annotations

import copy
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.setting import Bars, Comparison, Setting, Table, logits, threads
from unlearn.recipe import parse_recipe
from unlearn.repair import Changes, Edit, apply_changes
from unlearn.tasks import phi
from unlearn.training import replay
from unlearn.verification import References, train_references
from unlearn.verification.distances import change_cosine, kl, phi_error

SEEDS = (0, 1, 2)
COLUMNS = (
    "phi",
    "phi error / spread",
    "cosine changed",
    "cosine test",
    "KL",
    "KL / unedited",
    "KL / floor",
    "test accuracy",
    "cost",
    "factors",
)


def longer(setting: Setting, epochs: int, every: int) -> Setting:
    """Return a setting that trains for more epochs, with snapshots at most every so many of them and the last ones."""
    text = setting.recipe.text.replace("epochs = 15", f"epochs = {epochs}", 1)
    kept = sorted({*range(0, epochs + 1, every), epochs - 1})
    text = text.replace('snapshot_epochs = "every"', f"snapshot_epochs = {kept}")
    return Setting(parse_recipe(text), setting.seed)


def edited(setting: Setting, changes: Changes, budget: float, method: str, folder: Path) -> Edit:
    """Return an edit whose factors are shared by all edits of the setting."""
    model, record, _ = setting.trained
    return apply_changes(
        model,
        setting.data,
        changes,
        record=record,
        budget=budget,
        method=method,  # type: ignore[arg-type]
        factors=folder if method == "unrolled" else None,
    )


def compare(table: Table, setting: Setting, changes: Changes, plan: dict[str, tuple[float, str]], folder: Path) -> None:
    """Add the unedited model, our edits, and replay and fine-tuning beside them."""
    comparison = Comparison.of(setting, changes)
    table.add("unedited", {**comparison.measure(setting.trained[0]), "cost": 0.0, "factors": 0.0})
    rivals: set[int] = set()
    for name, (budget, method) in plan.items():
        edit = edited(setting, changes, budget, method, folder)
        cost = edit.cost.solve + edit.cost.replay
        table.add(name, {**comparison.measure(edit.model), "cost": cost, "factors": edit.cost.factors})
        print(f"{table.title}, seed {setting.seed}, {name}: {edit.method} {edit.cost.to_dict()}", file=sys.stderr)
        rivals |= {max(1, round(budget)), math.ceil(cost - 0.05)} if budget else set()
    for epochs in sorted(rivals):
        for name, model in comparison.rivals(epochs).items():
            table.add(name, {**comparison.measure(model), "cost": float(epochs), "factors": 0.0})


def hold(table: Table, bars: Bars, name: str, **wanted: float) -> None:
    """Note the bars of one edit: keyword names with _ for spaces and / written as per."""
    for key, value in wanted.items():
        column = key.replace("_per_", " / ").replace("_", " ")
        column = {"kl": "KL", "kl / unedited": "KL / unedited", "kl / floor": "KL / floor"}.get(column, column)
        bars.hold(f"{name}: {column}", table.mean(name, column), value, at_least=column.startswith("cosine"))


FEW = {
    "unrolled, budget 1": (1.0, "unrolled"),
    "Newton, budget 1": (1.0, "newton"),
    "unrolled, budget 3": (3.0, "unrolled"),
    "Newton, budget 3": (3.0, "newton"),
    "final weights, Newton": (0.0, "newton"),
    "final weights, unrolled": (0.0, "unrolled"),
}


def few(title: str, recipe: str, pick: object, bars_of: object, seeds: tuple[int, ...] = SEEDS) -> None:
    """Removing a few rows."""
    table, bars = Table(title, COLUMNS), Bars()
    for seed in seeds:
        setting = Setting.of(recipe, seed)
        with tempfile.TemporaryDirectory() as folder:
            compare(table, setting, pick(setting), FEW, Path(folder))  # type: ignore[operator]
    print(table)
    bars_of(table, bars)  # type: ignore[operator]
    print(bars, flush=True)


def mlp_bars(table: Table, bars: Bars) -> None:
    """Hold the bars of few rows on the MLP."""
    hold(
        table,
        bars,
        "unrolled, budget 1",
        phi_error_per_spread=0.55,
        cosine_changed=0.96,
        cosine_test=0.75,
        kl_per_unedited=0.5,
    )
    hold(
        table,
        bars,
        "unrolled, budget 3",
        phi_error_per_spread=0.4,
        cosine_changed=0.98,
        cosine_test=0.85,
        kl_per_unedited=0.35,
    )
    hold(
        table,
        bars,
        "final weights, Newton",
        phi_error_per_spread=1.1,
        cosine_changed=0.92,
        cosine_test=0.6,
        kl_per_unedited=0.75,
        cost=1.0,
    )


def cnn_bars(table: Table, bars: Bars) -> None:
    """Hold the bars of few rows on the CNN."""
    hold(table, bars, "unrolled, budget 1", phi_error_per_spread=0.7, cosine_changed=0.88, cosine_test=0.4)
    hold(table, bars, "unrolled, budget 3", phi_error_per_spread=0.55, cosine_changed=0.92, cosine_test=0.5)


def clean(setting: Setting, count: int) -> Changes:
    """Return the removal of rightly labelled rows, drawn by the seed."""
    right = [i for i, (a, b) in enumerate(zip(setting.data.labels, setting.data.truth, strict=True)) if a == b]
    chosen = np.random.default_rng([setting.seed, 1]).permutation(len(right))[:count]
    return Changes(removed=tuple(setting.data.ids[right[k]] for k in chosen))


def fours(seeds: tuple[int, ...] = SEEDS, draws: int = 20) -> None:
    """Removing 4 flipped rows, 20 disjoint draws pooled; the floor is of retrains without all 80 rows."""
    table, bars = Table("Removing 4 flipped rows, MLP; 20 draws pooled", COLUMNS), Bars()
    for seed in seeds:
        setting = Setting.of("mnist5k-remove", seed)
        model, record, _ = setting.trained
        every = setting.flipped(4 * draws).removed
        apart = train_references(model, setting.data.without(every), record, count=5).independent
        pooled = Comparison(setting, Changes(removed=every), References(None, apart, 5))
        first = record.snapshot(0)
        found: dict[str, list[dict[str, float]]] = {}
        with tempfile.TemporaryDirectory() as folder:
            for k in range(draws):
                changes = Changes(removed=every[4 * k : 4 * k + 4])
                start = apply_changes(model, setting.data, changes, record=record, budget=0, damping=1e9).model
                first.restore(start)
                there, _ = replay(start, changes.apply(setting.data), record, snapshot=first)
                rows = setting.data.only(changes.removed)
                models: dict[str, tuple[nn.Module, float, float]] = {"unedited": (model, 0.0, 0.0)}
                for name, (budget, method) in FEW.items():
                    edit = edited(setting, changes, budget, method, Path(folder))
                    models[name] = (edit.model, edit.cost.solve + edit.cost.replay, edit.cost.factors)
                for name, (other, cost, factors) in models.items():
                    found.setdefault(name, []).append(_apart(setting, model, there, other, rows, cost, factors))
        for name, values in found.items():
            mean = {key: float(np.mean([v[key] for v in values])) for key in values[0]}
            mean["phi error / spread"] = math.sqrt(np.mean([v["squared"] for v in values])) / pooled.distances.spread
            mean["KL / unedited"] = mean["KL"] / float(np.mean([v["KL"] for v in found["unedited"]]))
            mean["KL / floor"] = mean["KL"] / pooled.distances.floor
            table.add(name, mean)
    print(table)
    mlp_bars(table, bars)
    print(bars, flush=True)


def _apart(
    setting: Setting, model: nn.Module, there: nn.Module, other: nn.Module, rows: object, cost: float, factors: float
) -> dict[str, float]:
    test = setting.test
    old, want, have = (logits(m, rows) for m in (model, there, other))  # type: ignore[arg-type]
    before, goal, now = (logits(m, test) for m in (model, there, other))
    labels = rows.labels  # type: ignore[attr-defined]
    return {
        "phi": float(phi(have, labels).mean()),
        "squared": phi_error(have, want, labels) ** 2,
        "cosine changed": change_cosine(old, have, want),
        "cosine test": change_cosine(before, now, goal),
        "KL": kl(goal, now),
        "test accuracy": float((now.argmax(1) == test.labels).double().mean()),
        "cost": cost,
        "factors": factors,
    }


def memorised(setting: Setting, below: float = 0.02, most: int = 120) -> Setting:
    """Return a setting that trains until its training loss is below a value, looked at every third epoch.

    The rate is constant, so a shorter training is the beginning of a longer one.
    """
    whole = longer(setting, most, 3)  # holds the folder of its snapshots
    model, record, _ = whole.trained
    place, epoch = copy.deepcopy(model), record.steps // most
    for step in sorted(record.snapshots):
        record.snapshot(step).restore(place)
        loss = float(cross_entropy(logits(place, setting.data), setting.data.labels))
        if loss < below:
            print(f"seed {setting.seed}: training loss {loss:.4f} after {step // epoch} epochs", file=sys.stderr)
            return longer(setting, step // epoch, 3)
    raise RuntimeError(f"seed {setting.seed}: the training loss never fell below {below} in {most} epochs")


def memorising(title: str, trained: Callable[[int], Setting], seeds: tuple[int, ...] = SEEDS) -> None:
    """A model that has memorised its rows, with snapshots at most every third epoch."""
    table, bars = Table(f"Memorising {title}: removing 20 flipped rows", COLUMNS), Bars()
    for seed in seeds:
        setting = trained(seed)
        with tempfile.TemporaryDirectory() as folder:
            compare(table, setting, setting.flipped(20), FEW, Path(folder))
    print(table)
    hold(table, bars, "unrolled, budget 1", phi_error_per_spread=1.5, cosine_changed=0.95)
    hold(table, bars, "unrolled, budget 3", cosine_test=0.6, kl_per_unedited=0.9)
    hold(table, bars, "final weights, unrolled", phi_error_per_spread=2.0)
    print(bars, flush=True)


LARGE = {
    f"{name}, budget {budget}": (float(budget), name.lower())
    for name in ("Compressed", "Unrolled")
    for budget in (1, 2, 3, 5)
}


def large(recipe: str = "mnist5k-relabel", seeds: tuple[int, ...] = SEEDS) -> None:
    """Relabelling all flipped rows with their true labels."""
    table, bars = Table(f"{recipe}: relabelling all flipped rows", COLUMNS), Bars()
    for seed in seeds:
        setting = Setting.of(recipe, seed)
        wrong = (setting.data.labels != setting.data.truth).nonzero().flatten().tolist()
        changes = Changes(relabelled={setting.data.ids[i]: int(setting.data.truth[i]) for i in wrong})
        with tempfile.TemporaryDirectory() as folder:
            compare(table, setting, changes, LARGE, Path(folder))
    print(table)
    hold(table, bars, "Compressed, budget 3", kl_per_floor=1.0)
    hold(table, bars, "Compressed, budget 5", phi_error_per_spread=1.5, kl=0.012)
    for budget in (1, 2, 3, 5):
        for column in ("KL", "phi error / spread"):
            rivals = [name for name in table.rows if f", {budget} epochs" in name]
            best = min(table.mean(name, column) for name in rivals)
            bars.hold(
                f"Compressed, budget {budget}: {column} below replay, fine-tuning and compressed retrain of {budget}",
                table.mean(f"Compressed, budget {budget}", column),
                best,
            )
    print(bars, flush=True)


BULK = {f"ours, budget {budget}": (float(budget), "auto") for budget in (0, 1, 3)}


def bulk(recipe: str = "mnist5k-relabel", seeds: tuple[int, ...] = SEEDS) -> None:
    """Removing a tenth of all rows, none of them wrong, as many customers who leave at once."""
    table, bars = Table(f"{recipe}: removing 400 clean rows", COLUMNS), Bars()
    for seed in seeds:
        setting = Setting.of(recipe, seed)
        with tempfile.TemporaryDirectory() as folder:
            compare(table, setting, clean(setting, 400), BULK, Path(folder))
    print(table)
    for budget in (1, 3):
        for column in ("KL", "phi error / spread"):
            ours, rivals = table.mean(f"ours, budget {budget}", column), [f"replay, {budget} epochs", "unedited"]
            for rival in rivals:
                bars.hold(f"ours, budget {budget}: {column} below {rival}", ours, table.mean(rival, column))
    print(bars, flush=True)


PARTS = {
    "fours": fours,
    "twenty": lambda: few("Removing 20 flipped rows, MLP", "mnist5k-remove", lambda s: s.flipped(20), mlp_bars),
    "hundred": lambda: few("Removing 100 flipped rows, MLP", "mnist5k-remove", lambda s: s.flipped(100), mlp_bars),
    "clean": lambda: few("Removing 20 clean rows, MLP", "mnist5k-remove", lambda s: clean(s, 20), mlp_bars),
    "memorising": lambda: memorising("MLP (45 epochs)", lambda seed: longer(Setting.of("mnist5k-remove", seed), 45, 3)),
    "memorising-cnn": lambda: memorising(
        "CNN (training loss below 0.02)", lambda seed: memorised(Setting.of("mnist5k-cnn-relabel", seed))
    ),
    "large": large,
    "bulk": bulk,
    "bulk-cnn": lambda: bulk("mnist5k-cnn-relabel"),
    "cnn": lambda: few("Removing 20 flipped rows, CNN", "mnist5k-cnn-relabel", lambda s: s.flipped(20), cnn_bars),
}


def main(names: list[str]) -> None:
    """Print the parts."""
    print(f"# python -m benchmarks.landing {' '.join(names)}\n\n{threads()}; seeds {SEEDS}")
    for name in names or list(PARTS):
        PARTS[name]()
        sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(torch.get_num_threads())
    main(sys.argv[1:])
