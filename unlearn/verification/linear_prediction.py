"""What the curvature at the original weights foretells of a change, held against what an edit did.

The Newton step of math.md 3 from the final weights, with the factors in place of the exact matrix, moves the outputs by
J (G + w + d)^-1 b to first order; b is the right-hand side of the edited objective (:mod:`unlearn.repair.objective`).
The edit itself need not be of this kind: any edited model can be held against it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jvp

from unlearn.curvature import Curvature, Vector
from unlearn.data import DEFAULT_BATCH, Rows
from unlearn.inputs import Inputs, call_model
from unlearn.modes import evaluation, plain_attention
from unlearn.precision import widened
from unlearn.predict import rows_within
from unlearn.repair import Changes
from unlearn.repair.objective import EditedObjective
from unlearn.tasks import Task


def predicted_step(
    model: nn.Module,
    data: Rows,
    changes: Changes,
    curvature: Curvature,
    *,
    task: Task,
    weight_decay: float,
    damping: float,
) -> Vector:
    """Return (G + w + d)^-1 b in the parameters that the curvature covers; costs 3 for each changed row.

    Only the changed rows' terms of the objective are used.

    >>> from unlearn.curvature import fit_curvature
    >>> from unlearn.tasks import get_task
    >>> rows, model = Rows.from_tensors(torch.eye(4), torch.tensor([0, 1, 0, 1])), nn.Linear(4, 2)
    >>> options = {"task": get_task("classification"), "weight_decay": 0.1, "damping": 0.1}
    >>> step = predicted_step(model, rows, Changes(removed=("0",)), fit_curvature(model, rows), **options)
    >>> bool(step["weight"][0, 0] < 0)                            # what spoke for row 0's label goes down
    True
    """
    objective = EditedObjective(model, data, changes, task, curvature.covered, weight_decay, damping, sample=1)
    _, gradient = objective.at_start()
    return curvature.solve({name: -part for name, part in gradient.items()}, damping=weight_decay + damping)


def output_change(model: nn.Module, data: Rows, step: Vector) -> Tensor:
    """Return J v of each row, the change of the outputs to first order, on the CPU, (n, ...); costs 3 a row.

    >>> model = nn.Linear(2, 1)
    >>> step = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([0.5])}
    >>> output_change(model, Rows.from_tensors(torch.eye(2), torch.zeros(2)), step)
    tensor([[1.5000],
            [2.5000]])
    """
    model = widened(model)
    weights = {name: model.get_parameter(name).detach() for name in step}

    def outputs(chosen: Vector, inputs: Inputs) -> Tensor:
        return call_model(model, inputs, chosen)

    parts = []
    with evaluation(model), plain_attention(), torch.no_grad():
        for _, inputs, _ in data.batches(rows_within(model, data, DEFAULT_BATCH), next(model.parameters()).device):
            tangents = jvp(lambda chosen, x=inputs: outputs(chosen, x), (weights,), (step,))[1]
            parts.append(tangents.cpu())
    return torch.cat(parts)


@dataclass(frozen=True)
class Agreement:
    """Predicted and actual changes of the logits on some rows, each row's constant taken out.

    Attributes:
        cosine: of the two, all rows as one vector; 0 where one of them is nothing.
        slope: least squares of actual on predicted: 1 if as foretold, 0 if nothing happened, below 0 if the opposite.
        predicted: root mean square of the predicted changes.
        actual: root mean square of the actual changes.
    """

    cosine: float
    slope: float
    predicted: float
    actual: float


def agreement_of(predicted: Tensor, actual: Tensor) -> Agreement:
    """Hold actual changes of logits against predicted ones, both (n, classes).

    >>> p = torch.tensor([[1.0, -1.0], [0.5, -0.5]])
    >>> found = agreement_of(p, 2 * p + 7)                        # twice what was foretold, and a constant
    >>> round(found.cosine, 9), found.slope, found.actual / found.predicted
    (1.0, 2.0, 2.0)
    """
    return agreement_of_parts([(predicted, actual)])


def agreement_of_parts(parts: Iterable[tuple[Tensor, Tensor]]) -> Agreement:
    """Hold predicted and actual changes of some rows at a time against each other, as if they were of all at once.

    >>> p = torch.tensor([[1.0, -1.0], [0.5, -0.5]])
    >>> agreement_of_parts([(p[:1], 2 * p[:1]), (p[1:], 2 * p[1:])]) == agreement_of(p, 2 * p)
    True
    """
    inner = aa = bb = 0.0
    count = 0
    for predicted, actual in parts:
        a, b = (change.double() - change.double().mean(1, keepdim=True) for change in (predicted, actual))
        inner, aa, bb = inner + float((a * b).sum()), aa + float((a * a).sum()), bb + float((b * b).sum())
        count += a.numel()
    return Agreement(
        cosine=inner / (aa * bb) ** 0.5 if aa and bb else 0.0,
        slope=inner / aa if aa else 0.0,
        predicted=(aa / count) ** 0.5,
        actual=(bb / count) ** 0.5,
    )
