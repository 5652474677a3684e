"""Building a model from its name and options, under a seed of its own."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from unlearn.errors import InputError, MissingExtraError, did_you_mean
from unlearn.models.cnn import cnn
from unlearn.models.denoiser import denoiser
from unlearn.models.linear import linear
from unlearn.models.mlp import mlp
from unlearn.models.tinynet import tinynet
from unlearn.models.torchvision_models import torchvision_model
from unlearn.models.transformers_models import transformers_model

_MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "tinynet": tinynet,
    "denoiser": denoiser,
    "linear": linear,
    "resnet18": partial(torchvision_model, "resnet18"),
    "vgg11_bn": partial(torchvision_model, "vgg11_bn"),
    "shufflenet_v2_x1_0": partial(torchvision_model, "shufflenet_v2_x1_0"),
    "vit_b_16": partial(torchvision_model, "vit_b_16"),
    "hf-sequence-classification": partial(transformers_model, "sequence-classification"),
    "hf-causal-lm": partial(transformers_model, "causal-lm"),
}


def build_model(name: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """Build a model with initial weights that depend on the seed only; the global seed is left as found.

    Args:
        name: ``mlp``, ``cnn``, ``tinynet``, ``denoiser``, ``linear``; ``resnet18``, ``vgg11_bn``,
            ``shufflenet_v2_x1_0``, ``vit_b_16`` (these need torchvision); ``hf-sequence-classification``,
            ``hf-causal-lm`` (transformers); or a user's own factory as ``module:function``.
        seed: seed of the initial weights.
        **options: passed to the factory.

    Raises:
        MissingExtraError: the package of the architecture is not installed.
        InputError: unknown name, a factory that can not be imported, an option it does not take or can not use, an
            option that is missing.

    >>> a, b = build_model("mlp", inputs=2, widths=[3]), build_model("mlp", inputs=2, widths=[3])
    >>> bool((a[1].weight == b[1].weight).all())
    True
    """
    factory = _own_factory(name) if ":" in name else _MODELS.get(name)
    if factory is None:
        raise InputError(f"unknown model {name!r}; {did_you_mean(name, _MODELS)}; your own is 'module:function'")
    _check_options(name, factory, options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            model = factory(**options)
        except MissingExtraError:
            raise
        except Exception as error:  # a factory of the user's own can raise anything
            raise InputError(
                f"model {name!r} can not be built with {options}: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{name!r} returned {type(model).__name__}; a model factory returns a torch.nn.Module")
    return model


def _check_options(name: str, factory: Callable[..., nn.Module], options: dict[str, Any]) -> None:
    signature = inspect.signature(factory)
    known = signature.parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for option in options:
        if option not in known and not takes_any:
            raise InputError(f"model {name!r} has no option {option!r}; {did_you_mean(option, known)}")
    try:
        signature.bind(**options)
    except TypeError as error:
        raise InputError(f"model {name!r} needs more options: {error}; known: {', '.join(known)}") from error


def _own_factory(name: str) -> Callable[..., nn.Module]:
    module, _, function = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"can not import model {name!r}: {error}; is its folder on PYTHONPATH?") from error
    if not callable(factory):
        raise InputError(f"{name!r} is {type(factory).__name__}; give a function that returns a torch.nn.Module")
    return factory  # type: ignore[no-any-return]
