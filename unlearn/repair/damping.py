"""Weight decay and damping of an edit, from the training record or from the caller (math.md 3)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from unlearn.curvature import Vector
from unlearn.errors import InputError, RecordError
from unlearn.repair.objective import Damping
from unlearn.training import Snapshot, TrainingRecord


def weight_decay_of(given: float | None, record: TrainingRecord | None) -> float:
    """Return w: the given number, or the record's.

    Raises:
        RecordError: neither is there.
        InputError: the number is negative or not finite.
    """
    if given is None:
        if record is None:
            raise RecordError(
                "no training record and no weight decay: pass record=TrainingRecord(optimizer, lr, steps, ...), or "
                "weight_decay= and damping= as numbers, or calibration= with rows that it was not trained on"
            )
        return record.weight_decay
    if not 0 <= given < math.inf:
        raise InputError(f"weight_decay is {given}; give a finite number, 0 or more")
    return given


def damping_of(
    given: float | str, record: TrainingRecord | None, start: int | None, snapshot: Snapshot | None, place: nn.Module
) -> Damping:
    """Return d: the given number, or by the horizon 2 / T, or Adam's metric; see math.md 3.

    Args:
        given: a number or ``horizon``.
        record: of the training.
        start: steps done at the weights to edit; None for the last.
        snapshot: of these weights, where the optimizer is Adam.
        place: the model with these weights.

    Raises:
        RecordError: the record, or the snapshot that Adam needs, is missing.
        InputError: a number or word that can not be meant.
    """
    if not isinstance(given, str):
        if not 0 <= given < math.inf:
            raise InputError(f"damping is {given}; give a finite number, 0 or more")
        return float(given)
    if given != "horizon":
        raise InputError(f"unknown damping {given!r}; give a number or 'horizon'")
    if record is None:
        raise RecordError(
            "no training record and no damping: pass record=TrainingRecord(optimizer, lr, steps, ...), from which the "
            "damping 2 / T follows, damping= as a number, or calibration= with rows that it was not trained on"
        )
    if record.optimizer != "adam":
        return record.damping(start)
    if snapshot is None:
        raise RecordError("the damping of Adam needs a snapshot with its second moments; record one, or give damping=")
    done = record.steps if start is None else start
    return _adam_metric(record, snapshot, done, dict(place.named_parameters()))


def _adam_metric(record: TrainingRecord, snapshot: Snapshot, done: int, parameters: dict[str, Any]) -> Vector:
    """Return (sqrt(v) + eps) / sum lr, with Adam's bias-corrected second moments v after ``done`` steps."""
    horizon, correction = record.horizon(0, done), 1 - record.betas[1] ** done
    metric: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        moment = snapshot.optimizer.get(f"exp_avg_sq/{name}")
        if moment is not None:
            metric[name] = (((moment / correction).sqrt() + record.eps) / horizon).to(parameter)
    return metric
