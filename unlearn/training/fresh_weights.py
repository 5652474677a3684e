"""New initial weights for a given architecture."""

from __future__ import annotations

import copy

import torch
from torch import nn

from unlearn.errors import RecordError


def fresh_weights(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy with new initial weights that depend on the seed only.

    Raises:
        RecordError: a module with parameters of its own has no ``reset_parameters``.

    >>> a, b = fresh_weights(nn.Linear(2, 1), 5), fresh_weights(nn.Linear(2, 1), 5)
    >>> bool((a.weight == b.weight).all())
    True
    """
    fresh, device = copy.deepcopy(model).cpu(), next(model.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for name, module in fresh.named_modules():
            if next(module.parameters(recurse=False), None) is None:
                continue
            reset = getattr(module, "reset_parameters", None)
            if reset is None:
                raise RecordError(
                    f"module {name or type(module).__name__!r} has parameters but no reset_parameters, so it can not "
                    "be retrained from scratch: pass train=(data, seed) -> model"
                )
            reset()
    return fresh.to(device)
