"""The stream that Fisher factors are fitted on: layer inputs and gradients at labels the model itself predicts.

Labels are drawn from the model (or summed over exactly), never read from the data: the given labels would make this
the empirical Fisher, which is not the Gauss-Newton matrix (arXiv 1905.12558).

Axes: g group, b sample, t position, i inputs, o outputs, c Fisher column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from unlearn.curvature.layers import Layer
from unlearn.curvature.taps import tap
from unlearn.data import DEFAULT_BATCH, Rows
from unlearn.progress import track
from unlearn.tasks import Task

FisherKind = Literal["sampled", "exact"]


class LayerBatch(NamedTuple):
    """One layer on one batch: inputs (g, b, t, i) and, for each column c, output gradients (g, b, t, o)."""

    layer: Layer
    inputs: Tensor
    columns: list[Tensor]


@dataclass(frozen=True)
class FisherStream:
    """Layer inputs and Fisher gradients over all rows; each iteration is one pass, and all passes are equal.

    Attributes:
        model: the model, left as found.
        rows: the rows.
        task: gives the output Fisher.
        layers: the covered layers.
        kind: ``sampled``: one label for each row, drawn from the model by (seed, row id), so that it depends on no
            batch or order; ``exact``: all columns of the root of the output Fisher, one backward pass each.
        seed: seed of the draws.
        batch_size: rows at a time; changes no result.
        dtype: type to compute in; None for that of the weights, float32 at least.
    """

    model: nn.Module
    rows: Rows
    task: Task
    layers: Sequence[Layer]
    kind: FisherKind = "sampled"
    seed: int = 0
    batch_size: int = DEFAULT_BATCH
    dtype: torch.dtype | None = None

    def __iter__(self) -> Iterator[LayerBatch]:
        device = self.model.get_parameter(self.layers[0].weight).device
        batches = self.rows.batches(self.batch_size, device)
        total = math.ceil(len(self.rows) / self.batch_size)
        for positions, inputs, labels in track(batches, "fitting curvature", total):
            with tap(self.model, self.layers) as taps:
                outputs = self.model(inputs)
                self.task.check(outputs.detach(), labels)
                roots = [without_noise(v) for v in self._columns(outputs.detach(), positions)]
                gradients = [taps.gradients(outputs, v, again=k + 1 < len(roots)) for k, v in enumerate(roots)]
            del outputs
            for layer in self.layers:
                dtype = self.dtype_of(layer)
                columns = [gradient.pop(layer.name).to(dtype) for gradient in gradients]
                yield LayerBatch(layer, taps.inputs(layer).to(dtype), columns)

    def dtype_of(self, layer: Layer) -> torch.dtype:
        """Return the type that this layer's curvature is computed in."""
        weights = self.model.get_parameter(layer.weight).dtype
        return self.dtype or torch.promote_types(weights, torch.float32)

    def _columns(self, outputs: Tensor, positions: Tensor) -> Sequence[Tensor]:
        if self.kind == "exact":
            return self.task.fisher_root(outputs).unbind(0)
        return [self.task.sampled_gradient(outputs, self.seed, [self.rows.ids[i] for i in positions.tolist()])]


def without_noise(x: Tensor, power: int = 1) -> Tensor:
    """Return ``x`` with what is below the rounding error of its largest entry (to this power) set to 0.

    Sure rows have gradients of 1e-20 and less; squared, they are subnormal numbers, on which a product takes many
    times as long.

    >>> without_noise(torch.tensor([1.0, 1e-3, 1e-20]))
    tensor([1.0000, 0.0010, 0.0000])
    """
    size = x.abs()
    return torch.where(size > size.max() * torch.finfo(x.dtype).eps ** power, x, 0)
