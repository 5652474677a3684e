"""The recorded trajectory in segments between snapshots, and the curvature that stands for each.

A segment's curvature is fitted half-way between its ends: at the mean of their weights, or at a snapshot inside it. It
belongs to the training and not to a request, so it is fitted once, kept in a folder if one is given, and shared.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from unlearn.curvature import Curvature, fit_curvature, load_curvature
from unlearn.data import Rows
from unlearn.errors import FolderError, StaleCurvatureError
from unlearn.precision import precision_name
from unlearn.tasks import Task
from unlearn.training import Snapshot, TrainingRecord

FACTOR_COST = 6
"""Fitting EK-FAC for one row: two passes forward and backward."""


@dataclass(frozen=True)
class Segment:
    """Training steps from ``start`` to before ``stop``, both snapshots; ``inside`` is one between them, if any."""

    start: int
    stop: int
    inside: int | None = None

    @property
    def name(self) -> str:
        """Name of its folder of factors."""
        return f"segment-{self.start:06d}-{self.stop:06d}"


def segments_to(snapshots: Sequence[int], stop: int, most: int | None = None) -> list[Segment]:
    """Return segments that lead from the first snapshot to the one after ``stop`` steps.

    Args:
        snapshots: recorded numbers of steps.
        stop: the snapshot to arrive at.
        most: most segments. Those that end last are the shortest, each one before about twice as long: what happened
            lately is what the weights still know best.

    >>> [(s.start, s.stop, s.inside) for s in segments_to([0, 10, 20, 30, 40], 40, most=2)]
    [(0, 30, 10), (30, 40, None)]
    >>> [(s.start, s.stop) for s in segments_to(range(0, 90, 10), 80, most=3)]
    [(0, 50), (50, 70), (70, 80)]
    """
    points = sorted(step for step in snapshots if step <= stop)
    ends = points
    if most is not None and len(points) - 1 > most:
        length = stop - points[0]
        wanted = [stop - length * (2**k - 1) / (2**most - 1) for k in range(most + 1)]
        ends = sorted({min(points, key=_distance_to(goal)) for goal in wanted})
    segments = []
    for a, b in itertools.pairwise(ends):
        within = [point for point in points if a < point < b]
        segments.append(Segment(a, b, min(within, key=_distance_to((a + b) / 2), default=None)))
    return segments


def _distance_to(goal: float) -> Callable[[int], float]:
    return lambda point: abs(point - goal)


@dataclass
class Trajectory:
    """Models along a recorded training, and their curvature; one snapshot or two are in memory at a time.

    Attributes:
        model: the trained model, for its architecture; not changed.
        record: with snapshots.
        rows: the rows that factors are fitted on, of the data before any change.
        task: the task.
        folder: where factors are kept and looked for; fitted for every edit if None.
        fitted: rows that factors were fitted on so far, over all segments.
    """

    model: nn.Module
    record: TrainingRecord
    rows: Rows
    task: Task
    folder: Path | None = None
    fitted: int = field(default=0, init=False)

    def halfway(self, segment: Segment) -> nn.Module:
        """Return a copy of the model with the weights that stand for a segment, in evaluation mode."""
        if segment.inside is not None:
            found = self.record.snapshot(segment.inside)
        else:
            ends = [self.record.snapshot(step) for step in (segment.start, segment.stop)]
            found = Snapshot(_mean([end.weights for end in ends]), {})
        model = copy.deepcopy(self.model)
        found.restore(model)
        return model.eval()

    def curvature(self, segment: Segment, model: nn.Module) -> Curvature:
        """Return EK-FAC factors at the weights of :meth:`halfway`: read from the folder, or fitted and kept there."""
        place = None if self.folder is None else self.folder / segment.name
        if place is not None:
            try:
                known = load_curvature(place, model, self.rows, task=self.task.name, kind="ekfac")
                if known.options.get("precision") == precision_name():
                    return known
            except (FolderError, StaleCurvatureError):
                pass  # none yet, or of another training: fitted anew below, as those of another precision are
        curvature = fit_curvature(model, self.rows, task=self.task)
        self.fitted += len(self.rows)
        if place is not None:
            curvature.save(place)
        return curvature


def _mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of state dicts; counters are those of the last."""
    last = states[-1]
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in last.items()
    }
