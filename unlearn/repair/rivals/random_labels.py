"""Random labels: the removed rows stay, under labels that mean nothing."""

from __future__ import annotations

from torch import nn

from unlearn.data import Rows, draws
from unlearn.errors import InputError
from unlearn.repair.changes import Changes
from unlearn.repair.descent import descend, shuffled
from unlearn.repair.rivals.rates import rates_to_try, usual_rate
from unlearn.repair.rivals.rival import Rival, RivalEdit, epochs_of
from unlearn.training import TrainingRecord


def random_labels(
    model: nn.Module, data: Rows, changes: Changes, record: TrainingRecord, setting: dict[str, float], seed: int
) -> RivalEdit:
    """Fine-tune on all rows, the removed ones under random other labels (amnesiac unlearning, arXiv 2010.10981).

    Settings: ``epochs`` over all rows, which need not be whole; ``lr``, by default the median recorded one.

    Raises:
        InputError: the task has no classes to draw from.
    """
    setting = {"lr": usual_rate(record), **setting}
    relabelled = data.relabelled(other_labels(data, changes.removed, seed))
    order = shuffled(relabelled, record, setting["epochs"], seed)
    rates = [setting["lr"]] * len(order)
    moved, processed = descend(model, relabelled, order, rates, record, seed=seed, description="random labels")
    return RivalEdit(moved, epochs_of(processed, data), setting)


def other_labels(data: Rows, ids: tuple[str, ...], seed: int) -> dict[str, int]:
    """Return for each of these rows a label other than its own, drawn by (seed, row id).

    >>> import torch
    >>> rows = Rows.from_tensors(torch.eye(3), torch.tensor([0, 1, 1]))
    >>> other_labels(rows, ("0", "2"), seed=0)
    {'0': 1, '2': 0}
    """
    if data.classes is None or data.classes < 2:
        raise InputError(f"{data.name} has no two classes, so there are no other labels to draw")
    own = data.only(ids).labels.tolist()
    steps = 1 + (draws.uniform(seed, ids, "random-labels") * (data.classes - 1)).astype(int)
    return {row: (label + int(step)) % data.classes for row, label, step in zip(ids, own, steps, strict=True)}


def grid(data: Rows, changes: Changes, record: TrainingRecord, cost: float) -> list[dict[str, float]]:
    """Return as many epochs as may be spent, at every rate."""
    return [{"epochs": cost, "lr": lr} for lr in rates_to_try(record)]


RANDOM_LABELS = Rival("random labels", random_labels, grid, required=("epochs",), optional=("lr",), removes_only=True)
