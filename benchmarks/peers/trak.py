"""TRAK on one model: projected gradients in place of a curvature; pairwise scores only.

On a CPU it projects by generating a normal matrix in blocks for every batch (``BasicProjector``).
"""

from __future__ import annotations

import logging
from typing import ClassVar

import torch
from torch import Tensor
from trak import TRAKer

from benchmarks.peers.case import Case
from benchmarks.peers.peer import loader, query_loader

PROJECTED = 512


class Trak:
    """A ``TRAKer`` of 512 dimensions in float32."""

    DISTRIBUTION: ClassVar = "traker"
    BATCHES: ClassVar = (32, 128, 512)
    ONLY_LINEAR: ClassVar = False
    FISHER: ClassVar = "projected"

    def __init__(self, case: Case, folder: str) -> None:
        self.case = case
        self.model = case.copy_of_model()
        self.traker = TRAKer(
            model=self.model,
            task="image_classification",
            train_set_size=len(case),
            save_dir=folder,
            device="cpu",
            proj_dim=PROJECTED,
            use_half_precision=False,
            logging_level=logging.ERROR,
        )

    def fit(self, batch: int) -> float:
        """Features of all rows."""
        self.traker.load_checkpoint(self.model.state_dict(), model_id=0)
        for rows in loader(self.case, batch, self.case.labels):
            self.traker.featurize(batch=rows, num_samples=len(rows[0]))
        self.traker.finalize_features()
        return 0.0

    def self_influence(self, batch: int) -> None:
        """TRAK has none."""

    def pairwise(self, batch: int) -> Tensor:
        """Scores: positive where a row raises the margin of the query, so that it helps."""
        count = len(self.case.queries[1])
        self.traker.start_scoring_checkpoint("peers", self.model.state_dict(), model_id=0, num_targets=count)
        for asked in query_loader(self.case, count):
            self.traker.score(batch=asked, num_samples=count)
        return -torch.as_tensor(self.traker.finalize_scores("peers")).T
