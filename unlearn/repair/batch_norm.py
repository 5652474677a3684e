"""Running statistics of batch norms after an edit: estimated again on the changed rows, or left as they are.

Running statistics are no weights: they sum up the rows that training saw. After an edit of the final weights they still
sum up the old rows under the old weights, so by default they are taken anew. A replay updates them as training does.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from unlearn.data import DEFAULT_BATCH, Rows
from unlearn.errors import InputError, did_you_mean
from unlearn.inputs import call_model, map_tensors
from unlearn.modes import evaluation
from unlearn.precision import precision_of_weights, widened

BatchNormRule = Literal["re-estimate", "freeze"]


def check_rule(rule: str, *, replays: bool, model: nn.Module) -> None:
    """Refuse a rule that is unknown, or that a replay would break.

    Raises:
        InputError: what is wrong.
    """
    if rule not in get_args(BatchNormRule):
        raise InputError(f"unknown batch_norm {rule!r}; {did_you_mean(rule, get_args(BatchNormRule))}")
    if rule == "freeze" and replays and running(model):
        raise InputError(
            "batch_norm='freeze' keeps running statistics, but a replay moves them as training does; pass budget=0 "
            "with it"
        )


def running(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def re_estimate(model: nn.Module, rows: Rows, *, batch_size: int = DEFAULT_BATCH) -> int:
    """Set the running statistics to cumulative averages over the rows, in their order, in place.

    Each batch norm normalises by its batch while its statistics are averaged, as in training and in
    ``torch.optim.swa_utils.update_bn``; all other layers are in evaluation mode, so that dropout is off. The batches
    are of sizes that differ by at most one, so that each row counts alike. Modes and momenta are left as found. The
    averages are taken in float32 at least.

    Args:
        model: whose statistics are set.
        rows: the changed rows; labels are not used.
        batch_size: most rows of a batch.

    Returns:
        The row passes it cost; 0 where there is nothing to estimate.

    >>> model = nn.BatchNorm1d(1)
    >>> re_estimate(model, Rows.from_tensors(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 1, 1])))
    3
    >>> float(model.running_mean), float(model.running_var)
    (3.0, 4.0)
    """
    found, model = running(model), widened(model)
    norms = running(model)
    if not norms:
        return 0
    device = next(model.parameters()).device
    momenta = [norm.momentum for norm in norms]
    parts = torch.arange(len(rows)).tensor_split(-(-len(rows) // batch_size))
    try:
        with evaluation(model), precision_of_weights(), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.training = True
            for positions in parts:
                call_model(model, map_tensors(lambda x: x.to(device), rows.batch(positions)[0]))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    for own, norm in zip(found, norms, strict=True):
        if own is not norm:
            own.load_state_dict(norm.state_dict())
    return len(rows)
