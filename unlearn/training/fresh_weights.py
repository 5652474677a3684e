"""New initial weights for a given architecture."""

from __future__ import annotations

import copy

import torch
from torch import nn

from unlearn.errors import RecordError


def fresh_weights(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy with new initial weights that depend on the seed only.

    A model with a function ``rebuild`` is what that returns under the seed: its start may be pretrained weights in a
    folder. Of others every module with trainable parameters is reset, adapters of peft as peft begins them. Frozen
    parts were not trained, and stay.

    Raises:
        RecordError: a module with trainable parameters of its own has no ``reset_parameters``, or ``rebuild`` returns
            another model.

    >>> a, b = fresh_weights(nn.Linear(2, 1), 5), fresh_weights(nn.Linear(2, 1), 5)
    >>> bool((a.weight == b.weight).all())
    True
    """
    device, rebuild = next(model.parameters()).device, getattr(model, "rebuild", None)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if rebuild is not None:
            return _alike(rebuild(), model).to(device)
        fresh = copy.deepcopy(model).cpu()
        for name, module in fresh.named_modules():
            if not any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                continue
            reset = getattr(module, "reset_parameters", None)
            if reset is None:
                raise RecordError(
                    f"module {name or type(module).__name__!r} has parameters but no reset_parameters, so it can not "
                    "be retrained from scratch: give the model a rebuild() that returns it untrained, or pass "
                    "train=(data, seed) -> model"
                )
            reset()
        for module in fresh.modules():
            for adapter in getattr(module, "lora_A", {}) if hasattr(module, "reset_lora_parameters") else ():
                module.reset_lora_parameters(adapter, True)  # type: ignore[operator]
    return fresh.to(device)


def _alike(built: nn.Module, model: nn.Module) -> nn.Module:
    """Return what was built again, in the type of the model's weights and with its frozen parts."""
    wanted, found = dict(model.named_parameters()), dict(built.named_parameters())
    if {name: p.shape for name, p in found.items()} != {name: p.shape for name, p in wanted.items()}:
        raise RecordError(
            f"rebuild() of {type(model).__name__} returns other parameters than it has; return the same architecture"
        )
    built = built.to(next(model.parameters()).dtype)
    for name, parameter in built.named_parameters():
        parameter.requires_grad_(wanted[name].requires_grad)
        if not parameter.requires_grad:
            parameter.data.copy_(wanted[name].data)
    return built
