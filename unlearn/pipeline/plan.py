"""What a recipe will cost on this machine, told before it is run: ``unlearn plan``.

Epochs and bytes are counted from the recipe, the model and the data. Seconds are epochs times what an epoch takes here,
from a few batches of training and two small fits of curvature that are made and thrown away.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unlearn.curvature import fit_curvature
from unlearn.curvature.factor_file import factor_count
from unlearn.curvature.fit import layer_groups
from unlearn.curvature.layers import Coverage, Layer, find_layers
from unlearn.data import Rows
from unlearn.inputs import call_model
from unlearn.pipeline.detectors import DETECTORS, FIT_COST
from unlearn.pipeline.run import Run
from unlearn.pipeline.stages import stages_of
from unlearn.recipe import Recipe
from unlearn.repair.method import SEGMENTS
from unlearn.repair.newton_edit import FACTOR_SHARE, FINAL_SHARE, ITERATIONS, REPLAY_SHARE, sample_size
from unlearn.tasks import get_task
from unlearn.training import snapshot_epochs

SOLVE_COST = 4 / 3
"""Epochs of a Gauss-Newton product with all rows."""
BATCHES = 8
FIT_ROWS = (64, 128)
STATE = {"sgd": 1, "adam": 2}
"""Numbers that an optimizer keeps for a weight."""


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run.

    Attributes:
        name: of the stage.
        epochs: training epochs; None where they depend on what the run finds.
        seconds: on this machine; None where epochs are.
        memory: bytes held at its peak beside data and activations.
        disk: bytes it leaves.
        why: where the numbers come from.
    """

    name: str
    epochs: float | None
    seconds: float | None
    memory: int
    disk: int
    why: str


@dataclass(frozen=True)
class RunPlan:
    """What a recipe costs.

    Attributes:
        recipe: its name.
        rows: training rows.
        parameters: of the model.
        layers: covered layers: name, kind, form, block (g, o, i), bytes of its factors.
        uncovered: parameters without curvature, and why.
        epoch_seconds: one training epoch on this machine; None if nothing was measured.
        stages: of the run.
        memory: bytes of this machine.
        disk: bytes free where the run goes.
        streamed: whether the recipe keeps factors on the disk.
    """

    recipe: str
    rows: int
    parameters: int
    layers: tuple[dict[str, Any], ...]
    uncovered: dict[str, str]
    epoch_seconds: float | None
    stages: tuple[StagePlan, ...]
    memory: int
    disk: int
    streamed: bool = False

    @property
    def factors(self) -> int:
        """Bytes of all factors."""
        return sum(layer["bytes"] for layer in self.layers)

    @property
    def advice(self) -> tuple[str, ...]:
        """What to change where the run does not fit; empty where it does."""
        found = []
        peak = max(self.stages, key=lambda stage: stage.memory)
        if peak.memory > self.memory:
            widest = max(self.layers, key=lambda layer: layer["bytes"])
            over = [stage.name for stage in self.stages if stage.memory > self.memory]
            detect = "; for detect, state detect.stream_factors = true: they stay on the disk, for more passes"
            found.append(
                f"{peak.name} needs {size(peak.memory)} beside data and activations, and this machine has "
                f"{size(self.memory)}: the factors of layer {widest['name']!r} take {size(widest['bytes'])}; leave it "
                f"out with skip= from Python, or take a narrower model"
                f"{detect if 'detect' in over and not self.streamed else ''}"
            )
        disk = sum(stage.disk for stage in self.stages)
        if disk > self.disk:
            found.append(
                f"the run leaves {size(disk)} and {size(self.disk)} are free: state train.snapshot_epochs = 6, fewer "
                "verify.references, or choose another folder with --out"
            )
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-able data."""
        return {**asdict(self), "factors": self.factors, "advice": list(self.advice)}


def plan_run(
    recipe: Recipe, folder: str | Path = "runs", *, measure: bool = True, device: str | None = None
) -> RunPlan:
    """Return what a run of a recipe will cost; nothing is written.

    Args:
        recipe: of stages (a certified head has none).
        folder: where the run would go; its disk is looked at.
        measure: whether to train a few batches and fit curvature on a few rows, for seconds.
        device: of the run.

    Raises:
        InputError: data and model do not go together.

    >>> from unlearn.recipe import load_recipe
    >>> plan = plan_run(load_recipe("digits-quick"), measure=False)
    >>> [stage.name for stage in plan.stages], plan.advice
    (['train', 'detect', 'repair', 'verify'], ())
    """
    return plan_of(Run(Path(folder), recipe, device), measure=measure)


def plan_of(run: Run, *, measure: bool = True) -> RunPlan:
    """Return what a run will cost; see :func:`plan_run`."""
    run.check()
    recipe, model, rows = run.recipe, run.build(), run.data
    coverage = find_layers(model, rows)
    layers: tuple[dict[str, Any], ...] = tuple(
        {"name": la.name, "kind": la.kind, "form": la.form, "shape": list(la.shape), "bytes": factor_bytes(la)}
        for la in coverage.layers
    )
    state = model.state_dict()
    weights = sum(value.nbytes for value in state.values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    groups = _groups(recipe, coverage, weights)
    fits = 2 * sum(layer["bytes"] for layer in layers) < memory
    speed = Speed.measured(run, model, rows, fit=fits) if measure else None
    return RunPlan(
        recipe.name,
        len(rows),
        sum(p.numel() for p in model.parameters()),
        layers,
        coverage.uncovered,
        None if speed is None else speed.epoch,
        _stages(run, rows, weights, coverage, groups, speed),
        memory,
        shutil.disk_usage(_existing(run.folder)).free,
        recipe.detect.stream_factors,
    )


@dataclass(frozen=True)
class Speed:
    """What was measured here.

    Attributes:
        epoch: seconds of a training epoch.
        decompose: seconds of a fit of curvature that no row pays for: eigendecompositions. 0 where it would not fit.
    """

    epoch: float
    decompose: float

    @classmethod
    def measured(cls, run: Run, model: nn.Module, rows: Rows, *, fit: bool) -> Speed:
        """Train a few batches and fit twice."""
        batch, count = run.recipe.train.batch_size, min(len(rows), BATCHES * run.recipe.train.batch_size)
        part = rows.at(torch.arange(count))
        steps = math.ceil(count / batch)
        epoch = (
            _seconds_of_batches(copy.deepcopy(model), part, batch, run.device) / steps * math.ceil(len(rows) / batch)
        )
        if not fit:
            return cls(epoch, 0.0)
        times = []
        for wanted in FIT_ROWS:
            some = rows.at(torch.arange(min(wanted, len(rows))))
            begun = time.perf_counter()
            fit_curvature(model, some)
            times.append((len(some), time.perf_counter() - begun))
        (few, short), (many, long) = times
        each = max(0.0, (long - short) / max(1, many - few))
        return cls(epoch, max(0.0, short - few * each))


def _seconds_of_batches(model: nn.Module, rows: Rows, batch: int, device: str | None) -> float:
    """Return the seconds of a pass forward and backward over the rows, the first batch apart as a warm-up."""
    place = torch.device("cpu" if device is None else device)
    model.to(place).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    begun, task = time.perf_counter(), get_task("classification")
    for k, (_, inputs, labels) in enumerate(rows.batches(batch, place)):
        torch.autograd.grad(task.loss(call_model(model, inputs), labels).mean(), parameters, materialize_grads=True)
        if k == 0 and len(rows) > batch:
            begun = time.perf_counter()
    passed = len(rows) - batch if len(rows) > batch else len(rows)
    return (time.perf_counter() - begun) * len(rows) / passed


def _groups(recipe: Recipe, coverage: Coverage, weights: int) -> list[int]:
    """Return the bytes of the factors that are in memory together, of each group of layers that is fitted at once."""
    sizes = {layer.name: factor_bytes(layer) for layer in coverage.layers}
    if not recipe.detect.stream_factors:
        return [sum(sizes.values())]
    fitted = [4 * factor_count(layer, "ekfac") for layer in coverage.layers]  # as the fit counts them
    groups = layer_groups(coverage.layers, fitted, weights)
    return [sum(sizes[layer.name] for layer in group) for group in groups]


def _stages(
    run: Run, rows: Rows, weights: int, coverage: Coverage, groups: list[int], speed: Speed | None
) -> tuple[StagePlan, ...]:
    recipe, factors = run.recipe, sum(factor_bytes(layer) for layer in coverage.layers)
    train, epochs = recipe.train, float(recipe.train.epochs)
    snapshots = len(snapshot_epochs(train.snapshot_epochs, train.epochs))
    whole = weights * (1 + STATE[train.optimizer])
    order = 4 * train.epochs * math.ceil(len(rows) / train.batch_size) * train.batch_size + sum(map(len, rows.ids))
    kept = (snapshots - 1) * whole + weights + order  # the first has no optimizer state yet

    def seconds(count: float | None, decompositions: int = 0) -> float | None:
        if speed is None or count is None:
            return None
        return count * speed.epoch + decompositions * speed.decompose

    methods = {recipe.detect.method, *recipe.detect.beside}
    costs = [cost for name in methods if (cost := DETECTORS[name].cost_epochs) is not None]
    fits = len([name for name in methods if name in ("self-influence", "gif")])
    fitted = FIT_COST * (len(groups) if fits else 0)
    searched = sum(costs) - FIT_COST * fits + fitted if len(costs) == len(methods) else None
    repaired, how, decompositions = _repair_cost(recipe, rows)
    references = recipe.verify.references
    stages = (
        StagePlan(
            "train",
            epochs,
            seconds(epochs),
            whole + weights,
            kept,
            f"{snapshots} snapshots with optimizer state, and the row order",
        ),
        StagePlan(
            "detect",
            searched,
            seconds(searched, min(1, fits)),
            2 * max(groups) if fits else weights,
            factors if fits else 0,
            ", ".join(sorted(methods)) + (f"; factors in {len(groups)} groups of layers" if len(groups) > 1 else ""),
        ),
        StagePlan("repair", repaired, seconds(repaired, decompositions), 2 * factors + 4 * weights, weights, how),
        StagePlan(
            "verify",
            (references + 1) * epochs if references else 0.0,
            seconds((references + 1) * epochs if references else 0.0),
            whole + weights,
            (references + 1) * weights if references else 0,
            f"{references} retrains and the coupled one" if references else "evidence only",
        ),
    )
    run_here = stages_of(run)
    return tuple(stage for stage in stages if stage.name in run_here)


def _repair_cost(recipe: Recipe, rows: Rows) -> tuple[float, str, int]:
    """Return the epochs of an edit of a few rows, in words, and how many times factors are decomposed."""
    section, count = recipe.repair, len(rows)
    share = sample_size(count, FACTOR_SHARE) / count
    if not section.whole_weights:
        return FIT_COST + (section.steps or 1), f"{section.method} on Kronecker factors", 1
    if section.method in ("compressed", "descent"):
        return section.budget, "training on the changed data", 0
    unrolled = section.method in (None, "unrolled") and section.layers is None and section.damping == "horizon"
    segments = min(SEGMENTS, len(snapshot_epochs(recipe.train.snapshot_epochs, recipe.train.epochs)) - 2)
    if unrolled and segments > 0:
        solve = 3 * SOLVE_COST * sample_size(count, REPLAY_SHARE) / count
        return segments * FIT_COST * share + solve + section.budget, "unrolled, for few rows", segments
    sample = sample_size(count, REPLAY_SHARE if section.budget else FINAL_SHARE) / count
    return FIT_COST * share + ITERATIONS * SOLVE_COST * sample + section.budget, "a Newton step", 1


def factor_bytes(layer: Layer) -> int:
    """Return the bytes of a layer's EK-FAC factors: two bases, unless one is of unit vectors, and eigenvalues.

    >>> factor_bytes(Layer("fc", "Linear", {"fc.weight": (2, 3)}, False, (1, 2, 3)))
    76
    """
    g, o, i = layer.shape
    inputs = 0 if layer.unit_inputs else i * i
    outputs = 0 if layer.unit_outputs else o * o
    return 4 * g * (inputs + outputs + o * i)


def size(count: float) -> str:
    """Return bytes for people.

    >>> size(1536), size(3 * 2**30)
    ('1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
