"""Which method an edit uses: the best that the record and the budget allow.

| recorded | budget | method |
|---|---|---|
| weights, and how they were trained | any | ``newton`` on the final weights |
| the same, many wrong labels, a head to train again | 15 steps or more | ``descent`` from the final weights |
| snapshots and row order | 0, or reaches none of them | ``unrolled`` on the final weights; ``newton`` for many rows |
| snapshots and row order | reaches a snapshot | ``rewind-unrolled-replay``; ``rewind-newton-replay`` for many rows |
| the same, many wrong labels, a head to train again | 15 steps or more | ``rewind-compressed-replay`` |

Many rows are more than a share ``MANY`` of all, or the last ones of a class. What they taught is no small change of the
weights, along which training could be linearised. Where it was learnt late, as wrong labels are, it is left behind by a
rewind to where it was not yet learnt, and the rest of the recorded schedule is run from there in as many epochs as the
budget pays for. That leaves the features near those of a retrain, and the last layer behind them short of training: it
is trained again in full (:mod:`unlearn.repair.head`), and where it can not be, the longer way round is taken.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from unlearn.data import Rows
from unlearn.errors import InputError, RecordError, did_you_mean
from unlearn.repair.descent import batch_size
from unlearn.repair.rewind import LEAST_STEPS, compressed_step, rewind_step
from unlearn.repair.trajectory import Segment, segments_to
from unlearn.training import TrainingRecord

Method = Literal["auto", "newton", "unrolled", "compressed", "descent"]
MANY = 0.05
"""More than this share of all rows are many."""
UNROLLED = ("sgd", "adam")
COMPRESSED, DESCENT = "rewind-compressed-replay", "descent"
SEGMENTS = 5
COARSE = 0.55
"""A segment longer than this share of the training is not unrolled unless that is asked for."""


@dataclass(frozen=True)
class Plan:
    """A method, where it starts, and what a reader should know of the choice.

    Attributes:
        start: the step whose snapshot is edited and replayed from; None for the final weights.
        segments: of the unrolled edit; none for a Newton step.
        notes: why it is not the best method, where it is not.
        compressed: whether nothing is edited, and the rest of the schedule is run in fewer steps.
        descent: whether nothing is edited, and the final weights are trained on.
    """

    start: int | None
    segments: tuple[Segment, ...]
    notes: tuple[str, ...]
    compressed: bool = False
    descent: bool = False

    @property
    def unrolled(self) -> bool:
        """Whether the edit is the unrolled one."""
        return bool(self.segments)

    @property
    def name(self) -> str:
        """``newton``, ``unrolled``, ``descent``, or ``rewind-...-replay`` with the first two or ``compressed``."""
        if self.compressed:
            return COMPRESSED
        if self.descent:
            return DESCENT
        edit = "unrolled" if self.unrolled else "newton"
        return edit if self.start is None else f"rewind-{edit}-replay"


def choose_method(
    method: Method,
    record: TrainingRecord | None,
    rows: Rows,
    budget: float,
    *,
    many: bool,
    left: int,
    early: int | None = None,
    wrong: bool = False,
    shared: bool = False,
    newton_only: Collection[str] = (),
) -> Plan:
    """Choose the method of an edit.

    Args:
        method: what was asked for.
        record: of the training.
        rows: before the change.
        budget: epochs that may be replayed.
        many: whether more than a share ``MANY`` of the rows change, or a class goes.
        left: rows after the change.
        early: the snapshot from which a compressed replay is better than an edit, if the choice is free and one is.
        wrong: whether most changed labels were wrong and a head can be trained again, so that from the final weights on
            a descent is better than a step, if the choice is free.
        shared: whether the unrolled edit's factors are kept for other requests, so that more of them pay.
        newton_only: names of the options given that only a Newton step on the final weights takes.

    Raises:
        InputError: an unknown method, or options that do not go together.
        RecordError: the unrolled edit is asked for, and what it needs was not recorded.
    """
    if method not in get_args(Method):
        raise InputError(f"unknown method {method!r}; {did_you_mean(method, get_args(Method))}")
    start, notes = rewind_step(record, rows, budget), []
    given = [name for name in newton_only if name != "curvature" or start is None]
    if method == "compressed":
        if newton_only:
            raise InputError(f"method 'compressed' takes no {', '.join(f'{n}=' for n in newton_only)}; leave it out")
        early = compressed_step(record, rows, budget)
        if early is None:
            raise RecordError(
                f"method 'compressed' needs snapshots, the row order and a budget of at least {LEAST_STEPS} steps; "
                "record them, or use method='newton'"
            )
    if method == "descent":
        _check_descent(record, left, budget, newton_only)
    if method == "descent" or (wrong and start is None and early is None and descent_steps(record, left, budget)):
        return Plan(None, (), ("the curvature given was not needed",) if newton_only else (), descent=True)
    if early is not None:
        return Plan(early, (), ("the curvature given was not needed",) if newton_only else (), compressed=True)
    for option, why in (("skip", "leaves layers as they are"), ("layers", "edits some layers only")):
        if start is not None and option in newton_only:
            raise InputError(f"{option}= {why}, but a replay moves all of them; pass budget=0 with it")
    if start is None and budget > 0 and record is not None and len(record.snapshots) > 1:
        notes.append(f"no snapshot lies within {budget:g} epochs of the end, so the final weights were edited")
    if method == "newton":
        return Plan(start, (), tuple(notes))
    segments = _segments(record, start, None if shared else SEGMENTS)
    if method == "unrolled":
        if given:
            raise InputError(f"method 'unrolled' takes no {', '.join(f'{name}=' for name in given)}; leave it out")
        if not segments:
            raise RecordError(
                "method 'unrolled' needs snapshots and the row order of an SGD or Adam training; record them with "
                "unlearn.Recorder, or use method='newton'"
            )
        return Plan(start, segments, tuple(notes))
    stop = segments[-1].stop if segments else 0
    coarse = any(segment.stop - segment.start > COARSE * stop for segment in segments)
    coarse = coarse or (bool(segments) and segments[0].start > COARSE * stop)
    if coarse:
        notes.append("snapshots lie too far apart to unroll the training, so a Newton step was taken")
    if start is None and wrong and record is not None and (record.order is None or len(record.snapshots) < 2):
        notes.append(
            f"most of the labels were wrong; with a budget of at least {LEAST_STEPS} steps the final weights would be "
            "trained on instead, which at equal cost came nearer to retraining where it was measured (docs/limits.md)"
        )
    return Plan(start, () if coarse or given or many else segments, tuple(notes))


def descent_steps(record: TrainingRecord | None, rows: int, budget: float) -> int:
    """Return how many steps a descent has; 0 where it has fewer than ``LEAST_STEPS`` or the record none to repeat."""
    if record is None or record.optimizer not in UNROLLED:
        return 0
    steps = round(budget * math.ceil(rows / batch_size(record)))
    return steps if steps >= LEAST_STEPS else 0


def _check_descent(record: TrainingRecord | None, rows: int, budget: float, given: Collection[str]) -> None:
    if given:
        raise InputError(f"method 'descent' takes no {', '.join(f'{n}=' for n in given)}; leave it out")
    if not descent_steps(record, rows, budget):
        raise RecordError(
            f"method 'descent' needs the record of an SGD or Adam training and a budget of at least {LEAST_STEPS} "
            "steps; give both, or use method='newton'"
        )


def _segments(record: TrainingRecord | None, start: int | None, most: int | None) -> tuple[Segment, ...]:
    """Return the segments up to the weights that are edited; none where the training can not be unrolled."""
    if record is None or record.order is None or record.folder is None or record.optimizer not in UNROLLED:
        return ()
    stop = record.steps if start is None else start
    if stop not in record.snapshots:
        return ()
    return tuple(segments_to(list(record.snapshots), stop, most))
