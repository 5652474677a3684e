"""One (original, coupled retrain) pair of a recipe, for stated noise and train seeds."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unlearn.data import Rows, load_data, symmetric_noise
from unlearn.detect import Cutoff, estimate_cutoff, margin_trajectory, suggest_labels
from unlearn.models import build_model
from unlearn.pipeline import Run
from unlearn.pipeline.repair_benchmark import known_wrong
from unlearn.predict import predict
from unlearn.recipe import Recipe, load_recipe
from unlearn.repair import RIVALS, Changes, Edit, apply_changes
from unlearn.training import TrainingRecord, Trajectory, snapshot_epochs, train
from unlearn.verification import References, RetrainDistances, train_references


@dataclass(frozen=True)
class Setting:
    """A recipe under one seed for noise and training.

    Attributes:
        recipe: of the package.
        seed: of noise and training.
        rate: of the noise; the recipe's if None.
    """

    recipe: Recipe
    seed: int
    rate: float | None = None

    @classmethod
    def of(cls, name: str, seed: int, rate: float | None = None) -> Setting:
        """Return the setting of a shipped recipe."""
        return cls(load_recipe(name), seed, rate)

    @cached_property
    def data(self) -> Rows:
        """Noisy training rows."""
        section = self.recipe.data
        rate = section.noise.rate if self.rate is None and section.noise is not None else self.rate or 0.0
        return symmetric_noise(
            load_data(section.source, split_seed=section.split_seed, options=section.options), rate, self.seed
        )

    @cached_property
    def test(self) -> Rows:
        """Test rows."""
        section = self.recipe.data
        return load_data(section.source, "test", split_seed=section.split_seed, options=section.options)

    @cached_property
    def trained(self) -> tuple[nn.Module, TrainingRecord, Trajectory]:
        """The original, its record and its trajectory."""
        folder = tempfile.TemporaryDirectory()
        object.__setattr__(self, "_keep", folder)
        section = self.recipe.model
        model, record = train(
            build_model(section.name, seed=self.seed, **section.options),
            self.data,
            Run(Path(folder.name), self.recipe).settings,
            seed=self.seed,
            folder=folder.name,
            snapshot_epochs=snapshot_epochs(self.recipe.train.snapshot_epochs, self.recipe.train.epochs),
        )
        return model, record, Trajectory.load(Path(folder.name) / "trajectory.safetensors")

    @cached_property
    def cutoff(self) -> Cutoff:
        """Rows found by the default detector."""
        return estimate_cutoff(margin_trajectory(self.trained[2], self.data))

    def found(self, action: str) -> Changes:
        """Return the changes that detection decides on."""
        if action == "remove":
            return Changes(removed=self.cutoff.ids)
        labels = suggest_labels(self.data, trajectory=self.trained[2])
        return Changes(relabelled={row: labels[row] for row in self.cutoff.ids})

    def flipped(self, count: int) -> Changes:
        """Return the removal of ``count`` truly mislabelled rows, drawn by the seed."""
        return known_wrong(self.data, count, "remove", self.seed)


@dataclass(frozen=True)
class Comparison:
    """Distances of edits and rivals to the coupled retrain, for one setting and one change."""

    setting: Setting
    changes: Changes
    references: References

    @classmethod
    def of(cls, setting: Setting, changes: Changes, count: int = 5) -> Comparison:
        """Train the references."""
        model, record, _ = setting.trained
        return cls(setting, changes, train_references(model, changes.apply(setting.data), record, count=count))

    @cached_property
    def distances(self) -> RetrainDistances:
        """What models are measured by."""
        setting = self.setting
        return RetrainDistances(setting.trained[0], setting.data, self.changes, setting.test, self.references)

    def edit(self, budget: float) -> Edit:
        """Return our edit."""
        model, record, _ = self.setting.trained
        return apply_changes(model, self.setting.data, self.changes, record=record, budget=budget)

    def rivals(self, epochs: int, rates: tuple[float, ...] = (0.01, 0.05)) -> dict[str, nn.Module]:
        """Return fine-tuning, a compressed retrain and plain replay, each for so many epochs."""
        model, record, _ = self.setting.trained
        tried = {f"fine-tune, {epochs} epochs, lr {lr:g}": ("fine-tune", {"epochs": epochs, "lr": lr}) for lr in rates}
        tried[f"compressed retrain, {epochs} epochs, lr 0.1"] = ("compressed retrain", {"epochs": epochs, "lr": 0.1})
        tried[f"replay, {epochs} epochs"] = ("replay", {"epochs": epochs})
        return {
            name: RIVALS[rival](
                model, self.setting.data, self.changes, record, setting=setting, seed=self.setting.seed + 1
            ).model
            for name, (rival, setting) in tried.items()
        }

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return the distances of one model to the coupled retrain."""
        return self.distances.measure(model)


def logits(model: nn.Module, rows: Rows) -> Tensor:
    """Return logits in float64."""
    return predict(model, rows).double()


class Table:
    """Measures of models over seeds, printed as mean and worst."""

    LARGER = (
        "test accuracy",
        "accuracy - retrain",
        "average precision",
        "AUROC",
        "self-influence AUROC",
        "clean accuracy",
        "triggered training rows",
        "triggered test rows",
        "harmonic mean",
    )

    def __init__(self, title: str, columns: tuple[str, ...]) -> None:
        self.title, self.columns = title, columns
        self.rows: dict[str, list[dict[str, float]]] = {}

    def add(self, name: str, values: dict[str, float]) -> None:
        """Add the measures of one seed."""
        self.rows.setdefault(name, []).append(values)

    def mean(self, name: str, column: str) -> float:
        """Return the mean over seeds."""
        return float(np.mean([values[column] for values in self.rows[name]]))

    def worst(self, name: str, column: str) -> float:
        """Return the worst seed."""
        pick = min if column in self.LARGER or column.startswith(("cosine", "corrected", "share", "ceiling")) else max
        return pick(values[column] for values in self.rows[name])

    def __str__(self) -> str:
        lines = [
            f"\n### {self.title}\n",
            "| model | " + " | ".join(self.columns) + " |",
            "|---" * (len(self.columns) + 1) + "|",
        ]
        for name, found in self.rows.items():
            cells = [
                f"{self.mean(name, c):.3g} ({self.worst(name, c):.3g})" if c in found[0] else "-" for c in self.columns
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


class Bars:
    """Bars and whether they are met."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def hold(self, what: str, value: float, bar: float, *, at_least: bool = False) -> bool:
        """Note one bar."""
        met = value >= bar if at_least else value <= bar
        sign = ">=" if at_least else "<="
        self.lines.append(f"| {what} | {value:.4g} | {sign} {bar:.4g} | {'met' if met else '**not met**'} |")
        return met

    def __str__(self) -> str:
        return "\n".join(["\n| bar (mean over seeds) | measured | asked | |", "|---|---|---|---|", *self.lines])


def threads() -> str:
    """Return what the figures were made with."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"
