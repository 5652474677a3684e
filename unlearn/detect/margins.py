"""Margin trajectory: rows whose given label kept losing during training, at no cost beyond the training itself."""

from __future__ import annotations

import numpy as np

from unlearn.data import Rows
from unlearn.detect.scores import Scores
from unlearn.errors import InputError, some
from unlearn.training import Trajectory


def margin_trajectory(trajectory: Trajectory, data: Rows | None = None) -> Scores:
    """Return minus the mean margin of the given label over training (AUM, arXiv 2001.10528, eq. 2).

    The paper averages over epochs; here the mean is over the times a row was seen, which is the same for whole epochs.

    Args:
        trajectory: recorded in training.
        data: rows to score; those of the trajectory if None.

    Raises:
        InputError: a row of the data is not in the trajectory.

    >>> import torch
    >>> t = Trajectory(("a", "b"), torch.tensor([2.0, -1.0]), torch.zeros(2, 3), torch.ones(2))
    >>> margin_trajectory(t).top(1)
    [('b', 1.0)]
    """
    margin = dict(zip(trajectory.ids, trajectory.margin.tolist(), strict=True))
    ids = trajectory.ids if data is None else data.ids
    missing = [row for row in ids if row not in margin]
    if missing:
        raise InputError(f"{len(missing)} rows are not in the trajectory: {some(missing)}; score the rows trained on")
    return Scores(ids, -np.array([margin[row] for row in ids]), "margin-trajectory")
