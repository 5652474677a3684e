"""Training to the optimum of the objective by L-BFGS, for convex and other small models."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.inputs import call_model, map_tensors
from unlearn.precision import refuse_half
from unlearn.tasks import Task, get_task
from unlearn.training.record import TrainingRecord

# torch's L-BFGS drops curvature pairs with s . y <= 1e-10, near the optimum all of them: it minimises a multiple
_SCALE = 1e8


def train_to_optimum(
    model: nn.Module,
    data: Rows,
    *,
    weight_decay: float,
    task: str | Task = "classification",
    gradient_tolerance: float = 1e-10,
    iterations: int = 2000,
) -> tuple[nn.Module, TrainingRecord]:
    """Minimise the mean loss plus ``weight_decay / 2 * ||theta||^2`` over all rows at once (``torch.optim.LBFGS``).

    A strong Wolfe search leads near the optimum; where values no longer resolve its comparisons, iterations without a
    search, which look at gradients only, finish.

    Args:
        model: initial weights, best in float64; not changed.
        data: rows.
        weight_decay: w of the objective.
        task: name of the task or a task.
        gradient_tolerance: largest entry of the gradient at which to stop.
        iterations: most iterations.

    Returns:
        The trained copy, in eval mode, and a record whose horizon is infinite: the edit's damping is then 0.

    Raises:
        InputError: the tolerance was not reached.

    >>> rows = Rows.from_tensors(torch.eye(4).double(), torch.tensor([0, 1, 0, 1]))
    >>> model, record = train_to_optimum(nn.Linear(4, 2).double(), rows, weight_decay=0.1)
    >>> record.horizon(), record.damping()
    (inf, 0.0)
    """
    refuse_half("training to an optimum is")
    the_task = get_task(task)
    model = copy.deepcopy(model).eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    inputs, labels = data.batch(torch.arange(len(data)))
    inputs, labels = map_tensors(lambda x: x.to(device), inputs), labels.to(device)
    the_task.check(call_model(model, inputs), labels)

    def objective() -> Tensor:
        model.zero_grad(set_to_none=True)
        norm = torch.stack([p.square().sum() for p in parameters]).sum()
        loss = the_task.loss(call_model(model, inputs), labels).mean() + 0.5 * weight_decay * norm
        scaled = _SCALE * loss
        scaled.backward()  # type: ignore[no-untyped-call]
        return scaled

    optimizer = torch.optim.LBFGS(parameters, history_size=50, tolerance_change=0.0)
    steps, resolved = 0, 10 * torch.finfo(parameters[0].dtype).eps ** 0.5
    for search, tolerance in (("strong_wolfe", max(resolved, gradient_tolerance)), (None, gradient_tolerance)):
        left = iterations - steps
        optimizer.param_groups[0].update(
            line_search_fn=search, tolerance_grad=_SCALE * tolerance, max_iter=left, max_eval=2 * left
        )
        optimizer.step(objective)  # type: ignore[no-untyped-call]
        steps = int(optimizer.state[parameters[0]]["n_iter"])
    objective()
    largest = max(float(p.grad.abs().max()) for p in parameters if p.grad is not None) / _SCALE
    if not largest <= gradient_tolerance:
        raise InputError(
            f"the gradient is still {largest:.1e} after {steps} iterations (wanted {gradient_tolerance:.1e}); use "
            "float64, more weight decay or a larger tolerance"
        )
    model.zero_grad(set_to_none=True)
    record = TrainingRecord(
        optimizer="lbfgs",
        lr=1.0,
        steps=max(1, steps),
        weight_decay=weight_decay,
        task=the_task.name,
        data_fingerprint=data.fingerprint,
    )
    return model, record
