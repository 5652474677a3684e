"""What a model knows of a row in front of its last layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.data import DEFAULT_BATCH, Rows
from unlearn.inputs import call_model
from unlearn.modes import evaluation
from unlearn.precision import at_least_float32


def penultimate(model: nn.Module, data: Rows, *, batch_size: int = DEFAULT_BATCH) -> Tensor | None:
    """Return the inputs of the last module with parameters of its own that is called, shape (rows, columns).

    They are read in evaluation mode and flattened, on the CPU; the model is left as found. For a linear model they
    are the rows themselves.

    Returns:
        None where that module is not called with one tensor that has a first dimension of rows.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> rows = Rows.from_tensors(torch.eye(2), torch.tensor([0, 1]))
    >>> bool((penultimate(model, rows) == torch.relu(model[0](torch.eye(2)))).all())
    True
    """
    last: list[Any] = [None]

    def note(module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        given = [*arguments, *keywords.values()]
        last[0] = given[0].detach() if given and isinstance(given[0], Tensor) else None

    own = [part for part in model.modules() if next(part.parameters(recurse=False), None) is not None]
    hooks = [part.register_forward_pre_hook(note, with_kwargs=True) for part in own]
    device = next(model.parameters()).device
    found: list[Tensor] = []
    try:
        with evaluation(model), torch.no_grad():
            for positions, inputs, _ in data.batches(batch_size, device):
                call_model(model, inputs)
                if last[0] is None or not last[0].is_floating_point() or last[0].shape[:1] != positions.shape:
                    return None
                found.append(at_least_float32(last[0].flatten(1)).cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found) if found[0].numel() else None
