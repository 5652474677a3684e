"""Retrains for comparison: the recipe's model on given rows, under seeds of its own."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from unlearn.data import Rows
from unlearn.models import build_model
from unlearn.requests.desk import Desk
from unlearn.requests.named_files import batch_folder
from unlearn.training import train
from unlearn.verification import References, train_references


def references_folder(desk: Desk, batch: int) -> Path:
    """Return where the retrains of a batch's verification lie, until a purge."""
    return batch_folder(desk.run.folder, batch) / "references"


def retrains(desk: Desk, rows: Rows, count: int, folder: Path) -> References:
    """Train the recipe's model on these rows; finished ones are found again in the folder."""
    recipe, settings = desk.run.recipe, desk.run.settings

    def retrain(data: Rows, seed: int) -> nn.Module:
        start = build_model(recipe.model.name, seed=seed, **recipe.model.options)
        device = desk.run.device
        return train(start.to(device) if device else start, data, settings, seed=seed, description=f"retrain {seed}")[0]

    return train_references(desk.run.build(), rows, None, count=count, train=retrain, folder=folder)
