"""curvlinops: its EK-FAC linear operator and its inverse, applied to gradients of single rows by ``torch.func``.

It has no scores of its own; the inverse takes many vectors at once, and gets a batch of gradients.
"""

from __future__ import annotations

from typing import Any, ClassVar

import curvlinops.ekfac as ekfac
import torch
from curvlinops import EKFACLinearOperator, KFACInverseLinearOperator, KFACLinearOperator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.case import Case
from benchmarks.peers.peer import inside, per_sample_gradients
from unlearn.curvature import fit_curvature
from unlearn.data import Rows


class Curvlinops:
    """``EKFACLinearOperator`` at the sampled labels."""

    DISTRIBUTION: ClassVar = "curvlinops-for-pytorch"
    BATCHES: ClassVar = (8, 32, 128)
    ONLY_LINEAR: ClassVar = False
    FISHER: ClassVar = "sampled"

    def __init__(self, case: Case, folder: str) -> None:
        self.case = case
        self.model = case.copy_of_model()
        self.gradients = per_sample_gradients(self.model)

    def fit(self, batch: int) -> float:
        """Factors, eigenvectors and corrected eigenvalues, and the inverse operator."""
        rows = list(zip(self.case.inputs.split(batch), self.case.sampled.split(batch), strict=True))
        parameters = [value for value in self.model.parameters() if value.requires_grad]
        operator = EKFACLinearOperator(
            self.model,
            nn.CrossEntropyLoss(),
            parameters,
            rows,
            fisher_type="empirical",
            separate_weight_and_bias=False,
            check_deterministic=False,
            num_data=len(self.case),
        )
        with inside(ekfac, "eigh") as clock:
            operator.compute_eigenvalue_correction()
        self.inverse = KFACInverseLinearOperator(operator, damping=self.case.damping, use_exact_damping=True)
        return clock.seconds

    def self_influence(self, batch: int) -> Tensor:
        """Batches of gradients times the inverse."""
        found = []
        batches = zip(self.case.inputs.split(batch), self.case.labels.split(batch), strict=True)
        for inputs, labels in batches:
            plain = self._gradients(inputs, labels)
            solved = self._solved(plain)
            found.append(sum((a * b).flatten(0, -2).sum(0) for a, b in zip(plain, solved, strict=True)))
        return torch.cat(found)

    def pairwise(self, batch: int) -> Tensor:
        """Solved gradients of the queries times those of the rows."""
        solved = [part.flatten(0, -2) for part in self._solved(self._gradients(*self.case.queries))]
        found = []
        batches = zip(self.case.inputs.split(batch), self.case.labels.split(batch), strict=True)
        for inputs, labels in batches:
            plain = [part.flatten(0, -2) for part in self._gradients(inputs, labels)]
            found.append(-sum(a.mT @ b for a, b in zip(solved, plain, strict=True)))
        return torch.cat(found, dim=1)

    def _gradients(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        """Gradients with the row last, as the operators take their columns."""
        return [part.movedim(0, -1) for part in self.gradients(inputs, labels).values()]

    def _solved(self, columns: list[Tensor]) -> list[Tensor]:
        found: list[Tensor] = self.inverse @ columns
        return found


def exact_agreement(case: Case) -> dict[str, float]:
    """Return the largest difference of values where both packages define the same thing, in float64.

    K-FAC with the exact output Fisher ("type-2"), and EK-FAC at the sampled labels; each a product with a random vector
    and, for EK-FAC, a solve. Relative to the largest entry.
    """
    model = case.copy_of_model().double()
    inputs = case.inputs.double()
    rows = Rows.from_tensors(inputs, case.labels, classes=case.architecture["options"]["classes"])
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(0)
    vector = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in model.named_parameters()
    }
    options: dict[str, Any] = {
        "separate_weight_and_bias": False,
        "check_deterministic": False,
        "num_data": len(case),
    }
    loss = nn.CrossEntropyLoss()
    data = DataLoader(TensorDataset(inputs, case.sampled), batch_size=128)
    kfac = KFACLinearOperator(model, loss, parameters, data, fisher_type="type-2", **options)
    corrected = EKFACLinearOperator(model, loss, parameters, data, fisher_type="empirical", **options)
    solve = KFACInverseLinearOperator(corrected, damping=case.damping, use_exact_damping=True)
    ours_kfac = fit_curvature(model, rows, kind="kfac", fisher="exact")
    ours_ekfac = fit_curvature(model, rows)
    values = list(vector.values())
    return {
        "K-FAC, exact Fisher, product": _difference(ours_kfac.matvec(vector), kfac @ values),
        "EK-FAC, sampled labels, product": _difference(ours_ekfac.matvec(vector), corrected @ values),
        "EK-FAC, sampled labels, solve": _difference(ours_ekfac.solve(vector, damping=case.damping), solve @ values),
    }


def _difference(ours: dict[str, Tensor], theirs: list[Tensor]) -> float:
    pairs = list(zip(ours.values(), theirs, strict=True))
    largest = max(float(a.abs().max()) for a, _ in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs) / largest
