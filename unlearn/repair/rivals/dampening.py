"""Selective synaptic dampening (SSD): weights that matter more to the changed rows than to all rows are shrunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearn.curvature import Basis, Vector, find_layers
from unlearn.curvature.fisher import FisherStream
from unlearn.curvature.kronecker import mean_squares
from unlearn.data import Rows
from unlearn.modes import copy_modes
from unlearn.repair.changes import Changes
from unlearn.repair.newton import load_weights
from unlearn.repair.rivals.rival import Rival, RivalEdit, epochs_of
from unlearn.tasks import Task, get_task
from unlearn.training import TrainingRecord

ALPHAS = (1.0, 3.0, 10.0, 30.0)
LAMBDAS = (0.1, 0.3, 1.0)


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
    of_all, of_changed = importances(model, data, task), importances(model, changed, task)
    moved = load_weights(model, dampened(weights, of_all, of_changed, alpha=setting["alpha"], lam=setting["lambda"]))
    copy_modes(model, moved)
    return RivalEdit(moved, epochs_of(len(data) + len(changed), data), setting, shared=1.0)


def importances(model: nn.Module, rows: Rows, task: Task) -> Vector:
    """Return the mean square of the rows' loss gradients at their labels: the diagonal of the empirical Fisher.

    SSD's own code squares the mean gradient of a batch, which makes it depend on the batch size; this is the quantity
    that the paper defines. Parameters that the model does not use have 0.
    """
    layers = find_layers(model, rows).layers
    squares = mean_squares(_AtGivenLabels(model, rows, task, layers), {layer.name: Basis() for layer in layers})
    found = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    for layer in layers:
        found |= {name: part.to(found[name]) for name, part in layer.vector(squares[layer.name]).items()}
    return found


@dataclass(frozen=True)
class _AtGivenLabels(FisherStream):
    """The stream of curvature fits with the loss gradients themselves in place of the Fisher's."""

    def _columns(self, outputs: Tensor, labels: Tensor, positions: Tensor) -> Sequence[Tensor]:
        return [self.task.output_gradient(outputs, labels)]


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
