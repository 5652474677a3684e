"""Units of a layer, an output neuron or channel with its weights and bias: ranking them, and their coordinates.

Axes: g group, b row, t position, i inputs, o outputs, u units of all groups (g times o), k chosen units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unlearn.curvature.layers import Layer
from unlearn.curvature.per_sample import layer_gradients
from unlearn.curvature.vectors import Vector
from unlearn.data import DEFAULT_BATCH, as_rows
from unlearn.errors import InputError, did_you_mean
from unlearn.precision import at_least_float32
from unlearn.tasks import Task

Select = Literal["outputs", "gradients"]


def check_units(ratio: float, select: str) -> None:
    """Refuse a ratio outside (0, 1] and an unknown way to select.

    Raises:
        InputError: which of them, and what is allowed.
    """
    if not 0 < ratio <= 1:
        raise InputError(f"ratio is {ratio}; give a share of the units above 0 and up to 1")
    if select not in get_args(Select):
        raise InputError(f"unknown select {select!r}; {did_you_mean(select, get_args(Select))}")


class UnitActivity:
    """What units are ranked by, before the absolute value: its mean over positions for each row.

    Args:
        model: whose weights these are.
        select: ``outputs``: what the unit gives before the non-linearity; ``gradients``: the loss gradient there.
    """

    def __init__(self, model: nn.Module, select: Select) -> None:
        self._modules = dict(model.named_modules())
        self._select = select
        self._weights = {name: at_least_float32(value.detach()) for name, value in model.named_parameters()}

    def __call__(self, layer: Layer, a: Tensor, d: Tensor) -> Tensor:
        """Return (b, u) of a layer's inputs (g, b, t, i) and output gradients (g, b, t, o)."""
        if self._select == "gradients":
            mean = d.mean(2)
        else:
            mean = a.mean(2) @ layer.block(self._weights).mT
            bias = getattr(self._modules.get(layer.name), "bias", None)
            own = f"{layer.name}.bias" if layer.name else "bias"
            if isinstance(bias, Tensor) and own not in layer.parameters:  # frozen or skipped, so not in the block
                mean = mean + bias.detach().reshape(len(mean), 1, -1)
        return mean.transpose(0, 1).flatten(1)


def largest_units(values: Tensor, ratio: float) -> Tensor:
    """Return the units of largest absolute value in each row, (b, k), ascending; of equal ones the first.

    The number of units is ``ratio`` of them, rounded up.

    >>> largest_units(torch.tensor([[1.0, -3.0, 2.0, 3.0]]), 0.5).tolist()
    [[1, 3]]
    """
    count = math.ceil(ratio * values.shape[1] - 1e-9)  # 0.07 * 100 is a little more than 7
    order = values.abs().sort(dim=1, descending=True, stable=True).indices
    return order[:, :count].sort(dim=1).values


def common_units(
    model: nn.Module,
    data: Any,
    layers: Sequence[Layer],
    *,
    ratio: float = 0.05,
    select: Select = "outputs",
    task: str | Task = "classification",
    batch_size: int = DEFAULT_BATCH,
) -> dict[str, Tensor]:
    """Return the units that rows select together in each layer, by the absolute mean over the rows, shape (1, k).

    Args:
        model: left as found.
        data: the rows concerned, with their labels. See :func:`unlearn.data.as_rows`.
        layers: those of a curvature or of :func:`unlearn.curvature.find_layers`.
        ratio: share of a layer's units, in (0, 1]; rounded up, at least one.
        select: ``outputs`` or ``gradients``; see :class:`UnitActivity`.
        task: ``classification``, ``regression`` or a task.
        batch_size: rows at a time; changes time and memory, not the result.

    Raises:
        InputError: an option outside its range.

    >>> from unlearn.curvature.layers import find_layers
    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = nn.init.eye_(model.weight)
    >>> rows = torch.tensor([[1.0, 0.0], [0.0, -3.0]]), torch.tensor([0, 1])
    >>> common_units(model, rows, find_layers(model, rows).layers, ratio=0.5)
    {'': tensor([[1]])}
    """
    check_units(ratio, select)
    activity = UnitActivity(model, select)
    totals: dict[str, Tensor] = {}
    for _, gradients in layer_gradients(model, as_rows(data), task, layers, batch_size):
        for layer in layers:
            part = activity(layer, *gradients[layer.name]).double().sum(0, keepdim=True)
            totals[layer.name] = totals[layer.name] + part if layer.name in totals else part
    return {name: largest_units(total, ratio) for name, total in totals.items()}


def unit_selection(layers: Sequence[Layer], units: Mapping[str, Sequence[int] | Tensor]) -> Vector:
    """Return the coordinates of whole units as masks, for :func:`unlearn.curvature.restricted_step`.

    Args:
        layers: all covered layers; those that ``units`` does not name have no unit selected.
        units: positions of units, counted over all groups, by layer name.

    Returns:
        For each parameter of the layers a mask of its shape.

    Raises:
        InputError: an unknown layer, or a unit that it does not have.

    >>> from unlearn.curvature.layers import find_layers
    >>> rows = torch.zeros(1, 2), torch.tensor([0])
    >>> masks = unit_selection(find_layers(nn.Linear(2, 3), rows).layers, {"": [2]})
    >>> masks["weight"].int().tolist(), masks["bias"].int().tolist()
    ([[0, 0], [0, 0], [1, 1]], [0, 0, 1])
    """
    known = {layer.name: layer for layer in layers}
    for name in units:
        if name not in known:
            raise InputError(f"units are given of layer {name!r}, which is not covered; {did_you_mean(name, known)}")
    masks: Vector = {}
    for name, layer in known.items():
        block = torch.zeros(layer.shape)
        g, o, _ = layer.shape
        chosen = torch.as_tensor(units.get(name, []), dtype=torch.long).flatten().cpu()
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < g * o:
            raise InputError(f"units of layer {name!r} are {chosen.tolist()[:5]}...; it has the units 0 to {g * o - 1}")
        block.flatten(0, 1)[chosen] = 1
        masks |= {parameter: part > 0 for parameter, part in layer.vector(block).items()}
    return masks
