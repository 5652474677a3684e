"""pyDVL: ``EkfacInfluence`` with corrected eigenvalues, for Linear layers only.

Its Fisher is no choice of ours: gradients of sum_c sqrt(p_c) log p_c, one backward pass. It pins numpy < 2, so it is
not in the extra; it runs with numpy 2 where it is installed with ``pip install --no-deps`` beside ``dask`` and
``distributed``.
"""

from __future__ import annotations

from typing import ClassVar

import pydvl.influence.torch.influence_function_model as implementation
import torch
from torch import Tensor

from benchmarks.peers.case import Case
from benchmarks.peers.peer import inside, loader


class PyDVL:
    """The influence model; it refuses layers other than Linear."""

    DISTRIBUTION: ClassVar = "pydvl"
    BATCHES: ClassVar = (8, 32, 128)
    ONLY_LINEAR: ClassVar = True
    FISHER: ClassVar = "its own"

    def __init__(self, case: Case, folder: str) -> None:
        self.case = case
        self.influence = implementation.EkfacInfluence(
            case.copy_of_model(), update_diagonal=True, hessian_regularization=case.damping
        )

    def fit(self, batch: int) -> float:
        """``fit``."""
        with inside(implementation, "safe_torch_linalg_eigh") as clock:
            self.influence.fit(loader(self.case, batch, self.case.labels))
        return clock.seconds

    def self_influence(self, batch: int) -> Tensor:
        """The diagonal of ``influences`` of each batch on itself."""
        batches = loader(self.case, batch, self.case.labels)
        return torch.cat([self.influence.influences(*rows).detach().diagonal() for rows in batches])

    def pairwise(self, batch: int) -> Tensor:
        """``influence_factors`` of the queries, then ``influences_from_factors``."""
        factors = self.influence.influence_factors(*self.case.queries)
        batches = loader(self.case, batch, self.case.labels)
        found = [self.influence.influences_from_factors(factors, *rows).detach() for rows in batches]
        return -torch.cat(found, dim=1)
