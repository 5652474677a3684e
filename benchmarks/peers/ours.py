"""This package, at its default batch sizes."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

import unlearn.curvature.fit as fitting
from benchmarks.peers.case import Case
from benchmarks.peers.peer import inside
from unlearn.curvature import fit_curvature
from unlearn.data import Rows
from unlearn.detect import influence, self_influence


class Unlearn:
    """``fit_curvature``, ``self_influence`` and ``influence``."""

    DISTRIBUTION: ClassVar = "unlearn"
    BATCHES: ClassVar = (0,)
    ONLY_LINEAR: ClassVar = False
    FISHER: ClassVar = "sampled"

    def __init__(self, case: Case, folder: str) -> None:
        self.case, self.data = case, case.rows

    def fit(self, batch: int) -> float:
        """Fit, digests of weights and rows included."""
        with inside(fitting, "eigenbasis") as clock:
            self.curvature = fit_curvature(self.case.model, self.data)
        return clock.seconds

    def self_influence(self, batch: int) -> Tensor:
        """Scores of all rows."""
        scores = self_influence(self.case.model, self.data, curvature=self.curvature, damping=self.case.damping)
        return torch.from_numpy(scores.values)

    def pairwise(self, batch: int) -> Tensor:
        """All queries on all rows."""
        queries = Rows.from_tensors(*self.case.queries, classes=self.data.classes)
        return influence(self.case.model, self.data, queries, curvature=self.curvature, damping=self.case.damping)
