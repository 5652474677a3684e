"""What a layer sees: its inputs, and the gradient of a function of the model's outputs at its outputs.

The gradient of a matrix layer's block for sample b is sum_t d[b, t] a[b, t]^T with a the inputs (1 appended for the
bias, convolutions unfolded into patches: KFC, arXiv 1602.01407, section 3) and d the output gradients; the positions t
of all calls of a layer stand one behind the other. A column's gradient is d itself, with one position and a = 1. The
weight gradient of a matrix is never formed, no ``.grad`` is written, and several backward passes can follow one forward
pass.

Axes: g group, b sample, t position, i inputs, o outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from unlearn.curvature.calls import Call, CallRecorder
from unlearn.curvature.layers import Layer
from unlearn.curvature.row_gradients import row_gradients
from unlearn.errors import UnsupportedLayerError
from unlearn.inputs import Inputs, call_model, row_count
from unlearn.modes import evaluation, plain_attention
from unlearn.precision import at_least_float32, check_overflow, power_of_two, type_of_passes

TAP_BATCH = 512  # more rows than a forward pass needs: products with wide factors gain by them
_BATCH_BYTES = 256 * 2**20


def rows_at_once(layers: Sequence[Layer], batch_size: int) -> int:
    """Return ``batch_size``, or fewer rows where columns or embeddings need much memory for each.

    >>> rows_at_once([Layer("", "other", {"w": (2**20,)}, False, (1, 2**20, 1))], 512)
    32
    """
    wide = [math.prod(layer.shape) for layer in layers if layer.unit_outputs and not layer.is_matrix]
    wide += [layer.positions * layer.shape[2] for layer in layers if layer.unit_inputs]
    return max(1, min(batch_size, _BATCH_BYTES // (8 * max([1, *wide]))))


class Taps:
    """Layers' inputs and output gradients in one forward pass, in evaluation mode; the model is left as found.

    >>> from unlearn.curvature.layers import find_layers
    >>> model, x = nn.Linear(2, 1), torch.tensor([[3.0, 4.0]])
    >>> (layer,) = find_layers(model, (x, torch.tensor([0]))).layers
    >>> taps = Taps(model, [layer])
    >>> outputs = taps.run(x)
    >>> taps.inputs(layer).flatten().tolist()
    [3.0, 4.0, 1.0]
    >>> taps.gradients(outputs, torch.full((1, 1), 5.0))[""].flatten().tolist()
    [5.0]
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self._model = model
        self._calls: dict[str, list[Call]] = {}
        self._batch: Inputs | None = None
        self._like = torch.empty(0)
        self._narrow = False

    def run(self, inputs: Inputs) -> Tensor:
        """Run the model on a batch and return its outputs, with their graph.

        Raises:
            UnsupportedLayerError: the forward pass uses a layer in another way than when it was found.
        """
        called = [layer for layer in self.layers if layer.kind != "other"]
        owner = {name: layer.name for layer in called for name in layer.parameters}
        watched = [(name, self._model.get_parameter(name)) for name in owner]
        with evaluation(self._model), plain_attention(), torch.enable_grad(), CallRecorder(watched) as recorder:
            outputs = call_model(self._model, inputs)
        rows = row_count(inputs)
        self._calls = {layer.name: [] for layer in called}
        for call in recorder.calls:
            for name in {owner[part] for part in (call.weight, call.bias) if part is not None}:
                self._calls[name].append(call)
        for layer in called:
            self._check(layer, rows, recorder.others)
        self._batch = inputs
        self._like = outputs.new_ones(rows)
        self._narrow = torch.float16 in (type_of_passes(), *(parameter.dtype for parameter in self._model.parameters()))
        return outputs

    def inputs(self, layer: Layer, samples: slice = slice(None)) -> Tensor:
        """Return the layer's inputs, shape (g, b, t, i), of all samples or of some."""
        if not layer.is_matrix:
            return self._like[samples].reshape(1, -1, 1, 1)
        pairs = zip(self._calls[layer.name], layer.batch_dims, strict=True)
        parts = [_inputs(layer, call, dim, samples) for call, dim in pairs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    @property
    def nbytes(self) -> int:
        """Memory that the inputs take, not yet unfolded."""
        return sum(call.input.nbytes for calls in self._calls.values() for call in calls)

    def without_graph(self) -> Taps:
        """Return these taps for their inputs only: the graph of the forward pass is let go."""
        self._calls = {name: [replace(call, edge=None) for call in calls] for name, calls in self._calls.items()}
        self._batch = None
        return self

    def gradients(self, outputs: Tensor, cotangent: Tensor, *, again: bool = False) -> dict[str, Tensor]:
        """Pull a gradient at the model's outputs back to the layers' outputs.

        In float16 each row is scaled by a power of two on its way, and what is returned is float32.

        Args:
            outputs: what :meth:`run` returned.
            cotangent: gradient there, of the same shape; row b is the gradient of sample b's own loss.
            again: keep the graph for another call.

        Returns:
            Output gradients by layer name, each of shape (g, b, t, o).

        Raises:
            InputError: a gradient overflows float16.
        """
        if self._narrow:
            scale = power_of_two(cotangent.detach().abs().reshape(len(cotangent), -1).amax(1))
            scaled = cotangent * scale.reshape(-1, *[1] * (cotangent.ndim - 1))
            return {
                name: check_overflow(d, f"gradients at layer {name!r}").float() / scale[:, None, None]
                for name, d in self._pulled(outputs, scaled, again).items()
            }
        return self._pulled(outputs, cotangent, again)

    def _pulled(self, outputs: Tensor, cotangent: Tensor, again: bool) -> dict[str, Tensor]:
        edges = [call.edge for calls in self._calls.values() for call in calls if call.edge is not None]
        raw = iter(torch.autograd.grad(outputs, edges, cotangent, again, allow_unused=True) if edges else ())
        found = {}
        for layer in self.layers:
            parts = []
            for call, dim in zip(self._calls.get(layer.name, []), layer.batch_dims, strict=True):
                d = next(raw)
                d = outputs.new_zeros(call.shape) if d is None else d.reshape(call.shape)
                parts.append(_gradients(layer, call, dim, d))
            if layer.is_matrix:
                found[layer.name] = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
            elif parts:
                found[layer.name] = torch.stack(parts).sum(0)
        names = [name for layer in self.layers if layer.kind == "other" for name in layer.parameters]
        if names and self._batch is not None:
            by_name = row_gradients(self._model, self._batch, cotangent, names)
            for layer in self.layers:
                if layer.kind == "other":
                    flat = [by_name[name].reshape(len(cotangent), -1) for name in layer.parameters]
                    found[layer.name] = torch.cat(flat, dim=1)[None, :, None]
        return {layer.name: found[layer.name] for layer in self.layers}

    def _check(self, layer: Layer, rows: int, others: set[str]) -> None:
        calls, advice = self._calls[layer.name], f"pass skip={[layer.name or '*']} to leave it as it is"
        if len(calls) != len(layer.batch_dims) or others & layer.parameters.keys():
            raise UnsupportedLayerError(
                f"layer {layer.name!r} is used in {len(calls)} calls by these rows, and in {len(layer.batch_dims)} by "
                f"the first row, or in another way: the path through the model depends on the data; {advice}"
            )
        for call, dim in zip(calls, layer.batch_dims, strict=True):
            if call.input.shape[dim] != rows:
                raise UnsupportedLayerError(
                    f"inputs of layer {layer.name!r} have shape {tuple(call.input.shape)}, in which dimension {dim} "
                    f"should be {rows} rows; {advice}"
                )


def _inputs(layer: Layer, call: Call, dim: int, samples: slice) -> Tensor:
    """Return what a matrix layer's block is multiplied with in a call, shape (g, b, t, i)."""
    x = call.input.movedim(dim, 0)[samples]
    g, weight = layer.shape[0], call.arguments["weight"]
    if call.kind == "Embedding":
        return _unit_vectors(x.reshape(1, len(x), -1), weight, call.arguments.get("padding_idx"))
    if call.kind == "Linear":
        patches = x.reshape(1, len(x), -1, x.shape[-1])
    else:
        patches = _unfold(call, x)
        patches = patches.reshape(len(x), g, -1, patches.shape[2]).permute(1, 0, 3, 2)
    if layer.bias is None:
        return patches
    ones = patches.new_ones(*patches.shape[:3], 1)
    return ones if layer.weight is None else torch.cat([patches, ones], dim=3)


def _unit_vectors(indices: Tensor, weight: Tensor, padding: int | None) -> Tensor:
    """Return ones at the indices, in the weight's type: ``F.one_hot`` is int64, a vocabulary for each position."""
    found = weight.new_zeros(*indices.shape, len(weight)).scatter_(-1, indices[..., None], 1)
    if padding is not None:
        found[..., padding] = 0
    return found


def _gradients(layer: Layer, call: Call, dim: int, d: Tensor) -> Tensor:
    """Return a layer's part of an output gradient: (g, b, t, o) of a matrix, (1, b, 1, o) summed for a column."""
    g, o, _ = layer.shape
    if layer.is_matrix:
        if call.kind.startswith("Conv"):
            return d.reshape(len(d), g, o, -1).permute(1, 0, 3, 2)
        d = d.movedim(dim, 0)
        return d.reshape(1, len(d), -1, o)
    d = at_least_float32(d)
    parts = [d * call.normalized() if name == call.weight else d for name in layer.parameters]
    channels = call.arguments.get("normalized_shape")
    summed = []
    for part in parts:
        part = part.movedim(dim, 0)
        if channels is None:
            summed.append(part.flatten(2).sum(2) if part.ndim > 2 else part)
        else:
            summed.append(part.flatten(-len(channels)).reshape(len(part), -1, math.prod(channels)).sum(1))
    return torch.cat(summed, dim=1)[None, :, None]


def _unfold(call: Call, x: Tensor) -> Tensor:
    """Return the patches that a convolution multiplies, shape (b, channels * kernel, t)."""
    kernel = call.arguments["weight"].shape[2:]
    n = len(kernel)
    stride, dilation = (_each(call.arguments.get(name, 1), n) for name in ("stride", "dilation"))
    padding = call.arguments.get("padding", 0)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in _each(0 if padding == "valid" else padding, n)]
    if any(before != after for before, after in sides):
        x = F.pad(x, [side for pair in reversed(sides) for side in pair])
        sides = [(0, 0)] * n
    pads = [before for before, _ in sides]
    if n == 1:
        x, kernel = x[:, :, None], (1, *kernel)
        dilation, pads, stride = (1, *dilation), [0, *pads], (1, *stride)
    return F.unfold(x, tuple(kernel), dilation, tuple(pads), stride)


def _each(value: int | Sequence[int], n: int) -> tuple[int, ...]:
    """Return an option of a convolution for each of its dimensions."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values
