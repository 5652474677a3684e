"""The step of the influence literature: one EK-FAC solve of the changed rows' gradient, at the final weights."""

from __future__ import annotations

from torch import Tensor, nn

from unlearn.curvature import Vector, add_scaled, fit_curvature
from unlearn.data import Rows
from unlearn.modes import copy_modes
from unlearn.repair.changes import Changes
from unlearn.repair.damping import damping_of
from unlearn.repair.newton import load_weights
from unlearn.repair.objective import EditedObjective
from unlearn.repair.rewind import last_snapshot
from unlearn.repair.rivals.rival import Rival, RivalEdit
from unlearn.tasks import get_task
from unlearn.training import TrainingRecord

FIT_EPOCHS = 2
SCALES = (0.3, 1.0, 3.0, 10.0, 30.0)


def influence_step(
    model: nn.Module, data: Rows, changes: Changes, record: TrainingRecord, setting: dict[str, float], seed: int
) -> RivalEdit:
    """Add (EK-FAC + w + d)^-1 of the changed rows' gradients to the weights (math.md 3; arXiv 2308.03296).

    No conjugate gradients, no line search, no replay. The factors are fitted on all rows, as the literature does, and
    count as shared.

    Settings: ``scale``, by default 1: d as a multiple of the damping 2 / T of the training horizon (for Adam of the
    mean of its metric).
    """
    setting = {"scale": 1.0, **setting}
    task = get_task(record.task)
    curvature = fit_curvature(model, data, task=task, seed=seed)
    damping = setting["scale"] * horizon_damping(model, record)
    objective = EditedObjective(model, data, changes, task, curvature.covered, record.weight_decay, damping)
    _, gradient = objective.at_start()
    step = curvature.solve({name: -part for name, part in gradient.items()}, damping=record.weight_decay + damping)
    weights: Vector = {name: p.detach() for name, p in model.named_parameters() if name in step}
    moved = load_weights(model, add_scaled(weights, 1.0, step))
    copy_modes(model, moved)
    return RivalEdit(moved, FIT_EPOCHS + objective.cost / (3 * len(data)), setting, shared=FIT_EPOCHS)


def horizon_damping(model: nn.Module, record: TrainingRecord) -> float:
    """Return the damping of an edit at the final weights as one number."""
    snapshot = last_snapshot(record) if record.optimizer == "adam" else None
    damping = damping_of("horizon", record, None, snapshot, model)
    if not isinstance(damping, dict):
        return damping
    parts: list[Tensor] = list(damping.values())
    return sum(float(part.sum()) for part in parts) / sum(part.numel() for part in parts)


def grid(data: Rows, changes: Changes, record: TrainingRecord, cost: float) -> list[dict[str, float]]:
    """Return every damping, where one gradient of the changed rows may be afforded."""
    if 4 * len(changes.ids) / (3 * len(data)) > cost:
        return []
    return [{"scale": scale} for scale in SCALES]


INFLUENCE_STEP = Rival("influence step", influence_step, grid, optional=("scale",))
