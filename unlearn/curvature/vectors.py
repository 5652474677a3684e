"""Vectors in parameter space: dictionaries with the keys and shapes of ``model.named_parameters()``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unlearn.precision import at_least_float32

Vector = dict[str, Tensor]


def dot(x: Vector, y: Vector) -> float:
    """Inner product over the keys of ``x``.

    >>> dot({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])})
    11.0
    """
    return float(sum((at_least_float32(x[name]) * y[name]).sum() for name in x))


def norm(x: Vector) -> float:
    """Euclidean norm.

    >>> norm({"w": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    5.0
    """
    return math.sqrt(dot(x, x))


def add_scaled(x: Vector, factor: float, y: Vector) -> Vector:
    """Return x + factor * y.

    >>> add_scaled({"w": torch.tensor([1.0])}, 2.0, {"w": torch.tensor([3.0])})
    {'w': tensor([7.])}
    """
    return {name: torch.add(x[name], y[name], alpha=factor) for name in x}


def add_scaled_(x: Vector, factor: float, y: Vector) -> Vector:
    """Add factor * y to x in place, and return x.

    >>> x = {"w": torch.tensor([1.0])}
    >>> add_scaled_(x, 2.0, {"w": torch.tensor([3.0])}) is x, x
    (True, {'w': tensor([7.])})
    """
    for name, part in x.items():
        part.add_(y[name], alpha=factor)
    return x


def zeros_like(x: Vector) -> Vector:
    """Return the zero vector of the same keys and shapes.

    >>> zeros_like({"w": torch.ones(2)})
    {'w': tensor([0., 0.])}
    """
    return {name: torch.zeros_like(part) for name, part in x.items()}
