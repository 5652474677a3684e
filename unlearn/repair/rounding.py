"""What half precision does to an edit: the rounding of its weights, and the type of its passes, as notes.

An edit is computed in float32 at least and rounded once to the type of the weights. bfloat16 has eight bits, so an
edit that moves a weight by less than 1/512 of it may not move it at all.
"""

from __future__ import annotations

from torch import nn

from unlearn.curvature import Vector
from unlearn.curvature.vectors import norm
from unlearn.precision import HALF, type_of_passes


def rounding_notes(model: nn.Module, weights: Vector) -> tuple[str, ...]:
    """Say how far rounding to the model's weights takes an edit; nothing where none of them are half precision.

    Args:
        model: before the edit.
        weights: the edited ones, not yet rounded.

    >>> import torch
    >>> model = nn.Linear(1, 1, bias=False).bfloat16()
    >>> _ = nn.init.ones_(model.weight)
    >>> rounding_notes(model, {"weight": torch.tensor([[1.001]])})[0].partition(":")[0]
    'the weights were rounded to bfloat16, which moves them by 100 % of the length of the change'
    """
    own = {name: parameter.detach() for name, parameter in model.named_parameters() if name in weights}
    half = {name: parameter for name, parameter in own.items() if parameter.dtype in HALF}
    if not half:
        return ()
    change = {name: weights[name] - parameter.to(weights[name]) for name, parameter in own.items()}
    error = {name: weights[name].to(part).to(weights[name]) - weights[name] for name, part in half.items()}
    moved = sum(int((change[name] != 0).sum()) for name in half)
    still = sum(int(((change[name] != 0) & (weights[name].to(part) == part)).sum()) for name, part in half.items())
    if not moved:
        return ()
    kind = str(next(iter(half.values())).dtype).removeprefix("torch.")
    share = 100 * norm(error) / norm(change)
    return (
        f"the weights were rounded to {kind}, which moves them by {share:.0f} % of the length of the change: "
        f"{still} of {moved} changed weights are as they were; edit a copy in float32 to keep the change whole",
    )


def passes_notes() -> tuple[str, ...]:
    """Say that passes are run in half precision; nothing where they are not."""
    dtype = type_of_passes()
    if dtype is None:
        return ()
    kind = str(dtype).removeprefix("torch.")
    return (f"forward and backward passes of the edit were run in {kind}, recorded steps in the type of the weights",)
