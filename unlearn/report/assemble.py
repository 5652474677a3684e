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
from unlearn.predict import predict
from unlearn.recipe import Recipe
from unlearn.repair import Edit
from unlearn.training import TrainingRecord

LIMITS = (
    "The edit approximates retraining. The verdict says how near it came on the rows measured here, not on all inputs.",
    "No bound holds for a deep network: this is the evidence of an honest operator, no proof to a third party.",
    "Rows found by a detector are suspects; clean ones among them are changed too, in the edit and the retrains alike.",
    "The retrained references share recipe and data with the original; another recipe could differ by more.",
)


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
    if detection is not None:
        _complete_rows(detection, data, original, edit)
    measures = (verdict or {}).pop("measures", [])
    accuracy = (predict(original, test).argmax(1) == test.labels).double().mean()
    return {
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
            "references": recipe.verify.references,
            "tolerance": recipe.verify.tolerance,
            "table": measures,
        }
        if verdict is not None
        else None,
        "verdict": verdict,
        "checkpoint": {
            name: {"file": f"{name}.safetensors", "digest": read_metadata(folder / f"{name}.safetensors")["digest"]}
            for name in ("original", "edited")
            if (folder / f"{name}.safetensors").exists()
        },
        "limits": list(LIMITS),
    }


def _complete_rows(detection: dict[str, Any], data: Rows, original: nn.Module, edit: Edit | None) -> None:
    """Add to the top rows what the models predict, and whether they were changed."""
    found = detection.pop("acted")
    acted = set(found if edit is None else edit.changes.ids)
    top = detection["top"]
    if not top:
        return
    shown = data.only([row["id"] for row in top])
    before = predict(original, shown).argmax(1).tolist()
    after = [None] * len(top) if edit is None else predict(edit.model, shown).argmax(1).tolist()
    for row, old, new in zip(top, before, after, strict=True):
        row |= {"acted": row["id"] in acted, "predicted_before": old, "predicted_after": new}


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None
