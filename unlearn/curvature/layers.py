"""Layers with a Kronecker-factored curvature: which they are, and their parameters as blocks.

A layer has g groups (1 but for grouped convolutions); weight and bias of a group are one matrix (o, i), the bias its
last column. A covered layer is known by its forward function: a subclass that computes something else is not covered.

Axes: g group, o outputs of a group, i inputs of a group (and 1 for the bias).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unlearn.curvature.vectors import Vector
from unlearn.errors import InputError, UnsupportedLayerError, some

_COVERS = "curvature covers the weight and bias of Linear and zero-padded Conv2d"


@dataclass(frozen=True)
class Layer:
    """A covered layer: the names of its parameters and the shape of its block.

    Attributes:
        name: name of the module in the model.
        kind: ``Linear`` or ``Conv2d``.
        weight: name of the weight in ``model.named_parameters()``.
        bias: name of the bias, or None where there is none (or it is frozen or skipped).
        weight_shape: shape of the weight.
        shape: shape of the block, (g, o, i).
    """

    name: str
    kind: str
    weight: str
    bias: str | None
    weight_shape: tuple[int, ...]
    shape: tuple[int, int, int]

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the covered parameters, by name."""
        shapes = {self.weight: self.weight_shape}
        if self.bias is not None:
            shapes[self.bias] = self.weight_shape[:1]
        return shapes

    def block(self, vector: Vector) -> Tensor:
        """Return this layer's part of a vector, shape (g, o, i)."""
        g, o, _ = self.shape
        weight = vector[self.weight].reshape(g, o, -1)
        if self.bias is None:
            return weight
        return torch.cat([weight, vector[self.bias].reshape(g, o, 1)], dim=2)

    def vector(self, block: Tensor) -> Vector:
        """Return the parameters of a block: the inverse of :meth:`block`."""
        if self.bias is None:
            return {self.weight: block.reshape(self.weight_shape)}
        return {
            self.weight: block[:, :, :-1].reshape(self.weight_shape),
            self.bias: block[:, :, -1].reshape(-1),
        }


class Coverage(NamedTuple):
    """Covered layers, and for each parameter left out the reason (``frozen`` or ``skipped``)."""

    layers: list[Layer]
    uncovered: dict[str, str]


def find_layers(model: nn.Module, skip: str | Iterable[str] = ()) -> Coverage:
    """Return the covered layers of a model.

    Args:
        model: any module.
        skip: patterns (as of ``fnmatch``) of module or parameter names to leave out; a module is left out whole.

    Raises:
        UnsupportedLayerError: a trained parameter belongs to no covered layer, or to two.
        InputError: a pattern matches nothing, a parameter is not finite, or nothing is left to cover.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    >>> [(layer.name, layer.shape) for layer in find_layers(model).layers]
    [('0', (1, 4, 4)), ('2', (1, 2, 4))]
    >>> find_layers(model, skip=["0"]).uncovered
    {'0.weight': 'skipped', '0.bias': 'skipped'}
    """
    skipping = _Skip(model, skip)
    layers: list[Layer] = []
    uncovered: dict[str, str] = {}
    first_name: dict[int, str] = {}
    for prefix, module in model.named_modules():
        trained: dict[str, str] = {}
        for short, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{short}" if prefix else short
            if not torch.isfinite(parameter).all():
                raise InputError(f"parameter {name!r} has NaN or infinite values; load or train a finite model first")
            reason = "skipped" if skipping(name) else "" if parameter.requires_grad else "frozen"
            twin = first_name.setdefault(id(parameter), name)
            if twin != name and not (reason and twin in uncovered):
                raise UnsupportedLayerError(
                    f"{twin!r} and {name!r} are one tied parameter, whose curvature has no Kronecker factors: "
                    f"pass skip=[{twin!r}, {name!r}] to leave it as it is"
                )
            if not reason:
                trained[short] = name
            elif twin == name:
                uncovered[name] = reason
        if trained:
            layers.append(_layer(prefix, module, trained))
    if not layers:
        raise InputError("no parameter is left to cover: all are frozen or skipped; cover at least one layer")
    return Coverage(layers, uncovered)


class _Skip:
    def __init__(self, model: nn.Module, patterns: str | Iterable[str]) -> None:
        self.patterns = patterns_of(patterns)
        modules = [name for name, _ in model.named_modules() if name]
        known = modules + [name for name, _ in model.named_parameters(remove_duplicate=False)]
        for pattern in self.patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise InputError(
                    f"skip pattern {pattern!r} matches no module or parameter; the model has {some(known, 12)}"
                )

    def __call__(self, name: str) -> bool:
        parts = name.split(".")
        prefixes = [".".join(parts[: k + 1]) for k in range(len(parts))]
        return any(fnmatchcase(prefix, pattern) for prefix in prefixes for pattern in self.patterns)


def patterns_of(skip: str | Iterable[str]) -> list[str]:
    """Return skip patterns as a list; a string is one pattern."""
    return [skip] if isinstance(skip, str) else list(skip)


def _layer(name: str, module: nn.Module, trained: dict[str, str]) -> Layer:
    linear = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    conv = isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward
    if not (linear or conv) or "weight" not in trained or not set(trained) <= {"weight", "bias"}:
        names = list(trained.values())
        skip = [name] if name else names
        raise UnsupportedLayerError(
            f"parameters {some(names)} of layer {name!r} ({type(module).__name__}) have no curvature; {_COVERS}: "
            f"pass skip={skip} to leave them as they are"
        )
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        raise UnsupportedLayerError(
            f"layer {name!r} is Conv2d with padding_mode={module.padding_mode!r}; {_COVERS}: pass skip={[name]} to "
            "leave it as it is"
        )
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    shape = tuple(module.get_parameter("weight").shape)
    return Layer(
        name=name,
        kind="Conv2d" if conv else "Linear",
        weight=trained["weight"],
        bias=trained.get("bias"),
        weight_shape=shape,
        shape=(groups, shape[0] // groups, math.prod(shape[1:]) + ("bias" in trained)),
    )
