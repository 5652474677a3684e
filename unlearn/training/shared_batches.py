"""Steps of one training on several ranks: each takes its rows of the batch, and their gradients are added up.

That is the step of one process only where rows stand apart, which is measured: batch norm takes its statistics from the
whole batch, and dropout draws for it.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unlearn.data import Rows
from unlearn.inputs import call_model, map_tensors
from unlearn.ranks import own_span, sum_over_ranks, this_rank
from unlearn.training.random_streams import random_streams

_ROUNDING = 1e-3
"""How far, by their sum, outputs of rows may differ in another batch: above TF32, far below other statistics."""


def own_rows(batch: Tensor) -> Tensor:
    """Return this rank's part of what has one entry a row; none where there are more ranks than rows.

    >>> own_rows(torch.tensor([4, 2]))
    tensor([4, 2])
    """
    span = own_span(len(batch))
    return batch[span.start : span.stop]


def rows_stand_apart(model: nn.Module, rows: Rows, batch: Tensor, device: torch.device) -> bool:
    """Return whether all that a batch does in training is the same without its other rows; the same on all ranks.

    Outputs and buffers are compared, and random streams must not move. Batch norms are known by their class too: behind
    a head of zeros no output tells them. Buffers are put back; random streams are not.

    >>> rows = Rows.from_tensors(torch.eye(4), torch.tensor([0, 1, 0, 1]))
    >>> [rows_stand_apart(m, rows, torch.arange(4), torch.device("cpu")) for m in (nn.Linear(4, 2), nn.Dropout())]
    [True, False]
    """
    before, streams = _buffers(model), random_streams(device)
    own, apart = own_rows(batch), not any(isinstance(module, _BatchNorm) for module in model.modules())
    with torch.no_grad():
        together = own_rows(_outputs(model, rows, batch, device))
        after = _buffers(model)
        _put_back(model, before)
        if len(own):
            try:
                alone = _outputs(model, rows, own, device)
                apart &= alone.shape == together.shape and _near(alone, together)
                apart &= all(_near(now, after[name]) for name, now in _buffers(model).items())
            except (ValueError, RuntimeError):  # a forward pass that needs the whole batch
                apart = False
        _put_back(model, before)
    apart &= all(torch.equal(*pair) for pair in zip(streams, random_streams(device), strict=True))
    against = torch.tensor(float(not apart), device=device)
    sum_over_ranks(against)
    return not against


def _outputs(model: nn.Module, rows: Rows, batch: Tensor, device: torch.device) -> Tensor:
    return call_model(model, map_tensors(lambda x: x.to(device), rows.batch(batch)[0]))


def _near(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or bool((one - other).abs().sum() <= _ROUNDING * other.abs().sum())


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def _put_back(model: nn.Module, kept: dict[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(kept[name])


def sum_gradients(loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """Add the gradients of all ranks up, in place, and return the sum of their losses, in float32.

    Sparse gradients become dense.
    """
    total = loss.detach().to(torch.float32, copy=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()
    sum_over_ranks(total, *(parameter.grad for parameter in parameters))
    return total


def say_not_shared() -> None:
    """Warn, from the first rank, that all ranks do the same."""
    if this_rank() == 0:
        warnings.warn(
            "rows of a batch do not stand apart in this model (batch norm or dropout in training), so every rank runs "
            "the recorded steps in whole and none is the faster for it",
            stacklevel=2,
        )
