"""Steps of one training on several ranks: each takes its rows of the batch, and their gradients are added up.

That is the step of one process only where rows stand apart, which is measured: batch norm takes its statistics from the
whole batch, and dropout draws for it.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from unlearn.data import Rows
from unlearn.inputs import call_model, map_tensors
from unlearn.ranks import own_span, sum_over_ranks, this_rank
from unlearn.training.random_streams import random_streams

_ROUNDING = 1e-3
"""How far, by the largest, outputs of a row may differ in another batch: above TF32, far below other statistics."""


def own_rows(batch: Tensor) -> Tensor:
    """Return this rank's part of what has one entry a row; none where there are more ranks than rows.

    >>> own_rows(torch.tensor([4, 2]))
    tensor([4, 2])
    """
    span = own_span(len(batch))
    return batch[span.start : span.stop]


def rows_stand_apart(model: nn.Module, rows: Rows, batch: Tensor, device: torch.device) -> bool:
    """Return whether the outputs of all rows of a batch are, in training too, the same without the other rows.

    The same on all ranks. What the model keeps (running statistics) is put back; random streams are not.

    >>> rows = Rows.from_tensors(torch.eye(4), torch.tensor([0, 1, 0, 1]))
    >>> [rows_stand_apart(m, rows, torch.arange(4), torch.device("cpu")) for m in (nn.Linear(4, 2), nn.Dropout())]
    [True, False]
    """
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before = random_streams(device)
    own, differs = own_rows(batch), torch.zeros((), device=device)
    with torch.no_grad():
        together = _outputs(model, rows, batch, device)
        try:
            alone = _outputs(model, rows, own, device) if len(own) else own_rows(together)
            error = (own_rows(together) - alone).abs().sum()
            differs += ~(error <= _ROUNDING * own_rows(together).abs().sum())
        except ValueError:  # batch norm of a single row
            differs += 1
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
    if not all(torch.equal(*pair) for pair in zip(before, random_streams(device), strict=True)):
        differs += 1
    sum_over_ranks(differs)
    return not differs


def _outputs(model: nn.Module, rows: Rows, batch: Tensor, device: torch.device) -> Tensor:
    return call_model(model, map_tensors(lambda x: x.to(device), rows.batch(batch)[0]))


def sum_gradients(loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """Add the gradients of all ranks up, in place, and return the sum of their losses, in float32."""
    total = loss.detach().to(torch.float32, copy=True)
    sum_over_ranks(total, *(p.grad for group in optimizer.param_groups for p in group["params"]))
    return total


def say_not_shared() -> None:
    """Warn, once in the job, that all ranks do the same."""
    if this_rank() == 0:
        warnings.warn(
            "rows of a batch do not stand apart in this model (batch norm or dropout in training), so every rank runs "
            "the recorded steps in whole and none is the faster for it",
            stacklevel=2,
        )
