"""Which snapshots of a training record a score is taken over."""

from __future__ import annotations

from collections.abc import Sequence

from unlearn.errors import InputError, RecordError, some
from unlearn.training import TrainingRecord


def recorded_steps(record: TrainingRecord, steps: Sequence[int] | None) -> list[int]:
    """Return the steps of the snapshots to use, in their order; all after the first step if None.

    The weights before the first step are no result of training and are left out.

    Raises:
        RecordError: no snapshots, or one that was not recorded.
        InputError: no steps, or one named twice.

    >>> record = TrainingRecord(optimizer="sgd", lr=0.1, steps=9, snapshots={0: "", 3: "", 9: ""})
    >>> recorded_steps(record, None), recorded_steps(record, [9])
    ([3, 9], [9])
    """
    recorded = sorted(step for step in record.snapshots if step > 0)
    if not recorded:
        raise RecordError(
            "the training record has no snapshots after the first step; train with snapshot_epochs, or score the final "
            "weights"
        )
    if steps is None:
        return recorded
    if not steps or len(set(steps)) != len(steps):
        raise InputError(f"steps is {list(steps)}; name at least one snapshot, and each once (recorded: {recorded})")
    strange = [step for step in steps if step not in recorded]
    if strange:
        raise RecordError(f"no snapshot that a step led to was recorded at {some(strange)}; there are {recorded}")
    return sorted(steps)
