"""Suggested labels for suspicious rows, from trajectory and model, never from the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearn.data import Rows
from unlearn.errors import InputError, some
from unlearn.training import Trajectory

SUGGESTED = 3


def suggest_labels(data: Rows, *, trajectory: Trajectory | None = None, logits: Tensor | None = None) -> dict[str, int]:
    """Return for each row the most likely class other than the given label: the first of :func:`rank_labels`.

    >>> rows = Rows.from_tensors(torch.zeros(1, 2), torch.tensor([0]), classes=3)
    >>> suggest_labels(rows, logits=torch.tensor([[5.0, 1.0, 2.0]]))
    {'0': 2}
    """
    return {row: ranked[0] for row, ranked in rank_labels(data, trajectory=trajectory, logits=logits, most=1).items()}


def rank_labels(
    data: Rows, *, trajectory: Trajectory | None = None, logits: Tensor | None = None, most: int = SUGGESTED
) -> dict[str, tuple[int, ...]]:
    """Return for each row the classes other than the given label, the most likely first.

    The mean logits of training are used where they are there: late in training a model has often learnt the wrong
    label. Without them, the present logits.

    Args:
        data: rows.
        trajectory: recorded in training.
        logits: of the model on the rows, (n, classes).
        most: labels for each row (all others, where there are fewer).

    Raises:
        InputError: neither is given, a row is not in the trajectory, the rows have no classes, or the logits do not
            fit them.

    >>> rows = Rows.from_tensors(torch.zeros(1, 2), torch.tensor([0]), classes=3)
    >>> rank_labels(rows, logits=torch.tensor([[5.0, 1.0, 2.0]]))
    {'0': (2, 1)}
    """
    if trajectory is not None:
        place = {row: i for i, row in enumerate(trajectory.ids)}
        missing = [row for row in data.ids if row not in place]
        if missing:
            raise InputError(f"{len(missing)} rows are not in the trajectory: {some(missing)}; suggest from logits")
        logits = trajectory.logits[torch.tensor([place[row] for row in data.ids])]
    if logits is None:
        raise InputError("suggested labels need a trajectory or logits; pass one of them")
    if data.classes is None:
        raise InputError(f"{data.name} has numbers for labels; labels can be suggested for classes only")
    largest = int(data.labels.max())
    if logits.ndim != 2 or len(logits) != len(data) or logits.shape[1] <= max(largest, 1):
        raise InputError(
            f"logits have shape {tuple(logits.shape)} for {len(data)} rows with labels up to {largest}; "
            "give (rows, classes)"
        )
    if not torch.isfinite(logits).all():
        raise InputError("logits are NaN or infinite; suggest from a finite model")
    others = logits.cpu().scatter(1, data.labels[:, None], float("-inf"))
    ranked = others.argsort(dim=1, descending=True, stable=True)[:, : min(most, logits.shape[1] - 1)]
    return {row: tuple(labels) for row, labels in zip(data.ids, ranked.tolist(), strict=True)}
