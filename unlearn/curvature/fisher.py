"""The stream that Fisher factors are fitted on: layer inputs and gradients at labels the model itself predicts.

Labels are drawn from the model (or summed over exactly), never read from the data: the given labels would make this
the empirical Fisher, which is not the Gauss-Newton matrix (arXiv 1905.12558).

Axes: g group, b sample, t position, i inputs, o outputs, c Fisher column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from unlearn.curvature.layers import Layer
from unlearn.curvature.taps import TAP_BATCH, Taps, rows_at_once
from unlearn.data import Rows, within_memory
from unlearn.inputs import Inputs
from unlearn.predict import rows_within
from unlearn.tasks import Task

FisherKind = Literal["sampled", "exact"]


class LayerBatch(NamedTuple):
    """One layer on some rows: inputs (g, b, t, i) and, for each column c, output gradients (g, b, t, o)."""

    layer: Layer
    inputs: Tensor
    columns: list[Tensor]


_PART_BYTES = 4 * 2**20

_Batch = tuple[Taps, list[dict[str, Tensor]]]


@dataclass(frozen=True)
class FisherStream:
    """Layer inputs and Fisher gradients over this rank's rows; each iteration is one pass, and all passes are equal.

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
        keep_bytes: the model is run in the first pass only where its layer inputs (before unfolding) and gradients
            take at most this much memory; else in every pass. Changes no result.
    """

    model: nn.Module
    rows: Rows
    task: Task
    layers: Sequence[Layer]
    kind: FisherKind = "sampled"
    seed: int = 0
    batch_size: int = TAP_BATCH
    dtype: torch.dtype | None = None
    keep_bytes: int = 0
    _kept: list[_Batch] = field(default_factory=list, init=False, repr=False, compare=False)

    def __iter__(self) -> Iterator[LayerBatch]:
        for taps, gradients in self._kept or self._run():
            for layer in self.layers:
                yield from self._parts(layer, taps, [found[layer.name] for found in gradients])

    def _parts(self, layer: Layer, taps: Taps, columns: list[Tensor]) -> Iterator[LayerBatch]:
        """Yield a batch of a layer, in parts where many positions make its inputs large: a part stays in the cache."""
        (g, _, i), dtype = layer.shape, self.dtype_of(layer)
        _, b, t, _ = columns[0].shape
        step = b if t == 1 else max(1, _PART_BYTES // (g * t * i * dtype.itemsize))
        for start in range(0, b, step):
            samples = slice(start, start + step)
            a = taps.inputs(layer, samples).to(dtype)
            yield LayerBatch(layer, a, [d[:, samples].to(dtype) for d in columns])

    def _run(self) -> Iterator[_Batch]:
        def work(positions: Tensor, inputs: Inputs, labels: Tensor) -> _Batch:
            taps = Taps(self.model, self.layers)
            outputs = taps.run(inputs)
            self.task.check(outputs.detach(), labels)
            roots = [without_noise(v) for v in self._columns(outputs.detach(), labels, positions)]
            gradients = [taps.gradients(outputs, v, again=k + 1 < len(roots)) for k, v in enumerate(roots)]
            return taps.without_graph(), gradients

        device = next(self.model.parameters()).device
        size = rows_within(self.model, self.rows, rows_at_once(self.layers, self.batch_size))
        kept: list[_Batch] = []
        room = self.keep_bytes
        for taps, gradients in within_memory(self.rows, size, device, work, "fitting curvature", shared=True):
            room -= taps.nbytes + sum(d.nbytes for found in gradients for d in found.values())
            if room >= 0:
                kept.append((taps, gradients))
            else:
                kept.clear()
            yield taps, gradients
        if room >= 0:
            self._kept.extend(kept)

    def zeros(self, layer: Layer, *shape: int) -> Tensor:
        """Return a sum over no rows: what a rank without rows adds."""
        return self.model.get_parameter(next(iter(layer.parameters))).new_zeros(shape, dtype=self.dtype_of(layer))

    def dtype_of(self, layer: Layer) -> torch.dtype:
        """Return the type that this layer's curvature is computed in."""
        weights = self.model.get_parameter(next(iter(layer.parameters))).dtype
        return self.dtype or torch.promote_types(weights, torch.float32)

    def _columns(self, outputs: Tensor, labels: Tensor, positions: Tensor) -> Sequence[Tensor]:
        if self.kind == "exact":
            return self.task.fisher_root(outputs, labels).unbind(0)
        ids = [self.rows.ids[i] for i in positions.tolist()]
        return [self.task.sampled_gradient(outputs, labels, self.seed, ids)]


def without_noise(x: Tensor) -> Tensor:
    """Return ``x`` with what is below the rounding error of its largest entry set to 0.

    Sure rows have gradients of 1e-20 and less; squared, they are subnormal numbers, on which a product takes many
    times as long.

    >>> without_noise(torch.tensor([1.0, 1e-3, 1e-20]))
    tensor([1.0000, 0.0010, 0.0000])
    """
    size = x.abs()
    return torch.where(size > size.max() * torch.finfo(x.dtype).eps, x, 0)
