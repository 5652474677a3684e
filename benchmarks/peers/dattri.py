"""dattri: ``IFAttributorEKFAC``, which covers Linear layers only.

It takes the Fisher at whatever labels its loss is given: it gets the sampled ones for the fit. Its ``self_attribute``
works for one batch with all rows only and repeats its work for each batch, so self-influence is put together here from
the public parts of the attributor.

As of 0.3.0 (read in ``dattri/func/fisher.py`` and ``algorithm/influence_function.py``) eigenvectors, the columns of
``torch.linalg.eigh``, are used as rows; and a bias is appended to the flattened weight before both are reshaped to one
matrix, which moves entries between rows. :func:`mended_agreement` undoes the first in a model without biases.
"""

from __future__ import annotations

from typing import Any, ClassVar
from unittest import mock

import dattri.func.fisher as fisher
import torch
from dattri.algorithm.influence_function import IFAttributorEKFAC
from dattri.task import AttributionTask
from torch import Tensor, nn

from benchmarks.peers.case import Case
from benchmarks.peers.ours import Unlearn
from benchmarks.peers.peer import inside, loader, query_loader
from unlearn.data import Rows


class Dattri:
    """An attributor on all Linear layers."""

    DISTRIBUTION: ClassVar = "dattri"
    BATCHES: ClassVar = (32, 128, 256)
    ONLY_LINEAR: ClassVar = True
    FISHER: ClassVar = "sampled"

    def __init__(self, case: Case, folder: str) -> None:
        self.case = case
        model = case.copy_of_model()

        def loss(parameters: dict[str, Tensor], batch: Any) -> Tensor:
            inputs, labels = batch
            outputs = torch.func.functional_call(model, parameters, (inputs,))
            return torch.nn.functional.cross_entropy(outputs, labels)

        task = AttributionTask(loss, model, model.state_dict())
        self.attributor = IFAttributorEKFAC(task, damping=case.damping)

    def fit(self, batch: int) -> float:
        """``cache`` with the sampled labels."""
        with inside(fisher, "estimate_eigenvector") as clock:
            self.attributor.cache(loader(self.case, batch, self.case.sampled))
        return clock.seconds

    def self_influence(self, batch: int) -> Tensor:
        """Representations of a batch, and their inner products with the transformed ones."""
        found = []
        for rows in loader(self.case, batch, self.case.labels):
            data = tuple(part[None] for part in rows)
            plain = self.attributor.generate_train_rep(0, data)
            found.append((plain * self.attributor.transform_test_rep(0, plain)).sum(1).detach())
        return torch.cat(found)

    def pairwise(self, batch: int) -> Tensor:
        """``attribute``, with all queries in one batch."""
        rows = loader(self.case, batch, self.case.labels)
        found: Tensor = self.attributor.attribute(rows, query_loader(self.case, len(self.case.queries[1])))
        return -found.detach().T


def mended_agreement(case: Case) -> float:
    """Return the largest relative difference of self-influence on two layers without bias, eigenvectors transposed."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32, bias=False), nn.ReLU(), nn.Linear(32, 10, bias=False))
    with torch.no_grad():
        for place, layer in enumerate((model[1], model[3])):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(place)) / 8)
    rows = Rows.from_tensors(case.inputs, case.labels, classes=10)
    plain = Case.of({"name": "mlp", "options": {"classes": 10}}, model, rows, rows)
    decompose = fisher.estimate_eigenvector
    ours, theirs = Unlearn(plain, ""), Dattri(plain, "")
    ours.fit(0)
    with mock.patch.object(
        fisher, "estimate_eigenvector", lambda found: {k: (a.T, s.T) for k, (a, s) in decompose(found).items()}
    ):
        theirs.fit(32)
    expected = ours.self_influence(0)
    return float((theirs.self_influence(32).double() - expected).abs().max() / expected.max())
