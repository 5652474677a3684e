"""The bars of the main job: ``python -m benchmarks.main_job [PART ...]``, parts as in ``PARTS``; all by default.

Tables show the mean over seeds, the worst seed in brackets. Fine-tuning and replay are shown at two costs, in whole
epochs since snapshots are taken once an epoch: the edit's cost apart from factors (which all requests share), and the
whole cost, factors included.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from benchmarks.setting import Bars, Comparison, Setting, Table, threads
from unlearn.curvature import fit_curvature, loss_gradient
from unlearn.data import Rows, load_data
from unlearn.detect import influence, margin_trajectory, ranking_quality, self_influence
from unlearn.repair import Changes, Cost, apply_changes
from unlearn.training import train_to_optimum

SEEDS = (0, 1, 2)


def detection(recipe: str = "mnist5k-relabel", seeds: tuple[int, ...] = SEEDS) -> None:
    """Default detector, cut-off, self-influence."""
    columns = ("average precision", "AUROC", "self-influence AUROC", "found", "found / wrong", "acted on, %")
    table, bars = Table(f"Detection, {recipe}", columns), Bars()
    for rate in (0.1, 0.4, 0.0):
        for seed in seeds:
            setting = Setting.of(recipe, seed, rate)
            model, record, trajectory = setting.trained
            found = len(setting.cutoff.ids)
            values = {"found": float(found), "acted on, %": 100 * found / len(setting.data)}
            if rate:
                quality = ranking_quality(margin_trajectory(trajectory, setting.data), setting.data)
                mine = ranking_quality(
                    self_influence(model, setting.data, weight_decay=record.weight_decay), setting.data
                )
                wrong = int((setting.data.labels != setting.data.truth).sum())
                values |= {
                    "average precision": quality["average_precision"],
                    "AUROC": quality["auroc"],
                    "self-influence AUROC": mine["auroc"],
                    "found / wrong": found / wrong,
                }
            table.add(f"noise {rate:.0%}", values)
    print(table)
    bars.hold("average precision, 10 %", table.mean("noise 10%", "average precision"), 0.96, at_least=True)
    bars.hold("self-influence AUROC, 10 %", table.mean("noise 10%", "self-influence AUROC"), 0.975, at_least=True)
    for rate in ("10%", "40%"):
        off = [abs(values["found / wrong"] - 1) for values in table.rows[f"noise {rate}"]]
        bars.hold(f"estimated number off by, {rate} (mean)", sum(off) / len(off), 0.2)
        bars.hold(f"estimated number off by, {rate} (worst)", max(off), 0.2)
    bars.hold("acted on at 0 % noise, % (worst)", table.worst("noise 0%", "acted on, %"), 1.5)
    print(bars)


def oracle() -> None:
    """Self-influence against a dense solve for each row, on a small net in float32."""
    data = load_data("digits")
    data = data.at(torch.arange(64))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    curvature = fit_curvature(model, data)
    scores = self_influence(model, data, curvature=curvature, damping=1e-2)
    errors = []
    for k, row in enumerate(data.ids):
        g = loss_gradient(model, data.only([row]))
        x = curvature.solve(g, damping=1e-2)
        dense = sum(float((g[name].double() * x[name].double()).sum()) for name in g)
        errors.append(abs(float(scores.values[k]) - dense) / dense)
    bars = Bars()
    bars.hold("self-influence against a solve for each row, largest relative error", max(errors), 1e-5)
    print("\n### Oracle\n", bars, sep="")


def flagship(recipe: str = "mnist5k-relabel", budget: float = 3.0, seeds: tuple[int, ...] = SEEDS) -> None:
    """Rows and labels as detected, against the coupled retrain on the same changed data."""
    setting = Setting.of(recipe, seeds[0])
    action = setting.recipe.repair.action
    columns = (
        "test accuracy",
        "accuracy - retrain",
        "KL",
        "KL / unedited",
        "KL / floor",
        "phi error / spread",
        "cosine changed",
        "cosine test",
        "cost",
    )
    table, bars = Table(f"{recipe}: {action} as detected, budget {budget:g}", columns), Bars()
    for seed in seeds:
        setting = Setting.of(recipe, seed)
        comparison = Comparison.of(setting, setting.found(action))
        edit = comparison.edit(budget)
        table.add("unedited", {**comparison.measure(setting.trained[0]), "cost": 0.0})
        table.add("edited", {**comparison.measure(edit.model), "cost": edit.cost.total})
        for epochs in equal_costs(edit.cost):
            for name, model in comparison.rivals(epochs).items():
                table.add(name, {**comparison.measure(model), "cost": float(epochs)})
        table.add("coupled retrain", comparison.measure(comparison.references.coupled))
        print(f"seed {seed}: cost {edit.cost.to_dict()}; {edit.notes}", file=sys.stderr)
    print(table)
    bars.hold("test accuracy below the coupled retrain", -table.mean("edited", "accuracy - retrain"), 0.005)
    gain = table.mean("edited", "test accuracy") - table.mean("unedited", "test accuracy")
    bars.hold("test accuracy above the unedited model", gain, 1e-9, at_least=True)
    bars.hold("KL / unedited", table.mean("edited", "KL / unedited"), 0.25)
    for name in table.rows:
        if name.startswith(("fine-tune", "replay")):
            bars.hold(f"KL below that of {name}", table.mean("edited", "KL"), table.mean(name, "KL"))
    print(bars)


def few(recipe: str = "mnist5k-remove", count: int = 20, seeds: tuple[int, ...] = SEEDS) -> None:
    """Removing a few flipped rows, with snapshots and from the final weights alone."""
    columns = ("phi", "phi error / spread", "cosine changed", "cosine test", "KL", "KL / unedited", "cost")
    table, bars = Table(f"{recipe}: removing {count} flipped rows", columns), Bars()
    for seed in seeds:
        setting = Setting.of(recipe, seed)
        comparison = Comparison.of(setting, setting.flipped(count))
        table.add("unedited", {**comparison.measure(setting.trained[0]), "cost": 0.0})
        for budget in (0.0, 1.0, 3.0):
            edit = comparison.edit(budget)
            name = f"edited, budget {budget:g}" if budget else "edited, final weights only"
            table.add(name, {**comparison.measure(edit.model), "cost": edit.cost.total})
            if budget:
                for epochs in equal_costs(edit.cost):
                    for rival, model in comparison.rivals(epochs).items():
                        table.add(rival, {**comparison.measure(model), "cost": float(epochs)})
        table.add("coupled retrain", comparison.measure(comparison.references.coupled))
    print(table)
    for name, phi, cosine, ratio in (
        ("edited, budget 1", 1.0, 0.93, 0.7),
        ("edited, final weights only", 1.15, 0.9, 0.85),
    ):
        bars.hold(f"{name}: phi error / spread", table.mean(name, "phi error / spread"), phi)
        bars.hold(f"{name}: cosine on changed rows", table.mean(name, "cosine changed"), cosine, at_least=True)
        bars.hold(f"{name}: KL / unedited", table.mean(name, "KL / unedited"), ratio)
    print(bars)


def equal_costs(cost: Cost) -> list[int]:
    """Return the edit's cost without and with factors, in whole epochs."""
    return sorted({max(1, round(cost.total - cost.factors)), max(1, round(cost.total))})


def convex() -> None:
    """Logistic regression at its optimum, damping 0; least squares in one step."""
    bars = Bars()
    data = load_data("breast-cancer")
    inputs, labels = data.batch(torch.arange(len(data)))
    rows = Rows.from_tensors(inputs.double(), labels, ids=data.ids, classes=2)
    start = nn.Linear(30, 2).double()
    model, record = train_to_optimum(start, rows, weight_decay=1e-2)
    for count in (1, 20, 200):
        for action in ("remove", "relabel"):
            ids = rows.ids[:count]
            flipped = {row: 1 - int(labels[k]) for k, row in enumerate(ids)}
            changes = Changes(removed=ids) if action == "remove" else Changes(relabelled=flipped)
            edit = apply_changes(model, rows, changes, record=record)
            there, _ = train_to_optimum(start, changes.apply(rows), weight_decay=1e-2)
            bars.hold(
                f"logistic, {action} {count}: relative distance to retraining", _distance(edit.model, there), 1e-6
            )
    targets = torch.cat([labels[:, None].double(), inputs[:, :1].double()], 1)
    table = Rows.from_tensors(inputs[:, 1:].double(), targets, ids=data.ids)
    start = nn.Linear(29, 2).double()
    model, record = train_to_optimum(start, table, weight_decay=1e-2, task="regression")
    changes = Changes(removed=table.ids[:20])
    edit = apply_changes(model, table, changes, record=record, task="regression", steps=1)
    there, _ = train_to_optimum(start, changes.apply(table), weight_decay=1e-2, task="regression")
    bars.hold("least squares, remove 20 in one step: relative distance", _distance(edit.model, there), 1e-6)
    print("\n### Convex\n", bars, sep="")


def _distance(a: nn.Module, b: nn.Module) -> float:
    x, y = (nn.utils.parameters_to_vector(m.parameters()) for m in (a, b))
    return float((x - y).norm() / y.norm())


def signs() -> None:
    """A row doubled with a wrong label harms its twin; -I/n is the leave-one-out change."""
    data = load_data("breast-cancer")
    inputs, labels = data.batch(torch.arange(200))
    x = torch.cat([inputs[:199], inputs[:1]]).double()
    y = torch.cat([labels[:199], 1 - labels[:1]])
    rows = Rows.from_tensors(x, y, classes=2)
    start, decay = nn.Linear(30, 2).double(), 1e-2
    model, _ = train_to_optimum(start, rows, weight_decay=decay)
    twin = Rows.from_tensors(inputs[:1].double(), labels[:1], classes=2)
    curvature = fit_curvature(model, rows, fisher="exact")
    value = float(influence(model, rows, twin, curvature=curvature, damping=0.0, weight_decay=decay)[0, 199])
    without, _ = train_to_optimum(start, rows.without(["199"]), weight_decay=decay)
    loss = nn.functional.cross_entropy
    with torch.no_grad():
        change = float(
            loss(without(twin.batch(torch.tensor([0]))[0]), labels[:1]) - loss(model(inputs[:1].double()), labels[:1])
        )
    bars = Bars()
    bars.hold("influence of the wrongly labelled double on its twin", value, 1e-9, at_least=True)
    bars.hold("change of the twin's loss when it is left out", change, -1e-9)
    print(f"\n### Signs\n\n-I/n = {-value / 200:.3g} (EK-FAC); leave-one-out {change:.3g}")
    print(bars)


PARTS = {
    "detection": detection,
    "oracle": oracle,
    "relabel": flagship,
    "remove": lambda: flagship("mnist5k-remove"),
    "few": few,
    "convex": convex,
    "signs": signs,
    "digits": lambda: (detection("digits-quick"), flagship("digits-quick"), few("digits-quick")),
    "cnn": lambda: (detection("mnist5k-cnn-relabel"), flagship("mnist5k-cnn-relabel"), few("mnist5k-cnn-relabel")),
}


def main(names: list[str]) -> None:
    """Print the parts."""
    print(f"# python -m benchmarks.main_job {' '.join(names)}\n\n{threads()}; seeds {SEEDS}")
    for name in names or list(PARTS):
        PARTS[name]()
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
