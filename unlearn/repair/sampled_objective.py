"""The edited objective on a sample of the untouched rows and all relabelled ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from unlearn.curvature import Vector
from unlearn.predict import predict
from unlearn.repair.objective import EditedObjective


@dataclass
class SampledObjective(EditedObjective):
    """E with its divergence term estimated by strata: every relabelled row, and a sample of the rows left as they were.

    In a uniform sample most relabelled rows would be missing from the divergence, which bounds their linear term.
    With at least as many rows as there are it is E itself.

    Attributes:
        untouched: most untouched rows in a sample.
    """

    untouched: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        self._relabelled = list(self.changes.relabelled)
        self._left = self.edited.without(self._relabelled) if len(self._relabelled) < len(self.edited) else self.edited
        self._before: Tensor | None = None
        self.draw(self.seed)

    @property
    def sampled(self) -> bool:
        """Whether some untouched rows stand for others."""
        return len(self.rows) < len(self._left)

    def draw(self, seed: int) -> None:
        """Take another sample."""
        self.rows = self._left.sample(self.untouched, seed, "operator-rows")
        self._reference = None

    def _terms(self, weights: Vector) -> Iterator[Tensor]:
        """Yield the terms of E: of the sample, of the changed rows, and the quadratic ones."""
        device = next(iter(weights.values())).device
        weight = (len(self.edited) - len(self._relabelled)) / (len(self.rows) * len(self.edited))
        for positions, inputs, labels in self.rows.batches(self.batch_size, device) if weight else ():
            outputs = self._run(weights, inputs)
            yield weight * self.task.divergence(self._reference_outputs()[positions].to(outputs), outputs, labels).sum()
        for positions, inputs, _ in self.changed.batches(self.batch_size, device):
            outputs = self._run(weights, inputs)
            term = (self._output_changes()[positions].to(outputs) * outputs).sum()
            here = positions >= len(self.changes.removed)
            if here.any():
                reference = self._changed_before()[positions[here]].to(outputs)
                labels = self.changed.labels[positions[here]].to(device)
                term = term + self.task.divergence(reference, outputs[here.to(device)], labels).sum()
            yield term / len(self.edited)
        yield self._quadratic(weights)

    def _changed_before(self) -> Tensor:
        if self._before is None:
            self._before = predict(self.model, self.changed, batch_size=self.batch_size)
            self.cost += len(self.changed)
        return self._before
