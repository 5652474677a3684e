"""What a layer sees: its inputs, and the gradient of a function of the model's outputs at its outputs.

The gradient of a layer's block for sample b is sum_t d[b, t] a[b, t]^T with a the inputs (1 appended for the bias,
convolutions unfolded into patches: KFC, arXiv 1602.01407, section 3) and d the output gradients. The weight gradient
itself is never formed, no ``.grad`` is written, and several backward passes can follow one forward pass.

Axes: g group, b sample, t position, i inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from unlearn.curvature.layers import Layer
from unlearn.errors import UnsupportedLayerError
from unlearn.modes import evaluation

TAP_BATCH = 512  # more rows than a forward pass needs: products with wide factors gain by them


class Taps:
    """Inputs and output gradients of layers in one forward pass; made by :func:`tap`."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self._modules = {layer.name: model.get_submodule(layer.name) for layer in layers}
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, tuple[GradientEdge, torch.Size]] = {}

    def record(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Forward hook. The gradient edge is taken now, so that operations in place after the layer do no harm."""
        if name in self._inputs:
            raise UnsupportedLayerError(
                f"layer {name!r} is called twice in one forward pass, so its curvature has no Kronecker factors: "
                f"pass skip={[name]} to leave it as it is"
            )
        if not output.requires_grad:
            raise UnsupportedLayerError(
                f"layer {name!r} is called under no_grad, so it is not trained: pass skip={[name]}, or freeze it"
            )
        self._inputs[name] = inputs[0].detach()
        self._outputs[name] = get_gradient_edge(output), output.shape

    def inputs(self, layer: Layer, samples: slice = slice(None)) -> Tensor:
        """Return the layer's inputs, shape (g, b, t, i), of all samples or of some."""
        self._check(layer)
        x, module = self._inputs[layer.name][samples], self._modules[layer.name]
        if isinstance(module, nn.Conv2d):
            patches = _unfold(module, x)
            patches = patches.reshape(len(x), layer.shape[0], -1, patches.shape[2]).permute(1, 0, 3, 2)
        else:
            patches = x.reshape(1, len(x), -1, x.shape[-1])
        if layer.bias is None:
            return patches
        return torch.cat([patches, patches.new_ones(*patches.shape[:3], 1)], dim=3)

    @property
    def nbytes(self) -> int:
        """Memory that the inputs take, not yet unfolded."""
        return sum(x.nbytes for x in self._inputs.values())

    def without_graph(self) -> Taps:
        """Return these taps for their inputs only: the graph of the forward pass is let go."""
        self._outputs.clear()
        return self

    def gradients(self, outputs: Tensor, cotangent: Tensor, *, again: bool = False) -> dict[str, Tensor]:
        """Pull a gradient at the model's outputs back to the layers' outputs.

        Args:
            outputs: what the model returned.
            cotangent: gradient there, of the same shape; row b is the gradient of sample b's own loss.
            again: keep the graph for another call.

        Returns:
            Output gradients by layer name, each of shape (g, b, t, o).
        """
        for layer in self.layers:
            self._check(layer, rows=len(outputs))
        edges = [self._outputs[layer.name][0] for layer in self.layers]
        raw = torch.autograd.grad(outputs, edges, cotangent, retain_graph=again, allow_unused=True)
        found = {}
        for layer, gradient in zip(self.layers, raw, strict=True):
            shape = self._outputs[layer.name][1]
            d = outputs.new_zeros(shape) if gradient is None else gradient
            g, o, _ = layer.shape
            if isinstance(self._modules[layer.name], nn.Conv2d):
                found[layer.name] = d.reshape(len(d), g, o, -1).permute(1, 0, 3, 2)
            else:
                found[layer.name] = d.reshape(1, len(d), -1, o)
        return found

    def _check(self, layer: Layer, rows: int | None = None) -> None:
        if layer.name not in self._inputs:
            raise UnsupportedLayerError(
                f"layer {layer.name!r} is not called in the forward pass (its weight may be used without it): "
                f"pass skip={[layer.name]} to leave it as it is"
            )
        shape = self._inputs[layer.name].shape
        if rows is not None and shape[0] != rows:
            raise UnsupportedLayerError(
                f"inputs of layer {layer.name!r} have shape {tuple(shape)} for {rows} rows; the first dimension must "
                f"be rows: pass skip={[layer.name]} to leave it as it is"
            )


@contextmanager
def tap(model: nn.Module, layers: Sequence[Layer]) -> Iterator[Taps]:
    """Record inputs and outputs of layers during one forward pass, in evaluation mode; leave the model as found.

    >>> from unlearn.curvature.layers import find_layers
    >>> model = nn.Linear(2, 1)
    >>> (layer,) = find_layers(model).layers
    >>> with tap(model, [layer]) as taps:
    ...     outputs = model(torch.tensor([[3.0, 4.0]]))
    >>> taps.inputs(layer).flatten().tolist()
    [3.0, 4.0, 1.0]
    >>> taps.gradients(outputs, torch.full((1, 1), 5.0))[""].flatten().tolist()
    [5.0]
    """
    taps = Taps(model, layers)
    handles = [
        model.get_submodule(layer.name).register_forward_hook(partial(taps.record, layer.name)) for layer in layers
    ]
    try:
        with evaluation(model), torch.enable_grad():
            yield taps
    finally:
        for handle in handles:
            handle.remove()


def _unfold(module: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the patches that the convolution multiplies, shape (b, channels * kernel, t)."""
    if module.padding == "valid":
        sides = [(0, 0), (0, 0)]
    elif module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(int(p), int(p)) for p in module.padding]
    (top, bottom), (left, right) = sides
    if top != bottom or left != right:
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    return F.unfold(x, module.kernel_size, module.dilation, (top, left), module.stride)
