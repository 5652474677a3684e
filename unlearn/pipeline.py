"""From a recipe to a verdict: stages that read and write one run folder, each skipped when it is finished.

A stage writes its last file when everything else of it is there; that file marks it as finished.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unlearn import detect
from unlearn.atomic import make_folder, write_atomically
from unlearn.checkpoint import save_checkpoint
from unlearn.curvature import Curvature, fit_curvature, load_curvature
from unlearn.data import Rows, load_data, pair_noise, symmetric_noise
from unlearn.errors import FolderError, InputError
from unlearn.models import build_model
from unlearn.predict import predict
from unlearn.recipe import Recipe, parse_recipe
from unlearn.repair import Changes, Cost, Edit, Step, apply_changes, fine_tune, plain_replay
from unlearn.report import assemble_report, render_report
from unlearn.training import TRAJECTORY_FILE, TrainingRecord, TrainSettings, Trajectory, load_checkpoint, train
from unlearn.verification import Verdict, verify

STAGES = ("train", "detect", "decide", "repair", "verify", "report")
FORMAT = 1
SHOWN = 48
BINS = 60


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
        make_folder(path)
        if not stored.exists():
            write_atomically(stored, recipe.text.encode())
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

    @cached_property
    def data(self) -> Rows:
        """Training rows with the recipe's label noise."""
        section = self.recipe.data
        rows = load_data(section.source, "train", split_seed=section.split_seed)
        noise = section.noise
        if noise is None:
            return rows
        if noise.kind == "pairs":
            pairs = {int(old): new for old, new in noise.pairs.items()}
            return pair_noise(rows, pairs, noise.rate, noise.noise_seed)
        return symmetric_noise(rows, noise.rate, noise.noise_seed)

    @cached_property
    def test(self) -> Rows:
        """Test rows."""
        return load_data(self.recipe.data.source, "test", split_seed=self.recipe.data.split_seed)

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
        folder = self.folder / "curvature"
        if (folder / "manifest.json").exists():
            return load_curvature(folder, model, self.data)
        fitted = fit_curvature(model, self.data, task=record.task)
        make_folder(folder)
        fitted.save(folder)
        return fitted

    def edit(self) -> Edit:
        """The edit in the run folder."""
        facts = self.read("edit.json", "repair")
        edited, _ = load_checkpoint(self._need("edited.safetensors", "repair"), self.build())
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
        )

    def write(self, name: str, facts: dict[str, Any]) -> None:
        """Write a JSON file of the run."""
        text = json.dumps({"format": FORMAT, **facts}, indent=1, allow_nan=False)
        write_atomically(self.folder / name, text.encode())

    def read(self, name: str, stage: str) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises:
            FolderError: the stage that writes it has not run, or the file is of another version.
        """
        facts = json.loads(self._need(name, stage).read_text())
        if facts.get("format") != FORMAT:
            raise FolderError(f"{self.folder / name} has format {facts.get('format')!r}; this release reads {FORMAT}")
        return facts  # type: ignore[no-any-return]

    def _need(self, name: str, stage: str) -> Path:
        path = self.folder / name
        if not path.exists():
            raise FolderError(f"{path} is not there: run the stage {stage!r} first (`unlearn recipe run` runs all)")
        return path


def train_stage(run: Run) -> None:
    """Train the original; leave its record, snapshots and trajectory."""
    section = run.recipe.train
    every = range(section.epochs + 1) if section.snapshot_epochs == "every" else section.snapshot_epochs
    model, record = train(
        run.build(),
        run.data,
        run.settings,
        seed=section.train_seed,
        folder=run.folder,
        snapshot_epochs=sorted({0, *every}),
        description="training the original",
    )
    save_checkpoint(
        run.folder / "original.safetensors",
        model,
        record=record,
        recipe=(run.recipe.name, run.recipe.text),
        spec={"name": run.recipe.model.name, "options": run.recipe.model.options},
    )


def compute_scores(run: Run, method: str) -> detect.Scores:
    """Return the scores of one method on the run's rows.

    Raises:
        InputError: the trajectory was not recorded.
    """
    model, record = run.original
    if method == "margin-trajectory":
        if run.trajectory is None:
            raise InputError("the run has no trajectory.safetensors; choose another method or train with the recorder")
        return detect.margin_trajectory(run.trajectory, run.data)
    if method == "loss":
        return detect.loss(model, run.data, task=record.task)
    score = detect.self_influence if method == "self-influence" else detect.gif_scores
    return score(model, run.data, curvature=run.curvature(), weight_decay=record.weight_decay, task=record.task)


FIT_COST = 2.0
SCORE_COSTS = {"margin-trajectory": 0.0, "loss": 1 / 3, "self-influence": FIT_COST + 1, "gif": FIT_COST + 1}


def suggestions_of(run: Run) -> dict[str, int]:
    """Return a suggested label for every row, from the trajectory, or the model where there is none."""
    logits = None if run.trajectory is not None else predict(run.original[0], run.data)
    return detect.suggest_labels(run.data, trajectory=run.trajectory, logits=logits)


def write_scores(run: Run, method: str, suggestions: dict[str, int]) -> detect.Scores:
    """Compute the scores of one method and write ``scores-<method>.csv``."""
    scores = compute_scores(run, method)
    given = dict(zip(run.data.ids, run.data.labels.tolist(), strict=True))
    columns = {"given": [given[row] for row in scores.ids], "suggested": [suggestions[row] for row in scores.ids]}
    scores.save(run.folder / f"scores-{method}.csv", columns)
    return scores


def detect_stage(run: Run) -> None:
    """Compute the scores, estimate the cut-off, suggest labels."""
    section = run.recipe.detect
    suggestions = suggestions_of(run)
    given = dict(zip(run.data.ids, run.data.labels.tolist(), strict=True))
    table = []
    for method in (*(name for name in section.beside if name != section.method), section.method):
        deciding = write_scores(run, method, suggestions)
        quality = detect.ranking_quality(deciding, run.data) if run.data.truth is not None else {}
        table.append({"method": method, "cost_epochs": SCORE_COSTS[method], **quality})
    cutoff = detect.estimate_cutoff(deciding) if section.count is None else detect.count_cutoff(deciding, section.count)
    quality_of_decision = None if run.data.truth is None else detect.decision_quality(cutoff.ids, suggestions, run.data)
    counts, edges = np.histogram(deciding.values, bins=BINS)
    run.write(
        "detection.json",
        {
            "method": section.method,
            "scores": table,
            "cutoff": {
                "how": cutoff.how,
                "count": len(cutoff.ids),
                "threshold": cutoff.threshold if cutoff.ids else None,
                "means": list(cutoff.means),
                "weights": list(cutoff.weights),
            },
            "quality": quality_of_decision,
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            "acted": list(cutoff.ids),
            "top": [
                {"rank": rank, "id": row, "score": value, "given": given[row], "suggested": suggestions[row]}
                for rank, (row, value) in enumerate(deciding.top(SHOWN), 1)
            ],
        },
    )


def decide_stage(run: Run) -> None:
    """Turn the rows found into decisions; a person may edit the file before the repair."""
    found = run.read("detection.json", "detect")
    acted = found["acted"]
    if run.recipe.repair.action == "remove":
        changes = Changes(removed=tuple(acted))
    else:
        scores = detect.read_column(run.folder / f"scores-{found['method']}.csv", "suggested")
        changes = Changes(relabelled={row: int(scores[row]) for row in acted})
    changes.save(run.folder / "decisions.csv")


def repair_stage(run: Run) -> None:
    """Edit the original by the decisions, and write the edited checkpoint."""
    changes = Changes.load(run.folder / "decisions.csv")
    model, record = run.original
    section = run.recipe.repair
    edit = apply_changes(model, run.data, changes, record=record, budget=section.budget, damping=section.damping)
    write_edit(run, edit)


def write_edit(run: Run, edit: Edit) -> None:
    """Write ``edit.json`` and then ``edited.safetensors``; results of an older edit are taken away first."""
    for stale in ("edited.safetensors", "verdict.json", "report.json", "report.html"):
        (run.folder / stale).unlink(missing_ok=True)
    edit.changes.save(run.folder / "decisions.csv")
    top = [row["id"] for row in run.read("detection.json", "detect")["top"]] if _has(run, "detection.json") else []
    shown = run.data.only(top) if top else None
    predictions = {
        name: {} if shown is None else dict(zip(shown.ids, predict(model, shown).argmax(1).tolist(), strict=True))
        for name, model in (("before", edit.original), ("after", edit.model))
    }
    run.write("edit.json", {**edit.to_dict(), "predictions": predictions})
    save_checkpoint(
        run.folder / "edited.safetensors",
        edit.model,
        parent=run.folder / "original.safetensors",
        edit=edit,
        record=edit.record,
        recipe=(run.recipe.name, run.recipe.text),
    )


def verify_stage(run: Run, references: int | None = None) -> Verdict:
    """Train references, measure distances beside rivals at equal cost, and decide."""
    section, edit = run.recipe.verify, run.edit()
    epochs = max(1, round(edit.cost.total))
    rivals: dict[str, nn.Module] = {}
    if edit.record is not None and edit.record.optimizer != "lbfgs":
        seed = run.recipe.train.train_seed + 1
        rivals[f"fine-tuned {epochs}"] = fine_tune(
            edit.original, edit.edited_data, edit.record, epochs=epochs, seed=seed
        )
        if edit.record.order is not None and epochs <= run.recipe.train.epochs and 0 in edit.record.snapshots:
            rivals[f"replayed {epochs}"] = plain_replay(edit.original, edit.edited_data, edit.record, epochs=epochs)[0]
    verdict = verify(
        edit,
        test=run.test,
        references=section.references if references is None else references,
        rivals=rivals,
        tolerance=section.tolerance,
        seed=section.verdict_seed,
        folder=run.folder / "references",
    )
    write_atomically(run.folder / "verdict.json", verdict.to_json().encode())
    return verdict


def report_stage(run: Run) -> None:
    """Gather every figure in ``report.json`` and show it in ``report.html``."""
    report = assemble_report(run.folder, run.recipe, run.data, run.test, run.original[1], run.original[0])
    run.write("report.json", report)
    shown = [row["id"] for row in (report["detection"] or {"top": []})["top"]]
    images = {}
    if shown and run.data[0][0].ndim == 3:
        inputs, _ = run.data.batch(run.data.positions(shown))
        images = dict(zip(shown, inputs.numpy(), strict=True))
    write_atomically(run.folder / "report.html", render_report({"format": FORMAT, **report}, images).encode())


def _has(run: Run, name: str) -> bool:
    return (run.folder / name).exists()


_RUNS: dict[str, tuple[Callable[[Run], Any], str]] = {
    "train": (train_stage, "original.safetensors"),
    "detect": (detect_stage, "detection.json"),
    "decide": (decide_stage, "decisions.csv"),
    "repair": (repair_stage, "edited.safetensors"),
    "verify": (verify_stage, "verdict.json"),
    "report": (report_stage, "report.html"),
}


def run_stages(run: Run, *, until: str = "report", tell: Callable[[str, float | None], None] | None = None) -> None:
    """Run the stages in order up to ``until``; one that is finished is skipped.

    Without rows to act on (nothing was found) the run goes from the decisions to the report.

    Args:
        run: the run folder.
        until: last stage.
        tell: called with the stage and its seconds, None for a stage that was finished before.
    """
    for stage in STAGES[: STAGES.index(until) + 1]:
        function, marker = _RUNS[stage]
        seconds: float | None = None
        if not _has(run, marker):
            if stage in ("repair", "verify") and not Changes.load(run.folder / "decisions.csv").ids:
                continue
            begun = time.perf_counter()
            with torch.random.fork_rng(devices=[]):
                function(run)
            seconds = time.perf_counter() - begun
            timings = json.loads((run.folder / "timings.json").read_text()) if _has(run, "timings.json") else {}
            write_atomically(run.folder / "timings.json", json.dumps({**timings, stage: round(seconds, 3)}).encode())
        if tell is not None:
            tell(stage, seconds)
