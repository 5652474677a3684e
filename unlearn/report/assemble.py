"""Every figure of a run, gathered from the files of its folder."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unlearn.atomic import read_json
from unlearn.checkpoint import read_metadata
from unlearn.data import Rows
from unlearn.detect import read_column
from unlearn.predict import predict
from unlearn.recipe import Recipe
from unlearn.repair import Edit
from unlearn.report.shown_rows import SHOWN, complete_rows
from unlearn.training import TrainingRecord

LIMITS = (
    "The edit approximates retraining. The verdict says how near it came on the rows measured here, not on all inputs.",
    "No bound holds for a deep network: this is the evidence of an honest operator, no proof to a third party.",
    "Rows found by a detector are suspects; clean ones among them are changed too, in the edit and the retrains alike.",
    "The retrained references share recipe and data with the original; another recipe could differ by more.",
)
_AUDITED = ("id", "label", "phi", "never_mean", "never_std", "learned_mean", "learned_std", "p", "flag")


def assemble_report(
    folder: Path,
    recipe: Recipe,
    data: Rows,
    test: Rows,
    original: nn.Module,
    record: TrainingRecord,
    edit: Edit | None,
) -> dict[str, Any]:
    """Return the report as JSON-able data; a stage that has not run is None.

    Args:
        folder: the run folder.
        recipe: its recipe.
        data: training rows.
        test: test rows.
        original: the trained model.
        record: its training record.
        edit: what was done, or None.
    """
    detection, verdict = (_read(folder / name) for name in ("detection.json", "verdict.json"))
    noise = recipe.data.noise
    facts = None
    if edit is not None:
        rows = len(edit.changes.ids)
        facts = {**edit.to_dict(), "rows": rows, "replay_epochs": edit.cost.replay}
    measures = (verdict or {}).pop("measures", [])
    accuracy = (predict(original, test).argmax(1) == test.labels).double().mean()
    report: dict[str, Any] = {
        "recipe": {
            "name": recipe.name,
            "description": recipe.description,
            "text": recipe.text,
            "sha256": recipe.digest,
        },
        "versions": {
            "unlearn": version("unlearn"),
            "torch": torch.__version__,
            "python": ".".join(platform.python_version_tuple()[:2]),
        },
        "data": {
            "name": data.name,
            "rows": len(data),
            "test_rows": len(test),
            "classes": data.classes,
            "fingerprint": data.fingerprint,
            "noise": None
            if noise is None or data.truth is None
            else {"kind": noise.kind, "rate": noise.rate, "rows": int((data.labels != data.truth).sum())},
        },
        "model": {
            "name": recipe.model.name,
            "options": recipe.model.options,
            "parameters": sum(p.numel() for p in original.parameters()),
        },
        "training": {
            "optimizer": record.optimizer,
            "epochs": recipe.train.epochs,
            "steps": record.steps,
            "horizon": record.horizon(),
            "snapshots": sorted(record.snapshots),
            "test_accuracy": float(accuracy),
        },
        "detection": None if detection is None else {k: v for k, v in detection.items() if k != "format"},
        "edit": facts,
        "verification": {
            "references": max((row["references"] for row in verdict["table"]), default=0),
            "tolerance": recipe.verify.tolerance,
            "table": measures,
            "costs": _costs(folder, recipe, edit),
        }
        if verdict is not None
        else None,
        "verdict": verdict,
        "audit": _audit(_read(folder / "audit.json")),
        "evidence": _read(folder / "evidence.json"),
        "checkpoint": {
            name: {"file": f"{name}.safetensors", "digest": read_metadata(folder / f"{name}.safetensors")["digest"]}
            for name in ("original", "edited")
            if (folder / f"{name}.safetensors").exists()
        },
        "limits": list(LIMITS),
    }
    scores = folder / f"scores-{recipe.detect.method}.csv"
    suggested = read_column(scores, "suggested") if scores.exists() else {}
    complete_rows(report, data, suggested, original, edit)
    return report


def _costs(folder: Path, recipe: Recipe, edit: Edit | None) -> dict[str, float] | None:
    """Return what each model took beyond the original training, in training epochs; None without an edit."""
    if edit is None:
        return None
    rivals = (_read(folder / "rivals.json") or {}).get("cost_epochs", {})
    return {"unedited": 0.0, "edited": edit.cost.total, **rivals, "retrained": float(recipe.train.epochs)}


def _audit(audit: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return an audit with the rows that stand out most in place of all."""
    if audit is None:
        return None
    rows = audit["rows"]
    flagged = sorted((row for row in rows if row["flag"]), key=lambda row: row["p"])
    shown = [{name: row[name] for name in _AUDITED} for row in flagged[:SHOWN]]
    return {**{name: value for name, value in audit.items() if name != "format"}, "rows": len(rows), "flagged": shown}


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None
