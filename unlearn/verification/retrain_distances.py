"""How near any model comes to the retrains of one original and one change; what every repair is measured by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations

import torch
from torch import Tensor, nn

from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.predict import predict
from unlearn.repair import Changes
from unlearn.tasks import phi
from unlearn.verification.distances import accuracy, change_cosine, kl, phi_error
from unlearn.verification.references import References

Measures = dict[str, float]


@dataclass(frozen=True)
class RetrainDistances:
    """Distances of models to the coupled retrain, beside those between independent retrains.

    Attributes:
        original: the model before the change.
        data: rows before the change, with their old labels.
        changes: the change.
        test: rows that no model was trained on.
        references: the coupled retrain and at least two independent ones, all on the changed data.
    """

    original: nn.Module
    data: Rows
    changes: Changes
    test: Rows
    references: References

    @cached_property
    def groups(self) -> dict[str, Rows]:
        """Test rows, changed rows at their old labels, and kept rows."""
        changed = self.changes.ids
        return {"test": self.test, "changed": self.data.only(changed), "kept": self.data.without(changed)}

    @cached_property
    def spread(self) -> float:
        """Root mean square phi difference between independent retrains on the changed rows, over all pairs."""
        labels = self.groups["changed"].labels
        pairs = [phi_error(a["changed"], b["changed"], labels) for a, b in combinations(self._independent, 2)]
        return math.sqrt(sum(error**2 for error in pairs) / len(pairs))

    @cached_property
    def floor(self) -> float:
        """Mean KL between independent retrains on test rows, over ordered pairs."""
        pairs = [kl(a["test"], b["test"]) for a, b in permutations(self._independent, 2)]
        return sum(pairs) / len(pairs)

    def measure(self, model: nn.Module) -> Measures:
        """Return the distances of one model to the coupled retrain.

        Returns:
            On test rows ``test accuracy``, ``accuracy - retrain``, ``KL`` and its ratios ``KL / unedited`` and
            ``KL / floor``, ``cosine test`` (of the logit change); on changed rows ``phi`` (mean), ``phi error /
            spread`` and ``cosine changed``; on kept rows ``KL kept``.

        Raises:
            InputError: outputs of the model that are not finite, no coupled retrain, or fewer than two others.
        """
        unedited, coupled, found = self._unedited, self._coupled, self._logits(model)
        labels = self.groups["changed"].labels
        right = accuracy(found["test"], self.test.labels)
        distance = kl(coupled["test"], found["test"])
        return {
            "test accuracy": right,
            "accuracy - retrain": right - accuracy(coupled["test"], self.test.labels),
            "KL": distance,
            "KL / unedited": distance / kl(coupled["test"], unedited["test"]),
            "KL / floor": distance / self.floor,
            "KL kept": kl(coupled["kept"], found["kept"]),
            "phi": float(phi(found["changed"], labels).mean()),
            "phi error / spread": phi_error(found["changed"], coupled["changed"], labels) / self.spread,
            "cosine changed": change_cosine(unedited["changed"], found["changed"], coupled["changed"]),
            "cosine test": change_cosine(unedited["test"], found["test"], coupled["test"]),
        }

    @cached_property
    def _unedited(self) -> dict[str, Tensor]:
        return self._logits(self.original)

    @cached_property
    def _coupled(self) -> dict[str, Tensor]:
        if self.references.coupled is None:
            raise InputError(
                "the record has no initial weights or row order, so there is no coupled retrain to measure against; "
                "train with a snapshot after step 0"
            )
        return self._logits(self.references.coupled)

    @cached_property
    def _independent(self) -> list[dict[str, Tensor]]:
        models = self.references.independent
        if len(models) < 2:
            raise InputError(f"there are {len(models)} independent retrains, which have no spread; train at least 2")
        return [self._logits(model) for model in models]

    def _logits(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: predict(model, rows).to(torch.float64) for name, rows in self.groups.items()}
