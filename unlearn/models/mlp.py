"""A multi-layer perceptron with ReLU units."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def mlp(inputs: int = 784, classes: int = 10, widths: Sequence[int] = (512, 256)) -> nn.Sequential:
    """Return Flatten, then Linear and ReLU for each width, then a Linear head.

    Args:
        inputs: numbers in one flattened input.
        classes: outputs of the head.
        widths: hidden widths, none for a linear model.

    >>> [tuple(p.shape) for p in mlp(4, 3, [5]).parameters()]
    [(5, 4), (5,), (3, 5), (3,)]
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, classes))
