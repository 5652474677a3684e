"""Per-sample gradients at the given labels, layer by layer, in factored form.

Axes: g group, b sample, t position, i inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from unlearn.curvature.digest import check_ranks
from unlearn.curvature.layers import Layer
from unlearn.curvature.taps import Taps, rows_at_once
from unlearn.data import DEFAULT_BATCH, as_rows, within_memory
from unlearn.inputs import Inputs
from unlearn.precision import at_least_float32
from unlearn.predict import rows_within
from unlearn.tasks import Task, get_task

LayerGradients = dict[str, tuple[Tensor, Tensor]]


def layer_gradients(
    model: nn.Module,
    data: Any,
    task: str | Task,
    layers: Sequence[Layer],
    batch_size: int = DEFAULT_BATCH,
    *,
    output_rows: Callable[[Tensor, Tensor, Tensor], None] | None = None,
    shared: bool = False,
) -> Iterator[tuple[Tensor, LayerGradients]]:
    """Yield, batch by batch, what each row's loss gradient is made of.

    Args:
        model: left as found between and after the batches.
        data: the rows, with the labels whose loss it is.
        task: ``classification``, ``regression`` or a task.
        layers: those of a curvature (``curvature.layers``) or of :func:`find_layers`.
        batch_size: rows at a time.
        output_rows: called with (positions, outputs, labels) of each batch, for scores that need the outputs of the
            same forward pass.
        shared: take this rank's rows only; the caller adds up, see :mod:`unlearn.ranks`.

    Yields:
        Positions of the rows, and by layer name (a, d): inputs (g, b, t, i) and output gradients (g, b, t, o), float32
        at least. The gradient of row b's loss in the layer's block is sum_t d[:, b, t] a[:, b, t]^T.

    >>> import torch
    >>> from unlearn.curvature.layers import find_layers
    >>> model = nn.Linear(2, 1, bias=False)
    >>> data = (torch.tensor([[3.0, 4.0]]), model(torch.tensor([[3.0, 4.0]])).detach() - 2)
    >>> for positions, gradients in layer_gradients(model, data, "regression", find_layers(model, data).layers):
    ...     a, d = gradients[""]
    >>> (d.mT @ a).flatten().tolist()
    [6.0, 8.0]
    """
    rows, loss = as_rows(data), get_task(task)
    if shared:
        check_ranks(model, rows)

    def gradients(positions: Tensor, inputs: Inputs, labels: Tensor) -> tuple[Tensor, LayerGradients]:
        taps = Taps(model, layers)
        outputs = taps.run(inputs)
        values = outputs.detach()
        loss.check(values, labels)
        found = taps.gradients(outputs, loss.output_gradient(values, labels))
        wide = at_least_float32
        pairs = {layer.name: (wide(taps.inputs(layer)), wide(found[layer.name])) for layer in layers}
        if output_rows is not None:
            output_rows(positions, values, labels)
        return positions, pairs

    device = next(model.parameters()).device
    size = rows_within(model, rows, rows_at_once(layers, batch_size))
    yield from within_memory(rows, size, device, gradients, "scoring", shared=shared)
