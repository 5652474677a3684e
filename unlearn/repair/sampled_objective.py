"""The edited objective on a sample of the untouched rows and all relabelled ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from unlearn.curvature import Vector
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
        self.draw(self.seed)

    @property
    def sampled(self) -> bool:
        """Whether some untouched rows stand for others."""
        return len(self.rows) < len(self._left)

    def draw(self, seed: int) -> None:
        """Take another sample."""
        self.rows = self._left.sample(self.untouched, seed, "operator-rows")
        self._kept.pop("rows", None)

    def _terms(self, weights: Vector) -> Iterator[Tensor]:
        """Yield the terms of E: of the sample, of the changed rows, and the quadratic ones."""
        device = next(iter(weights.values())).device
        weight = (len(self.edited) - len(self._relabelled)) / (len(self.rows) * len(self.edited))
        for positions, inputs, labels in self.rows.batches(self.batch_size, device) if weight else ():
            outputs = self._run(weights, inputs)
            reference = self._at_start("rows", positions, inputs).to(outputs)
            yield weight * self.task.divergence(reference, outputs, labels).sum()
        for positions, inputs, labels in self.changed.batches(self.batch_size, device):
            outputs = self._run(weights, inputs)
            term = (self._output_changes(positions, inputs, labels) * outputs).sum()
            here = positions >= len(self.changes.removed)
            if here.any():
                there = here.to(device)
                reference = self._at_start("changed", positions, inputs).to(outputs)[there]
                term = term + self.task.divergence(reference, outputs[there], labels[there]).sum()
            yield term / len(self.edited)
        yield self._quadratic(weights)
