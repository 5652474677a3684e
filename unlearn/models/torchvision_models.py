"""Classifiers of torchvision by name, for grey or colour images, with random initial weights."""

from __future__ import annotations

from functools import partial

from torch import nn

from unlearn.extras import extra_module


def torchvision_model(name: str, channels: int = 3, classes: int = 10) -> nn.Module:
    """Return a classifier of torchvision as it is there, without pretrained weights; its ``rebuild`` draws new ones.

    Args:
        name: of torchvision's factory, such as ``resnet18``.
        channels: of the images. With 1, the first convolution is given the sum of its kernels over the colours: what
            it computes of a grey image is what it would compute of the same image in three equal channels.
        classes: outputs of the head.

    Raises:
        MissingExtraError: torchvision is not installed.
        ValueError: a number of channels that is neither 1 nor 3.

    >>> torchvision_model("resnet18", channels=1, classes=4).conv1.weight.shape
    torch.Size([64, 1, 7, 7])
    """
    models = extra_module("torchvision.models", "vision", f"model {name!r} is torchvision's")
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}; images have 1 (grey) or 3 (colour)")
    model: nn.Module = getattr(models, name)(num_classes=classes)
    if channels == 1:
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.in_channels = 1
        first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))
    model.rebuild = partial(torchvision_model, name, channels, classes)  # type: ignore[assignment]
    return model
