"""kronfluence: EK-FAC factors, self-influence and pairwise scores, with its defaults but for damping.

Its ``damping_factor`` is 1e-8 by default and, if None, a tenth of each module's own mean eigenvalue; ours is one number
for all layers, which is passed. Its scores are + g_q^T (G + d)^-1 g_z: of the opposite sign to ours. Losses are summed
over a batch, so that its Lambda is the mean over rows, as ours.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch.nn.functional as F  # noqa: N812
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.peers.case import Case
from benchmarks.peers.peer import Clock


class SampledLabels(Task):
    """Cross-entropy; rows carry the labels that were sampled for the Fisher beside the given ones."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        """Sum over the batch."""
        inputs, given, sampled = batch
        return F.cross_entropy(model(inputs), sampled if sample else given, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        """The loss of the queries."""
        return self.compute_train_loss(batch, model)


class Kronfluence:
    """An ``Analyzer`` that writes to a temporary folder."""

    DISTRIBUTION: ClassVar = "kronfluence"
    BATCHES: ClassVar = (8, 32, 128)
    ONLY_LINEAR: ClassVar = False
    FISHER: ClassVar = "sampled"

    def __init__(self, case: Case, folder: str) -> None:
        self.rows = TensorDataset(case.inputs, case.labels, case.sampled)
        self.queries = TensorDataset(*case.queries, case.queries[1])
        task = SampledLabels()
        self.analyzer = Analyzer(
            analysis_name="peers",
            model=prepare_model(case.copy_of_model(), task),
            task=task,
            cpu=True,
            log_level=logging.ERROR,
            disable_tqdm=True,
            disable_model_save=True,
            output_dir=folder,
        )
        self.factor_args = FactorArguments(strategy="ekfac", use_empirical_fisher=False)
        self.score_args = ScoreArguments(damping_factor=case.damping)

    def fit(self, batch: int) -> float:
        """Covariances, eigendecompositions, Lambda."""
        clock = Clock()
        options = {"per_device_batch_size": batch, "factor_args": self.factor_args}
        self.analyzer.fit_covariance_matrices("ekfac", self.rows, **options)
        with clock.running():
            self.analyzer.perform_eigendecomposition("ekfac", factor_args=self.factor_args)
        self.analyzer.fit_lambda_matrices("ekfac", self.rows, **options)
        return clock.seconds

    def self_influence(self, batch: int) -> Tensor:
        """``compute_self_scores``."""
        self.analyzer.compute_self_scores(
            "self", "ekfac", self.rows, per_device_train_batch_size=batch, score_args=self.score_args
        )
        scores: Tensor = self.analyzer.load_self_scores("self")["all_modules"]
        return scores

    def pairwise(self, batch: int) -> Tensor:
        """``compute_pairwise_scores``, with all queries in one batch."""
        self.analyzer.compute_pairwise_scores(
            "pairs",
            "ekfac",
            self.queries,
            self.rows,
            per_device_query_batch_size=len(self.queries),
            per_device_train_batch_size=batch,
            score_args=self.score_args,
        )
        scores: Tensor = self.analyzer.load_pairwise_scores("pairs")["all_modules"]
        return -scores
