"""Gradient ascent: the loss of the changed rows at their old labels is raised, and nothing else is looked at."""

from __future__ import annotations

from torch import nn

from unlearn.data import Rows
from unlearn.repair.changes import Changes
from unlearn.repair.descent import descend, shuffled
from unlearn.repair.rivals.rates import rates_to_try
from unlearn.repair.rivals.rival import Rival, RivalEdit, epochs_of
from unlearn.training import TrainingRecord

PASSES = (1, 2, 5, 10, 20, 50)


def gradient_ascent(
    model: nn.Module, data: Rows, changes: Changes, record: TrainingRecord, setting: dict[str, float], seed: int
) -> RivalEdit:
    """Maximise the mean loss of the changed rows at their old labels with the record's optimizer, afresh.

    NegGrad of the literature (arXiv 1911.04933, section 6). Weight decay still shrinks the weights. A new label is
    not used.

    Settings: ``passes`` over the changed rows, which is all that is paid for; ``lr``.
    """
    changed = data.only(changes.ids)
    order = shuffled(changed, record, setting["passes"], seed)
    moved, processed = descend(
        model,
        changed,
        order,
        [setting["lr"]] * len(order),
        record,
        seed=seed,
        objective=lambda _, loss: -loss,
        description="gradient ascent",
    )
    return RivalEdit(moved, epochs_of(processed, data), setting)


def grid(data: Rows, changes: Changes, record: TrainingRecord, cost: float) -> list[dict[str, float]]:
    """Return every affordable number of passes at every rate."""
    share = len(changes.ids) / len(data)
    passes = [k for k in PASSES if k * share <= cost]
    return [{"passes": float(k), "lr": lr} for k in passes for lr in rates_to_try(record)]


GRADIENT_ASCENT = Rival("gradient ascent", gradient_ascent, grid, required=("passes", "lr"))
