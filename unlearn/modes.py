"""Evaluation mode, and attention that can be differentiated in every way, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, and each module back in its own mode afterwards.

    >>> model = nn.Dropout()
    >>> with evaluation(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def copy_modes(source: nn.Module, target: nn.Module) -> None:
    """Give each module of ``target`` the mode of the module of the same name in ``source``.

    >>> a, b = nn.Dropout().eval(), nn.Dropout()
    >>> copy_modes(a, b)
    >>> b.training
    False
    """
    modes = {name: module.training for name, module in source.named_modules()}
    for name, module in target.named_modules():
        module.training = modes[name]


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention by elementary operations, whose derivatives of every kind are there; only speed differs.

    >>> with plain_attention():
    ...     torch.backends.mha.get_fastpath_enabled()
    False
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
