"""Fine-tuning on what is left: what most users would do first."""

from __future__ import annotations

from torch import nn

from unlearn.data import Rows
from unlearn.repair.changes import Changes
from unlearn.repair.descent import descend, shuffled
from unlearn.repair.rivals.rates import rates_to_try, usual_rate
from unlearn.repair.rivals.rival import Rival, RivalEdit, epochs_of
from unlearn.training import TrainingRecord


def fine_tune(
    model: nn.Module, data: Rows, changes: Changes, record: TrainingRecord, setting: dict[str, float], seed: int
) -> RivalEdit:
    """Go on training on the changed data with the record's optimizer, afresh, at one learning rate.

    Settings: ``epochs`` over the rows left, which need not be whole; ``lr``, by default the median recorded one.
    """
    setting = {"lr": usual_rate(record), **setting}
    edited = changes.apply(data)
    order = shuffled(edited, record, setting["epochs"], seed)
    rates = [setting["lr"]] * len(order)
    moved, processed = descend(model, edited, order, rates, record, seed=seed, description="fine-tuning")
    return RivalEdit(moved, epochs_of(processed, data), setting)


def grid(data: Rows, changes: Changes, record: TrainingRecord, cost: float) -> list[dict[str, float]]:
    """Return as many epochs as may be spent, at every rate."""
    return [{"epochs": cost, "lr": lr} for lr in rates_to_try(record)]


FINE_TUNE = Rival("fine-tune", fine_tune, grid, required=("epochs",), optional=("lr",))
