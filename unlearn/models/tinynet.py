"""TinyNet: four convolutions of stride 2 and a linear head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from unlearn.models.cnn import convolutions


def tinynet(
    channels: int = 1, size: int = 28, classes: int = 10, widths: Sequence[int] = (32, 64, 128, 256)
) -> nn.Sequential:
    """Return a 3 x 3 convolution of stride 2 and ReLU for each width, and a Linear head on what is left of the image.

    It has no hidden linear layer and no normalisation, so most of its weights are those of the last convolution.

    Args:
        channels: channels of the input image.
        size: its height and width.
        classes: outputs of the head.
        widths: channels of the convolutions; each halves the image (rounding up).

    >>> tuple(tinynet()[-1].weight.shape)
    (10, 1024)
    """
    layers, features = convolutions(channels, size, widths)
    return nn.Sequential(*layers, nn.Linear(features, classes))
