"""What curvature and scores cost, in training epochs: ``python -m benchmarks.curvature_cost [mlp] [cnn]``.

Each measured thing is run right after a bare training epoch (SGD with momentum, batches of 128) and divided by it; the
table shows medians over rounds. Times are CPU seconds of this process: with one thread (``OMP_NUM_THREADS=1``) they
are what a calm machine takes. Fits include digests of weights and rows.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from statistics import median
from unittest import mock

import torch
from torch import nn

import unlearn.curvature.fit as fitting
from benchmarks.setting import Bars, Setting, threads
from unlearn.curvature import fit_curvature, gauss_newton
from unlearn.curvature.kronecker import eigenbasis
from unlearn.data import Rows
from unlearn.detect import gif_scores, self_influence
from unlearn.tasks import get_task

RECIPES = {"mlp": "mnist5k-relabel", "cnn": "mnist5k-cnn-relabel"}
BARS = {"mlp": (2.0, 1.2), "cnn": (3.0, 1.7)}  # fit without eigendecompositions, self-influence
ROUNDS = 5


def measure(recipe: str, rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """Return (median ratio to a training epoch, median seconds) of each measured thing."""
    setting = Setting.of(recipe, 0)
    (model, record, _), data = setting.trained, setting.data
    student = copy.deepcopy(model).train()
    curvature = fit_curvature(model, data)
    operator = gauss_newton(model, data)
    vector = {name: value.detach() for name, value in model.named_parameters()}
    decay = record.weight_decay
    things: dict[str, Callable[[], object]] = {
        "self-influence": lambda: self_influence(model, data, curvature=curvature, weight_decay=decay),
        "GIF": lambda: gif_scores(model, data, curvature=curvature, weight_decay=decay),
        "Gauss-Newton product": lambda: operator.matvec(vector),
    }
    ratios: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}

    def note(name: str, spent: float, epoch: float) -> None:
        ratios.setdefault(name, []).append(spent / epoch)
        seconds.setdefault(name, []).append(spent)

    for _ in range(rounds):
        epoch = _time(lambda: train_epoch(student, data))
        whole, apart = time_fit(model, data)
        note("training epoch", epoch, epoch)
        note("EK-FAC fit without eigendecompositions", whole - apart, epoch)
        note("eigendecompositions", apart, epoch)
        for name, run in things.items():
            epoch = _time(lambda: train_epoch(student, data))
            note(name, _time(run), epoch)
    return {name: (median(ratios[name]), median(seconds[name])) for name in ratios}


def train_epoch(model: nn.Module, data: Rows) -> None:
    """One pass of SGD with momentum over shuffled batches of 128, and nothing else."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
    task = get_task("classification")
    for positions in torch.randperm(len(data)).split(128):
        inputs, labels = data.batch(positions)
        optimizer.zero_grad()
        task.loss(model(inputs), labels).mean().backward()
        optimizer.step()


def time_fit(model: nn.Module, data: Rows) -> tuple[float, float]:
    """Return seconds of an EK-FAC fit on rows not yet fingerprinted, and of its eigendecompositions."""
    apart = 0.0

    def timed(*arguments: object) -> object:
        nonlocal apart
        start = time.process_time()
        found = eigenbasis(*arguments)  # type: ignore[arg-type]
        apart += time.process_time() - start
        return found

    rows = data.with_truth(None)
    with mock.patch.object(fitting, "eigenbasis", timed):
        whole = _time(lambda: fit_curvature(model, rows))
    return whole, apart


def _time(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main(names: list[str]) -> None:
    """Print a table and the bars."""
    print("# python -m benchmarks.curvature_cost")
    chosen = names or list(RECIPES)
    found = {name: measure(RECIPES[name]) for name in chosen}
    bars = Bars()
    print("\n### Cost in training epochs (seconds of one core in brackets), 4,000 rows of MNIST-5k\n")
    print("| | " + " | ".join(chosen) + " |")
    print("|---" * (len(chosen) + 1) + "|")
    for thing in found[chosen[0]]:
        cells = (f"{found[name][thing][0]:.2f} ({found[name][thing][1]:.3g} s)" for name in chosen)
        print(f"| {thing} | " + " | ".join(cells) + " |")
    for name in chosen:
        for thing, bar in zip(("EK-FAC fit without eigendecompositions", "self-influence"), BARS[name], strict=True):
            bars.hold(f"{name}: {thing}, epochs", found[name][thing][0], bar)
    print(str(bars).replace("mean over seeds", "median of rounds, one seed"))
    print(f"\nMade with {threads()}; medians of {ROUNDS} rounds, each paired with its own epoch.")


if __name__ == "__main__":
    main(sys.argv[1:])
