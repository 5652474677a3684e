"""After which epochs snapshots are kept: all, so many as the disk allows, or those named."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from unlearn.errors import InputError

LEAST = 3


def snapshot_epochs(wanted: Literal["every"] | int | Iterable[int], epochs: int) -> list[int]:
    """Return the epochs whose ends are kept, with 0, the weights before the first step.

    A number of snapshots is placed for the edits that use them: the weights before the first step, the last two ends
    of epochs (a replay of one epoch starts from the first of them), and between them stretches that halve towards the
    end, where the weights know best what happened. Six snapshots lose next to nothing against one an epoch
    (``python -m benchmarks.snapshots``).

    Args:
        wanted: ``every`` epoch, how many snapshots in all, or after which epochs.
        epochs: of the training.

    Raises:
        InputError: fewer than three, or an epoch that is not there.

    >>> snapshot_epochs(4, 15), snapshot_epochs(6, 45), snapshot_epochs([5], 15)
    ([0, 9, 14, 15], [0, 23, 35, 41, 44, 45], [0, 5])
    """
    if wanted == "every":
        return list(range(epochs + 1))
    if isinstance(wanted, str):
        raise InputError(f"snapshots after {wanted!r} are not known; give 'every', a number of them, or epochs")
    if not isinstance(wanted, int):
        named = sorted({0, *wanted})
        if named[0] < 0 or named[-1] > epochs:
            raise InputError(
                f"snapshots are asked for after epochs {named[0]} to {named[-1]}; the training has 0 to {epochs}"
            )
        return named
    if wanted < LEAST:
        raise InputError(f"{wanted} snapshots are asked for; give at least {LEAST}: the start, and the last two epochs")
    stretches = wanted - 2
    ends = [(epochs - 1) * (2**stretches - 2 ** (stretches - k)) / (2**stretches - 1) for k in range(stretches + 1)]
    return sorted({*map(round, ends), epochs})
