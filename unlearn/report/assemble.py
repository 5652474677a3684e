"""Every figure of a run, gathered from the files of its folder."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unlearn.checkpoint import read_metadata
from unlearn.data import Rows
from unlearn.predict import predict
from unlearn.recipe import Recipe
from unlearn.training import TrainingRecord

LIMITS = (
    "The edit approximates retraining. The verdict says how near it came on the rows measured here, not on all inputs.",
    "No bound holds for a deep network: this is the evidence of an honest operator, no proof to a third party.",
    "Rows found by a detector are suspects; clean ones among them are changed too, in the edit and the retrains alike.",
    "The retrained references share recipe and data with the original; another recipe could differ by more.",
)


def assemble_report(
    folder: Path, recipe: Recipe, data: Rows, test: Rows, record: TrainingRecord, original: nn.Module
) -> dict[str, Any]:
    """Return the report as JSON-able data; a stage that has not run is None.

    Args:
        folder: the run folder.
        recipe: its recipe.
        data: training rows.
        test: test rows.
        record: training record of the original.
        original: the trained model.
    """
    detection, edit, verdict = (_read(folder / name) for name in ("detection.json", "edit.json", "verdict.json"))
    predictions = (edit or {}).get("predictions", {"before": {}, "after": {}})
    noise = recipe.data.noise
    if detection is not None:
        acted = set(detection.pop("acted"))
        for row in detection["top"]:
            row["acted"] = row["id"] in acted
            row["predicted_before"] = predictions["before"].get(row["id"])
            row["predicted_after"] = predictions["after"].get(row["id"])
    if edit is not None:
        edit = {key: value for key, value in edit.items() if key not in ("format", "predictions", "changes_sha256")}
        edit["rows"] = edit["removed"] + edit["relabelled"]
        edit["replay_epochs"] = edit["cost"]["replay"]
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
        "edit": edit,
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


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None
