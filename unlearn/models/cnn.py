"""A small convolutional network without normalisation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def cnn(
    channels: int = 1, size: int = 28, classes: int = 10, widths: Sequence[int] = (32, 64), hidden: int = 128
) -> nn.Sequential:
    """Return a 3 x 3 convolution of stride 2 and ReLU for each width, one hidden Linear, and a Linear head.

    Args:
        channels: channels of the input image.
        size: its height and width.
        classes: outputs of the head.
        widths: channels of the convolutions; each halves the image (rounding up).
        hidden: width of the hidden Linear.

    >>> tuple(cnn(1, 8, 10, [4, 8], 16)[5].weight.shape)
    (16, 32)
    """
    layers, features = convolutions(channels, size, widths)
    return nn.Sequential(*layers, nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def convolutions(channels: int, size: int, widths: Sequence[int]) -> tuple[list[nn.Module], int]:
    """Return a 3 x 3 convolution of stride 2 and ReLU for each width, a Flatten, and how many features that gives.

    >>> convolutions(1, 28, [32, 64])[1]
    3136
    """
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
        channels, size = width, (size + 1) // 2
    return [*layers, nn.Flatten()], channels * size * size
