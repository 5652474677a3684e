"""Gradients of single rows in any parameter of any model: vectorised where torch can, row by row where it can not.

Axes: b row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from unlearn.curvature.vectors import Vector
from unlearn.inputs import Inputs, call_model, map_tensors
from unlearn.modes import evaluation, plain_attention

_CHUNK = 32


def row_gradients(model: nn.Module, inputs: Inputs, cotangent: Tensor, names: Sequence[str]) -> Vector:
    """Return the gradients of <cotangent of the row, outputs of the row> in some parameters, for each row.

    Where torch can not vectorise an operation of the model (a recurrent layer, say), there is a forward and a backward
    pass for each row.

    Args:
        model: any module; left as found.
        inputs: inputs of the rows, first dimension b.
        cotangent: shape of the outputs.
        names: the parameters.

    Returns:
        By name, shape (b, ...) with the parameter's shape behind.

    >>> model = nn.Linear(2, 1)
    >>> row_gradients(model, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0], [2.0]]), ["weight"])
    {'weight': tensor([[[1., 2.]],
    <BLANKLINE>
            [[6., 8.]]])}
    """
    weights = {name: model.get_parameter(name).detach() for name in names}

    def product(chosen: Vector, row: Inputs, direction: Tensor) -> Tensor:
        outputs = call_model(model, map_tensors(lambda x: x[None], row), chosen)
        return (outputs[0] * direction).sum()

    with evaluation(model), plain_attention(), torch.enable_grad():
        try:
            found = vmap(grad(product), in_dims=(None, 0, 0), chunk_size=_CHUNK)(weights, inputs, cotangent)
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
            parts = []
            for k, direction in enumerate(cotangent):
                value = product(leaves, map_tensors(lambda x, k=k: x[k], inputs), direction)  # type: ignore[misc]
                parts.append(torch.autograd.grad(value, list(leaves.values()), materialize_grads=True))
            found = dict(zip(names, map(torch.stack, zip(*parts, strict=True)), strict=True))
    return {name: found[name].detach() for name in names}
