"""A run folder: the recipe in it, and everything that a stage may read."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unlearn.atomic import make_folder, read_json, write_atomically
from unlearn.checkpoint import read_metadata
from unlearn.curvature import Curvature, fit_curvature, load_curvature
from unlearn.curvature.layers import find_layers
from unlearn.data import (
    Corrupted,
    Rows,
    add_duplicates,
    add_outliers,
    add_trigger,
    corrupt_inputs,
    load_data,
    pair_noise,
    symmetric_noise,
    with_trigger,
)
from unlearn.data.corruptions import AMPLITUDE
from unlearn.errors import FolderError, InputError
from unlearn.inputs import shapes_of
from unlearn.models import LinearHead, build_model
from unlearn.predict import predict
from unlearn.ranks import on_first_rank
from unlearn.recipe import Recipe, parse_recipe
from unlearn.repair import Changes, Cost, Edit, Step, check_certified, chosen_parameters
from unlearn.tasks import get_task
from unlearn.training import TRAJECTORY_FILE, TrainingRecord, TrainSettings, Trajectory, load_checkpoint

FORMAT = 1


def true_labels(rows: Rows) -> dict[str, int]:
    """Return the true label of every row whose given one is known to be wrong.

    Raises:
        InputError: no true labels are known.
    """
    if rows.truth is None:
        raise InputError(
            f"the true labels of {rows.name} are not known; action 'true-labels' needs label noise or a trigger in the "
            "recipe"
        )
    pairs = zip(rows.ids, rows.labels.tolist(), rows.truth.tolist(), strict=True)
    return {row: true for row, given, true in pairs if given != true}


@dataclass(frozen=True)
class Run:
    """A run folder and the recipe in it.

    Attributes:
        folder: where everything is.
        recipe: what is done.
        device: what it is computed on; None for the CPU.
    """

    folder: Path
    recipe: Recipe
    device: str | None = None

    @classmethod
    def create(cls, folder: str | Path, recipe: Recipe, *, resume: bool = False, device: str | None = None) -> Run:
        """Make a new run folder, or take up one that holds the same recipe.

        Raises:
            FolderError: the folder holds a run already, or other files.
            UnlearnError: of a new run, what :meth:`check` refuses; no folder is made.
        """
        run = cls.planned(folder, recipe, resume=resume, device=device)
        stored = run.folder / "recipe.toml"
        if not stored.exists():
            run.check()
            make_folder(run.folder)
            write_atomically(stored, recipe.text.encode())
        return run

    @classmethod
    def planned(cls, folder: str | Path, recipe: Recipe, *, resume: bool = False, device: str | None = None) -> Run:
        """Return the run that :meth:`create` would make or take up; nothing is written, data and model not looked at.

        Raises:
            FolderError: the folder holds a run already, or other files.
        """
        path = Path(folder)
        stored = path / "recipe.toml"
        if stored.exists():
            if not resume:
                raise FolderError(
                    f"{str(path)!r} holds a run already; pass --resume to go on with it, or another folder"
                )
            if stored.read_text() != recipe.text:
                raise FolderError(
                    f"{str(path)!r} holds a run of another recipe (or version of it); choose another folder"
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FolderError(f"{str(path)!r} exists and is no run folder; choose a new or empty folder")
        return cls(path, recipe, device)

    @classmethod
    def open(cls, folder: str | Path, *, device: str | None = None) -> Run:
        """Open a run folder.

        Raises:
            FolderError: it holds no run.
        """
        stored = Path(folder) / "recipe.toml"
        if not stored.exists():
            raise FolderError(f"{str(folder)!r} holds no run (no recipe.toml); make one with `unlearn train RECIPE`")
        return cls(Path(folder), parse_recipe(stored.read_text(), str(stored)), device)

    def check(self) -> None:
        """Refuse data and a model that do not go together, before anything is trained.

        Raises:
            InputError: unknown data or model, weights that are not finite, or inputs or labels that the model can not
                take.
        """
        model = self.build()
        rows = self.data.at(torch.stack([self.data.labels.argmin(), self.data.labels.argmax()]))
        try:
            outputs = predict(model, rows)
        except (RuntimeError, TypeError, AttributeError, IndexError) as error:
            raise InputError(
                f"model {self.recipe.model.name!r} can not take the rows of {rows.name}, inputs of shape "
                f"{shapes_of(rows[0][0])}: {error}"
            ) from error
        if isinstance(model, LinearHead) and self.recipe.certified is not None:
            check_certified(model, self.data)
            return
        get_task("classification").check(outputs, rows.labels)
        find_layers(model, rows)
        if self.recipe.repair.layers:
            chosen_parameters(model, self.recipe.repair.layers)
        if self.stated is not None:
            self.stated.check(self.data)

    @cached_property
    def stated(self) -> Changes | None:
        """What the recipe itself says is to be changed; None where a detector decides."""
        section = self.recipe.repair
        if section.label is not None:
            return Changes(removed_classes=(section.label,)).on(self.data)
        if section.action == "true-labels":
            return Changes(relabelled=true_labels(self.data))
        if section.decisions is None:
            return None
        lines = ((f"decision {k}", line.model_dump()) for k, line in enumerate(section.decisions, 1))
        return Changes.of(lines).on(self.data)

    @cached_property
    def data(self) -> Rows:
        """Training rows with the recipe's label noise and corruption."""
        return self._labelled if self.corrupted is None else self.corrupted.rows

    @cached_property
    def corrupted(self) -> Corrupted | None:
        """The training rows and which of them the recipe corrupts; None where it corrupts none."""
        section = self.recipe.data
        done = section.corruption
        if done is None:
            return None
        if done.kind == "duplicates":
            return add_duplicates(self._labelled, done.rate, done.seed, near=done.near)
        if done.kind == "outliers":
            other = None if done.other is None else load_data(done.other, "train", split_seed=section.split_seed)
            return add_outliers(self._labelled, done.rate, done.seed, other=other)
        if done.kind == "trigger" and done.label is not None:
            return add_trigger(self._labelled, done.rate, done.seed, label=done.label, amplitude=self._amplitude)
        return corrupt_inputs(self._labelled, done.rate, done.seed, kind=done.kind, strength=done.strength)  # type: ignore[arg-type]

    @cached_property
    def _labelled(self) -> Rows:
        """Training rows with the recipe's label noise."""
        section = self.recipe.data
        rows = load_data(section.source, "train", split_seed=section.split_seed, options=section.options)
        noise = section.noise
        if noise is None:
            return rows
        if noise.kind == "pairs":
            return pair_noise(rows, noise.pairs, noise.rate, noise.noise_seed)
        return symmetric_noise(rows, noise.rate, noise.noise_seed)

    @cached_property
    def test(self) -> Rows:
        """Test rows."""
        section = self.recipe.data
        return load_data(section.source, "test", split_seed=section.split_seed, options=section.options)

    @cached_property
    def triggered_test(self) -> Rows | None:
        """Test rows that all carry the trigger, at their own labels; None where the recipe has no trigger."""
        done = self.recipe.data.corruption
        return with_trigger(self.test, amplitude=self._amplitude) if done and done.kind == "trigger" else None

    @property
    def _amplitude(self) -> float:
        done = self.recipe.data.corruption
        return AMPLITUDE if done is None or done.strength is None else done.strength

    @property
    def settings(self) -> TrainSettings:
        """Training settings of the recipe."""
        fields = self.recipe.train.model_dump(exclude={"train_seed", "snapshot_epochs"})
        return TrainSettings(**fields)

    def build(self) -> nn.Module:
        """Return the model with its initial weights."""
        section = self.recipe.model
        model = build_model(section.name, seed=self.recipe.train.train_seed, **section.options)
        try:
            return model.to(self.device) if self.device else model
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device {self.device!r} can not be used: {str(error).splitlines()[0]}") from error

    @cached_property
    def original(self) -> tuple[nn.Module, TrainingRecord]:
        """The trained model and its record."""
        model, record = load_checkpoint(self._need("original.safetensors", "train"), self.build())
        if record is None:
            raise InputError(f"{self.folder / 'original.safetensors'} has no training record; train again")
        return model, record

    @cached_property
    def trajectory(self) -> Trajectory | None:
        """Mean margins and logits of training, where they were recorded."""
        path = self.folder / TRAJECTORY_FILE
        return Trajectory.load(path) if path.exists() else None

    def curvature(self) -> Curvature:
        """The curvature of the original on its rows, read from the run folder or fitted and kept there."""
        model, record = self.original
        folder, stream = self.folder / "curvature", self.recipe.detect.stream_factors
        if (folder / "manifest.json").exists():
            return load_curvature(folder, model, self.data, stream=stream)
        if stream:
            return fit_curvature(model, self.data, task=record.task, folder=folder)
        fitted = fit_curvature(model, self.data, task=record.task)
        make_folder(folder)
        fitted.save(folder)
        return fitted

    def edit(self) -> Edit:
        """The edit in the run folder."""
        facts = self.check_decisions()
        edited, _ = load_checkpoint(self.folder / "edited.safetensors", self.build())
        model, record = self.original
        return Edit(
            model=edited,
            original=model,
            method=facts["method"],
            changes=Changes.load(self.folder / "decisions.csv"),
            data=self.data,
            record=record,
            steps=tuple(Step(**step) for step in facts["steps"]),
            cost=Cost(*(facts["cost"][name] for name in ("factors", "solve", "replay"))),
            before=facts["before"],
            after=facts["after"],
            budget=facts["budget"],
            start_step=facts["start_step"],
            notes=tuple(facts["notes"]),
            layers=None if facts.get("layers") is None else tuple(facts["layers"]),
        )

    def check_decisions(self) -> dict[str, Any]:
        """Return the facts of the edit; refuse them if the decisions were changed after it.

        Raises:
            FolderError: decisions.csv says something else than was done.
        """
        facts: dict[str, Any] = read_metadata(self._need("edited.safetensors", "repair"))["edit"]
        path = self.folder / "decisions.csv"
        if facts["rows"] != Changes.load(path).hashed_rows():
            raise FolderError(
                f"{path} was changed after the edit; run `unlearn repair apply {self.folder} {path} --replace`"
            )
        return facts

    def take_away(self, *stale: str) -> None:
        """Remove results that would speak of something older."""
        for name in stale:
            on_first_rank(functools.partial((self.folder / name).unlink, missing_ok=True))

    def write(self, name: str, facts: dict[str, Any]) -> None:
        """Write a JSON file of the run."""
        text = json.dumps({"format": FORMAT, **facts}, indent=1, allow_nan=False)
        write_atomically(self.folder / name, text.encode())

    def read(self, name: str, stage: str) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises:
            FolderError: the stage that writes it has not run, or the file is of another version.
        """
        facts: dict[str, Any] = read_json(self._need(name, stage))
        if facts.get("format") != FORMAT:
            raise FolderError(f"{self.folder / name} has format {facts.get('format')!r}; this release reads {FORMAT}")
        return facts

    def _need(self, name: str, stage: str) -> Path:
        path = self.folder / name
        if not path.exists() and self.recipe.certified is not None:
            raise FolderError(
                f"{self.folder} is a run of a certified head, which has no stage {stage!r} or has not run; its "
                "commands are `unlearn recipe run` and `unlearn repair remove`"
            )
        if not path.exists():
            raise FolderError(f"{path} is not there: run the stage {stage!r} first (`unlearn recipe run` runs all)")
        return path


def horizon_damping(record: TrainingRecord) -> float | None:
    """Return 2 / T (:meth:`unlearn.TrainingRecord.damping`); None for Adam, whose damping is no number.

    >>> horizon_damping(TrainingRecord("sgd", 0.1, 200)), horizon_damping(TrainingRecord("adam", 0.1, 200))
    (0.1, None)
    """
    return None if record.optimizer == "adam" else record.damping()
