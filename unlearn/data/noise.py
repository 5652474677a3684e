"""Seeded label noise; the true labels stay beside the rows for scoring only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unlearn.data import draws
from unlearn.data.rows import Rows
from unlearn.errors import InputError


def symmetric_noise(rows: Rows, rate: float, seed: int) -> Rows:
    """Give ``round(rate * n)`` rows another label, each of the other classes equally likely.

    Which rows are hit, and with what, depends on seed and row id only.

    Raises:
        InputError: rate outside [0, 1], or rows without classes.

    >>> import torch
    >>> rows = Rows.from_tensors(torch.zeros(10, 2), torch.arange(10) % 2)
    >>> noisy = symmetric_noise(rows, 0.3, seed=0)
    >>> int((noisy.labels != noisy.truth).sum())
    3
    """
    classes = _classes(rows, rate)
    hit = draws.permutation(seed, rows.ids, "noise-rows")[: round(rate * len(rows))]
    shift = 1 + np.floor(draws.uniform(seed, rows.ids, "noise-labels") * (classes - 1)).astype(np.int64)
    given = rows.labels.numpy()
    changed = {rows.ids[i]: int((given[i] + shift[i]) % classes) for i in hit}
    return _with_truth(rows).relabelled(changed)


def pair_noise(rows: Rows, pairs: Mapping[int, int], rate: float, seed: int) -> Rows:
    """Give ``round(rate * k)`` of the ``k`` rows of the named classes the label that ``pairs`` maps theirs to.

    Raises:
        InputError: rate outside [0, 1], or a class that is not there.

    >>> import torch
    >>> rows = Rows.from_tensors(torch.zeros(8, 2), torch.arange(8) % 4)
    >>> noisy = pair_noise(rows, {1: 3, 3: 1}, 0.5, seed=0)
    >>> sorted(set(noisy.truth[noisy.labels != noisy.truth].tolist())) in ([1], [3], [1, 3])
    True
    """
    classes = _classes(rows, rate)
    for old, new in pairs.items():
        if not (0 <= old < classes and 0 <= new < classes) or old == new:
            raise InputError(
                f"noise pair {old} -> {new} is not between two of the classes 0..{classes - 1} of {rows.name}"
            )
    given = rows.labels.tolist()
    order = draws.permutation(seed, rows.ids, "noise-rows")
    touched = [i for i in order if given[i] in pairs]
    changed = {rows.ids[i]: pairs[given[i]] for i in touched[: round(rate * len(touched))]}
    return _with_truth(rows).relabelled(changed)


def _with_truth(rows: Rows) -> Rows:
    """Return the rows with their labels as truth; a truth that is known already stays."""
    return rows.with_truth(rows.labels) if rows.truth is None else rows


def _classes(rows: Rows, rate: float) -> int:
    if rows.classes is None or rows.classes < 2:
        raise InputError(f"label noise needs at least 2 classes; {rows.name} has {rows.classes}")
    if not 0 <= rate <= 1:
        raise InputError(f"noise rate is {rate}; give a share between 0 and 1")
    return rows.classes
