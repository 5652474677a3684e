"""Layers: the parameters of a model in groups that have a curvature block, found by what a forward pass does with them.

A weight that is only ever a factor of matrix products or convolutions (of one bias or none) is a layer with Kronecker
factors, however many calls or modules use it: its block is a matrix (o, i) for each of g groups (1 but for grouped
convolutions), the bias its last column. An embedding's block is (o, i) too, with unit vectors as inputs. Scale and
shift of a normalisation, and parameters that are used in any other way, are one long column (p, 1) for each module: the
exact dense block where p is small, its diagonal where it is not.

Axes: g group, o outputs of a group, i inputs of a group (and 1 for the bias), p parameters of a column.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unlearn.curvature.calls import Call, CallRecorder
from unlearn.curvature.vectors import Vector
from unlearn.data import Rows, as_rows
from unlearn.errors import InputError, UnsupportedLayerError, some
from unlearn.inputs import call_model, map_tensors
from unlearn.modes import evaluation

DENSE_COLUMN = 1024
WIDE_OUTPUTS = 4096
_MATRICES = ("Linear", "Conv1d", "Conv2d", "Embedding")


@dataclass(frozen=True)
class Layer:
    """Parameters that share a block.

    Attributes:
        name: name of the module that holds them; of the first parameter where the module holds other layers too.
        kind: ``Linear``, ``Conv1d``, ``Conv2d``, ``Embedding``, ``LayerNorm``, ``RMSNorm``, ``GroupNorm``,
            ``BatchNorm``, or ``other``: used in no such call, or in several ways.
        parameters: shapes of the parameters by name; of a matrix the weight first.
        biased: of a matrix: whether the last parameter is the bias.
        shape: shape of the block, (g, o, i).
        batch_dims: for each call in a forward pass, the dimension of its input that is rows.
        positions: how many positions of a row its calls see in all.
        last_call: number of its last call among all calls of a forward pass; -1 of an ``other``.
        transposed: whether the weight is stored as (i, o), as an embedding's and that of GPT-2's ``Conv1D`` is.
    """

    name: str
    kind: str
    parameters: dict[str, tuple[int, ...]]
    biased: bool
    shape: tuple[int, int, int]
    batch_dims: tuple[int, ...] = ()
    positions: int = 1
    last_call: int = -1
    transposed: bool = False

    @property
    def is_matrix(self) -> bool:
        """Whether gradients are sums of outer products; else the block is a column."""
        return self.kind in _MATRICES

    @property
    def unit_inputs(self) -> bool:
        """Whether inputs are unit vectors, so that their second moment is diagonal."""
        return self.kind == "Embedding"

    @property
    def unit_outputs(self) -> bool:
        """Whether only the diagonal is kept: of a long column's block, of the output factor of a vocabulary."""
        return self.shape[1] > (WIDE_OUTPUTS if self.is_matrix else DENSE_COLUMN)

    @property
    def form(self) -> str:
        """What its block is in a Kronecker-factored curvature: ``factors``, ``dense`` or ``diagonal``."""
        return "factors" if self.is_matrix else "diagonal" if self.unit_outputs else "dense"

    @property
    def weight(self) -> str | None:
        """Name of a matrix's weight; None of one of which only the bias is covered, and of a column."""
        alone = not self.is_matrix or (self.biased and len(self.parameters) == 1)
        return None if alone else next(iter(self.parameters))

    @property
    def bias(self) -> str | None:
        """Name of a matrix's bias; None of one without, and of a column."""
        return list(self.parameters)[-1] if self.biased else None

    def block(self, vector: Mapping[str, Tensor]) -> Tensor:
        """Return this layer's part of a vector, shape (g, o, i)."""
        g, o, _ = self.shape
        parts = [vector[name] for name in self.parameters]
        if self.transposed:
            parts[0] = parts[0].T
        if self.is_matrix:
            return torch.cat([part.reshape(g, o, -1) for part in parts], dim=2)
        return torch.cat([part.reshape(1, -1, 1) for part in parts], dim=1)

    def vector(self, block: Tensor) -> Vector:
        """Return the parameters of a block: the inverse of :meth:`block`."""
        g, o, _ = self.shape
        sizes = [math.prod(shape) for shape in self.parameters.values()]
        widths = [size // (g * o) for size in sizes]
        parts = list(torch.split(block, widths, 2) if self.is_matrix else torch.split(block, sizes, 1))
        if self.transposed:
            parts[0] = parts[0].mT
        return {name: part.reshape(shape) for (name, shape), part in zip(self.parameters.items(), parts, strict=True)}


class Coverage(NamedTuple):
    """Covered layers, and for each parameter left out the reason (``frozen``, ``skipped`` or ``unused``)."""

    layers: list[Layer]
    uncovered: dict[str, str]


def find_layers(model: nn.Module, data: Any, skip: str | Iterable[str] = ()) -> Coverage:
    """Return the covered layers of a model, from two forward passes on copies of the first row.

    Args:
        model: any module; left as found, run in evaluation mode.
        data: the rows; see :func:`unlearn.data.as_rows`. Values do not matter, shapes do.
        skip: patterns (as of ``fnmatch``) of module or parameter names to leave out; a module is left out whole, a
            parameter that modules share under any of its names.

    Raises:
        InputError: a pattern matches nothing, a parameter is not finite, or nothing is left to cover.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    >>> data = torch.zeros(1, 3), torch.tensor([0])
    >>> [(layer.name, layer.kind, layer.shape) for layer in find_layers(model, data).layers]
    [('0', 'Linear', (1, 4, 4)), ('1', 'LayerNorm', (1, 8, 1)), ('2', 'Linear', (1, 2, 4))]
    >>> find_layers(model, data, skip=["0"]).uncovered
    {'0.weight': 'skipped', '0.bias': 'skipped'}
    """
    uncovered = _left_out(model, skip)
    watched = {name: p for name, p in model.named_parameters() if name not in uncovered}
    if not watched:
        raise InputError("no parameter is left to cover: all are frozen or skipped; cover at least one layer")
    rows = as_rows(data)
    recorder, used = _probe(model, rows, watched, 2)
    uncovered |= {name: "unused" for name in watched if name not in used}
    if not used:
        raise InputError("no parameter is left to cover: the model's outputs depend on none; check its forward pass")
    more, _ = _probe(model, rows, watched, 3)
    in_order = {name: k for k, (name, _) in enumerate(model.named_parameters())}
    layers = _layers({name: watched[name] for name in used}, recorder, more)
    layers.sort(key=lambda layer: in_order[next(iter(layer.parameters))])
    return Coverage(layers, {name: uncovered[name] for name in in_order if name in uncovered})


def last_called(layers: Iterable[Layer]) -> Layer:
    """Return the matrix layer that is called last in a forward pass.

    Raises:
        UnsupportedLayerError: no layer is a matrix product.

    >>> data = torch.zeros(1, 3), torch.tensor([0])
    >>> last_called(find_layers(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), data).layers).name
    '1'
    """
    layers = list(layers)
    last = max((layer for layer in layers if layer.is_matrix), key=lambda layer: layer.last_call, default=None)
    if last is None:
        raise UnsupportedLayerError(
            f"none of the layers {sorted(layer.name for layer in layers)} is a matrix product; skip less, or use "
            "a method that needs no last layer"
        )
    return last


def patterns_of(skip: str | Iterable[str]) -> list[str]:
    """Return skip patterns as a list; a string is one pattern."""
    return [skip] if isinstance(skip, str) else list(skip)


def pattern_names(pattern: str, parameter: str) -> bool:
    """Whether a pattern (as of ``fnmatch``) names a parameter, or a module that it is in.

    >>> pattern_names("enc*", "encoder.0.weight"), pattern_names("0", "encoder.0.weight")
    (True, False)
    """
    parts = parameter.split(".")
    return any(fnmatchcase(".".join(parts[: k + 1]), pattern) for k in range(len(parts)))


def _left_out(model: nn.Module, skip: str | Iterable[str]) -> dict[str, str]:
    """Return why parameters are not to be covered, by their first name."""
    patterns = patterns_of(skip)
    modules = [name for name, _ in model.named_modules() if name]
    everywhere = list(model.named_parameters(remove_duplicate=False))
    known = modules + [name for name, _ in everywhere]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise InputError(
                f"skip pattern {pattern!r} matches no module or parameter; the model has {some(known, 12)}"
            )
    first: dict[int, str] = {}
    reasons: dict[str, str] = {}
    for name, parameter in everywhere:
        one = first.setdefault(id(parameter), name)
        if not torch.isfinite(parameter).all():
            raise InputError(f"parameter {name!r} has NaN or infinite values; load or train a finite model first")
        if any(pattern_names(pattern, name) for pattern in patterns):
            reasons[one] = "skipped"
        elif not parameter.requires_grad:
            reasons.setdefault(one, "frozen")
    return reasons


def _probe(
    model: nn.Module, rows: Rows, watched: Mapping[str, nn.Parameter], count: int
) -> tuple[CallRecorder, set[str]]:
    """Run copies of the first row; return what was recorded, and the parameters that the outputs depend on."""
    device = next(model.parameters()).device
    _, inputs, _ = next(rows.batches(1, device))
    inputs = map_tensors(lambda x: torch.cat([x[:1]] * count), inputs)
    with evaluation(model), torch.enable_grad():
        with CallRecorder(watched.items()) as recorder:
            outputs = call_model(model, inputs)
        if not outputs.requires_grad:
            return recorder, set()
        found = torch.autograd.grad(outputs, list(watched.values()), torch.ones_like(outputs), allow_unused=True)
    return recorder, {name for name, gradient in zip(watched, found, strict=True) if gradient is not None}


def _layers(used: Mapping[str, nn.Parameter], recorder: CallRecorder, more: CallRecorder) -> list[Layer]:
    """Return the layers that the calls of two probes show; what they do not explain is other."""
    same = len(recorder.calls) == len(more.calls)
    dims = [_batch_dim(call, again) for call, again in zip(recorder.calls, more.calls, strict=False)]
    numbers: dict[str, list[int]] = {name: [] for name in used}
    for k, call in enumerate(recorder.calls):
        for name, places in numbers.items():
            if name in (call.weight, call.bias):
                places.append(k)
    layers: list[Layer] = []
    done: set[str] = set()
    weights = {call.weight for call in recorder.calls}
    for name in sorted(used, key=lambda name: name not in weights):
        calls = [recorder.calls[k] for k in numbers[name]]
        batch_dims = tuple(dim for dim in (dims[k] for k in numbers[name]) if dim is not None)
        roles = {(call.kind, call.weight == name, call.transposed) for call in calls}
        known = same and name not in recorder.others | more.others and len(batch_dims) == len(calls)
        if name in done or not known or len(roles) != 1:
            continue
        ((kind, is_weight, _),) = roles
        group = [name]
        biases = {call.bias for call in calls} if is_weight else set()
        for bias in biases:
            alike = len(biases) == 1 and numbers.get(bias or "") == numbers[name]
            if bias is not None and bias in used and alike and bias not in recorder.others | more.others:
                group.append(bias)
        done.update(group)
        parameters, biased = {part: used[part] for part in group}, not is_weight or len(group) > 1
        layers.append(replace(_layer(kind, parameters, biased, calls, batch_dims), last_call=numbers[name][-1]))
    return _named(layers + _columns({name: used[name] for name in used if name not in done}))


def _batch_dim(call: Call, again: Call) -> int | None:
    """Return the dimension of the input that grew with the rows, the same in the output; None if there is no such."""
    if (call.kind, call.weight, call.bias, call.transposed) != (again.kind, again.weight, again.bias, again.transposed):
        return None
    x, more = call.input.shape, again.input.shape
    grown = [dim for dim in range(min(len(x), len(more))) if x[dim] != more[dim]]
    if len(x) != len(more) or len(grown) != 1:
        return None
    (dim,) = grown
    anywhere = call.kind in ("Linear", "Embedding", "LayerNorm", "RMSNorm")
    if (x[dim], more[dim]) != (2, 3) or (dim != 0 and not anywhere) or call.shape[dim] != 2:
        return None
    whole = {"Linear": 2, "Conv1d": 3, "Conv2d": 4}.get(call.kind, 1)
    return dim if len(x) >= whole else None


def _layer(
    kind: str, parameters: Mapping[str, nn.Parameter], biased: bool, calls: list[Call], batch_dims: tuple[int, ...]
) -> Layer:
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    first, size = next(iter(shapes.values())), sum(map(math.prod, shapes.values()))
    transposed = (kind == "Embedding" or calls[0].transposed) and len(first) == 2
    if kind in _MATRICES:
        g, outputs_in_all = calls[0].arguments.get("groups", 1), first[1] if transposed else first[0]
        shape = g, outputs_in_all // g, size // outputs_in_all
    else:
        shape, biased = (1, size, 1), False
    outputs = [math.prod(call.shape) // call.shape[dim] for call, dim in zip(calls, batch_dims, strict=True)]
    positions = sum(outputs) // (shape[0] * shape[1]) if kind in _MATRICES else 1
    return Layer(next(iter(shapes)), kind, shapes, biased, shape, batch_dims, positions, transposed=transposed)


def _columns(parameters: Mapping[str, nn.Parameter]) -> list[Layer]:
    """Return one column for each module that holds some of the parameters."""
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, parameter in parameters.items():
        modules.setdefault(name.rpartition(".")[0], {})[name] = tuple(parameter.shape)
    return [
        Layer(next(iter(shapes)), "other", shapes, False, (1, sum(map(math.prod, shapes.values())), 1))
        for shapes in modules.values()
    ]


def _named(layers: list[Layer]) -> list[Layer]:
    """Name each layer after its module where that holds no other layer."""
    homes = [layer.name.rpartition(".")[0] for layer in layers]
    return [
        replace(layer, name=home if homes.count(home) == 1 else layer.name)
        for layer, home in zip(layers, homes, strict=True)
    ]
