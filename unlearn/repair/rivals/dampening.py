"""Selective synaptic dampening (SSD): weights that matter more to the changed rows than to all rows are shrunk."""

from __future__ import annotations

import torch
from torch import nn

from unlearn.curvature import Vector
from unlearn.curvature.row_gradients import row_gradients
from unlearn.data import Rows
from unlearn.inputs import call_model
from unlearn.modes import copy_modes, evaluation
from unlearn.progress import track
from unlearn.repair.changes import Changes
from unlearn.repair.newton import load_weights
from unlearn.repair.rivals.rival import Rival, RivalEdit, epochs_of
from unlearn.tasks import Task, get_task
from unlearn.training import TrainingRecord

ALPHAS = (1.0, 3.0, 10.0, 30.0)
LAMBDAS = (0.1, 0.3, 1.0)
ROWS_AT_ONCE = 32


def selective_dampening(
    model: nn.Module, data: Rows, changes: Changes, record: TrainingRecord, setting: dict[str, float], seed: int
) -> RivalEdit:
    """Dampen by the importances of all rows and of the changed ones, both at the old labels (arXiv 2308.07707).

    Settings: ``alpha`` (selection) and ``lambda`` (dampening), by default the paper's 10 and 1. The importances of all
    rows do not depend on the request; their epoch is shared.
    """
    setting = {"alpha": 10.0, "lambda": 1.0, **setting}
    task, changed = get_task(record.task), data.only(changes.ids)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    moved = load_weights(
        model,
        dampened(
            weights,
            importances(model, data, task),
            importances(model, changed, task),
            alpha=setting["alpha"],
            lam=setting["lambda"],
        ),
    )
    copy_modes(model, moved)
    return RivalEdit(moved, epochs_of(len(data) + len(changed), data), setting, shared=1.0)


def importances(model: nn.Module, rows: Rows, task: Task) -> Vector:
    """Return the mean square of the rows' loss gradients at their labels: the diagonal of the empirical Fisher.

    SSD's own code squares the mean gradient of a batch, which makes it depend on the batch size; this is the quantity
    that the paper defines.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    total = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
    device = next(model.parameters()).device
    for _, inputs, labels in track(rows.batches(ROWS_AT_ONCE, device), "importances", -(-len(rows) // ROWS_AT_ONCE)):
        with evaluation(model), torch.no_grad():
            outputs = call_model(model, inputs)
            task.check(outputs, labels)
            cotangent = task.output_gradient(outputs, labels)
        for name, gradients in row_gradients(model, inputs, cotangent, names).items():
            total[name] += gradients.square().sum(0)
    return {name: part / len(rows) for name, part in total.items()}


def dampened(weights: Vector, of_all: Vector, of_changed: Vector, *, alpha: float, lam: float) -> Vector:
    """Return the weights, each times min(lambda I_all / I_changed, 1) where I_changed > alpha I_all.

    arXiv 2308.07707, the two equations of its section 3, and ``modify_weight`` of its authors' code.

    >>> one = {"w": torch.ones(3)}
    >>> dampened(one, {"w": torch.tensor([1.0, 1.0, 0.0])}, {"w": torch.tensor([20.0, 5.0, 0.0])}, alpha=10, lam=2)
    {'w': tensor([0.1000, 1.0000, 1.0000])}
    """
    found: Vector = {}
    for name, weight in weights.items():
        factor = (lam * of_all[name] / of_changed[name]).clamp(max=1.0)
        found[name] = torch.where(of_changed[name] > alpha * of_all[name], factor * weight, weight)
    return found


def grid(data: Rows, changes: Changes, record: TrainingRecord, cost: float) -> list[dict[str, float]]:
    """Return every pair, where the importances of the changed rows may be afforded."""
    if len(changes.ids) / len(data) > cost:
        return []
    return [{"alpha": alpha, "lambda": lam} for alpha in ALPHAS for lam in LAMBDAS]


SSD = Rival("SSD", selective_dampening, grid, optional=("alpha", "lambda"))
