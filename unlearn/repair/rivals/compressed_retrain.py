"""Starting over with fewer epochs: the recorded schedule shrunk to what may be spent."""

from __future__ import annotations

import copy

import numpy as np
from torch import nn

from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.repair.changes import Changes
from unlearn.repair.descent import descend, shuffled
from unlearn.repair.rivals.rates import rates_to_try
from unlearn.repair.rivals.rival import Rival, RivalEdit, epochs_of
from unlearn.training import BatchOrder, TrainingRecord, compressed_rates, fresh_weights


def compressed_retrain(
    model: nn.Module, data: Rows, changes: Changes, record: TrainingRecord, setting: dict[str, float], seed: int
) -> RivalEdit:
    """Train from initial weights on the changed data, the whole recorded schedule in fewer steps.

    Initial weights and row order are the original's where they were recorded (a snapshot after 0 steps; the first
    steps of the order, removed rows leaving their places empty), which makes the result as near to the coupled retrain
    as so short a training can be; else they follow from the seed.

    Settings: ``epochs``, which need not be whole; ``lr``, the peak rate, by default the recorded one.
    """
    setting = {"lr": float(record.rates().max()), **setting}
    edited = changes.apply(data)
    order = _first_steps(edited, record, setting["epochs"], seed)
    rates = compressed_rates(record, len(order)) * (setting["lr"] / record.rates().max())
    start = _initial_weights(model, record, seed)
    moved, processed = descend(
        start, edited, order, rates.tolist(), record, seed=record.seed or 0, description="compressed retrain"
    )
    return RivalEdit(moved, epochs_of(processed, data), setting)


def _first_steps(edited: Rows, record: TrainingRecord, epochs: float, seed: int) -> BatchOrder:
    """Return the first recorded steps, or new ones, that see every row ``epochs`` times."""
    if record.order is None:
        return shuffled(edited, record, epochs, seed)
    order = record.order
    seen = (order.positions >= 0).sum(1).cumsum(0).numpy() / len(order.ids)
    if epochs > seen[-1] + 1e-9:
        raise InputError(
            f"a compressed retrain of {epochs:g} epochs is longer than the recorded training of {seen[-1]:g}; ask for "
            "fewer epochs"
        )
    return BatchOrder(order.ids, order.positions[: 1 + int(np.argmin(np.abs(seen - epochs)))])


def _initial_weights(model: nn.Module, record: TrainingRecord, seed: int) -> nn.Module:
    if 0 not in record.snapshots:
        return fresh_weights(model, seed)
    start = copy.deepcopy(model)
    record.snapshot(0).restore(start)
    return start


def grid(data: Rows, changes: Changes, record: TrainingRecord, cost: float) -> list[dict[str, float]]:
    """Return as many epochs as may be spent, at every peak rate; none that would be longer than the training."""
    if record.order is not None and cost * len(data) > int(record.order.rows_left()[0]):
        return []
    return [{"epochs": cost, "lr": lr} for lr in rates_to_try(record)]


COMPRESSED_RETRAIN = Rival(
    "compressed retrain", compressed_retrain, grid, required=("epochs",), optional=("lr",), needs="initial weights"
)
