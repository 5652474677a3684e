"""A, the Newton edit: one step on the edited objective, or as many as it takes at an optimum with damping 0."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from unlearn.curvature import Curvature, fit_curvature, loss_gradient
from unlearn.curvature.vectors import add_scaled, norm
from unlearn.data import Rows
from unlearn.repair.changes import Changes
from unlearn.repair.chosen_layers import patterns_of_others, restricted
from unlearn.repair.newton import Step, load_weights, newton_steps
from unlearn.repair.objective import Damping, EditedObjective
from unlearn.repair.rounding import rounding_notes
from unlearn.tasks import Task

ITERATIONS = 5
FACTOR_SHARE = 4
FINAL_SHARE, REPLAY_SHARE = 4, 8
"""One row in so many stands for all in exact products: for an edit that is final, and for one that a replay mends."""
MOST_ROWS = 4096
LEAST_ROWS = 128
OPTIMUM_STEPS = 200
GRADIENT_COST = 3


@dataclass(frozen=True)
class NewtonEdit:
    """Edited weights, the numbers of the steps, and what they cost in row passes.

    Attributes:
        model: a copy with the edited weights.
        steps: numbers of every step.
        cost: row passes of the steps.
        factor_rows: rows that the preconditioner was fitted on for this edit.
        curvature: the preconditioner.
        notes: what a reader should know.
    """

    model: nn.Module
    steps: tuple[Step, ...]
    cost: int
    factor_rows: int
    curvature: Curvature
    notes: tuple[str, ...]


def newton_edit(
    place: nn.Module,
    rows: Rows,
    changes: Changes,
    task: Task,
    *,
    weight_decay: float,
    damping: Damping,
    steps: int | str,
    curvature: Curvature | None,
    share: int,
    skip: Iterable[str] = (),
    names: Collection[str] | None = None,
) -> NewtonEdit:
    """Take the Newton steps at the weights of ``place``.

    Args:
        place: the model to edit; not changed.
        rows: rows before the change.
        changes: the change.
        task: the task.
        weight_decay: w.
        damping: d, a number or a metric.
        steps: Newton steps, or ``auto``.
        curvature: the preconditioner; fitted on a share of the rows where None.
        share: one in so many rows stands for all in the exact Gauss-Newton products.
        skip: patterns of layers to leave out of a curvature that is fitted here.
        names: the only parameters to move; None for all that are covered.
    """
    edited, factor_rows, notes = changes.apply(rows), 0, []
    if curvature is None:
        chosen = edited.sample(sample_size(len(edited), FACTOR_SHARE), 0, "factor-rows")
        left_out = list(skip) if names is None else [*skip, *patterns_of_others(place, names)]
        curvature, factor_rows = fit_curvature(place, chosen, task=task, skip=left_out), len(chosen)
    else:
        curvature.check(place)
        if names is not None:
            curvature = restricted(curvature, names)
    sample = sample_size(len(edited), share)
    objective = EditedObjective(place, rows, changes, task, curvature.covered, weight_decay, damping, sample=sample)
    converge = objective.damping == 0 and _stands_at_optimum(objective)
    limits: dict[str, Any] = {"iterations": ITERATIONS}
    if converge:
        objective = replace(objective, sample=None, full=True, cost=objective.cost)
        limits = {"iterations": 1000, "tolerance": 1e-8}
    elif objective.damping == 0:
        notes.append(
            "damping is 0, but these weights are not at an optimum, so the edit is not iterated to convergence"
        )
    most = steps if isinstance(steps, int) else OPTIMUM_STEPS if converge else 1
    weights, taken = newton_steps(objective, curvature, steps=most, **limits)
    if taken and not taken[-1].accepted:
        why = taken[-1].breakdown or "the objective did not fall"
        notes.append(f"failed: Newton step {len(taken)} was not accepted: {why}; weights stay as before it")
    elif converge and len(taken) == OPTIMUM_STEPS:
        notes.append(
            f"not converged to retraining after {OPTIMUM_STEPS} Newton steps: the gradient fell from "
            f"{taken[0].gradient_norm:.1e} to {taken[-1].gradient_norm:.1e}"
        )
    moved = load_weights(place, weights)
    notes += rounding_notes(place, weights)
    return NewtonEdit(moved, tuple(taken), objective.cost, factor_rows, curvature, tuple(notes))


def sample_size(rows: int, share: int) -> int:
    """Return how many rows stand for all: one in ``share``, within ``LEAST_ROWS`` and ``MOST_ROWS``.

    >>> sample_size(4000, 4), sample_size(100, 4), sample_size(10**6, 4)
    (1000, 128, 4096)
    """
    return max(LEAST_ROWS, min(MOST_ROWS, rows // share))


def _stands_at_optimum(objective: EditedObjective) -> bool:
    """Whether the unfinished training is small beside the request: ||grad J(theta_0)|| <= 0.01 ||right-hand side||."""
    total = loss_gradient(objective.model, objective.data, task=objective.task, parameters=objective.names)
    mean = {name: part / len(objective.data) for name, part in total.items()}
    rest = add_scaled(mean, objective.weight_decay, objective.start)
    objective.cost += GRADIENT_COST * len(objective.data)
    return norm(rest) <= 0.01 * norm(objective.at_start()[1])
