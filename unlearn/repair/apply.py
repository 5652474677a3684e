"""The front door of repair: choose what to edit, edit it, replay, and say what was done."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from unlearn.curvature import Curvature, fit_curvature, loss_gradient
from unlearn.curvature.digest import weights_digest
from unlearn.curvature.layers import patterns_of
from unlearn.curvature.vectors import add_scaled, norm
from unlearn.data import as_rows
from unlearn.errors import InputError, some
from unlearn.modes import copy_modes
from unlearn.repair.batch_norm import BatchNormRule, check_rule, re_estimate
from unlearn.repair.calibration import calibration_of
from unlearn.repair.changes import Changes, removal
from unlearn.repair.chosen_layers import chosen_parameters, patterns_of_others, restricted
from unlearn.repair.damping import damping_of, weight_decay_of
from unlearn.repair.edit import Cost, Edit, measure
from unlearn.repair.newton import Step, load_weights, newton_steps
from unlearn.repair.objective import EditedObjective
from unlearn.repair.rewind import check_final_weights, check_record, last_snapshot, rewind_step
from unlearn.tasks import Task, get_task
from unlearn.training import Snapshot, Successor, TrainingRecord, replay

ITERATIONS = 5
FACTOR_SHARE = 4
OPERATOR_SHARE = 8
MOST_ROWS = 4096
LEAST_ROWS = 128
OPTIMUM_STEPS = 200
EPOCH_COST = 3
FACTOR_COST = 6


def remove(model: nn.Module, data: Any, ids: Iterable[str], **options: Any) -> Edit:
    """Edit a model as if these rows had been left out of its training.

    Args:
        model: the trained model; not changed.
        data: the rows it was trained on. See :func:`unlearn.as_rows`.
        ids: rows to remove.
        **options: those of :func:`apply_changes`.

    >>> import torch
    >>> from unlearn.data import Rows
    >>> rows = Rows.from_tensors(torch.eye(6), torch.tensor([0, 1, 0, 1, 0, 1]))
    >>> record = TrainingRecord(optimizer="sgd", lr=0.1, steps=100, weight_decay=0.01)
    >>> edit = remove(nn.Linear(6, 2), rows, ["0"], record=record)
    >>> edit.method, edit.after["changed_loss"] > edit.before["changed_loss"]
    ('newton', True)
    """
    return apply_changes(model, data, removal(ids), **options)


def relabel(model: nn.Module, data: Any, labels: Mapping[str, int | float], **options: Any) -> Edit:
    """Edit a model as if these rows had carried other labels in its training.

    Args:
        model: the trained model; not changed.
        data: the rows it was trained on. See :func:`unlearn.as_rows`.
        labels: new label by id.
        **options: those of :func:`apply_changes`.

    >>> import torch
    >>> from unlearn.data import Rows
    >>> rows = Rows.from_tensors(torch.eye(6), torch.tensor([0, 1, 0, 1, 0, 1]))
    >>> edit = relabel(nn.Linear(6, 2), rows, {"0": 1}, damping=0.1, weight_decay=0.01)
    >>> edit.after["changed_phi"] < edit.before["changed_phi"]
    True
    """
    return apply_changes(model, data, Changes(relabelled=dict(labels)), **options)


def apply_changes(
    model: nn.Module,
    data: Any,
    changes: Changes,
    *,
    record: TrainingRecord | None = None,
    budget: float = 1.0,
    curvature: Curvature | None = None,
    damping: float | str = "horizon",
    weight_decay: float | None = None,
    calibration: Any = None,
    steps: int | str = "auto",
    task: str | Task = "classification",
    skip: Iterable[str] = (),
    layers: str | Iterable[str] | None = None,
    allow_empty_class: bool = False,
    batch_norm: BatchNormRule = "re-estimate",
    successor: str | Path | None = None,
) -> Edit:
    """Edit a model as if the changes had been made before its training.

    One Newton step on the edited objective (:mod:`unlearn.repair.objective`), by a few conjugate-gradient iterations
    with the exact Gauss-Newton matrix of a sample of rows and an EK-FAC preconditioner. Where the record has
    snapshots and the row order, the step is taken at the earliest snapshot that the budget reaches, and the recorded
    steps from there on are run again on the changed data. At an optimum with damping 0, Newton steps on the edited
    training objective itself are taken until they converge to retraining.

    Args:
        model: the trained model; not changed.
        data: the rows it was trained on, with their old labels.
        changes: rows to remove and to relabel, classes to remove.
        record: how it was trained; gives weight decay, damping, snapshots and row order.
        budget: training epochs that may be replayed; 0 edits the final weights.
        curvature: the preconditioner for an edit of the final weights; fitted where missing.
        damping: ``horizon``, or a number. The horizon T is that of the training up to the edited weights and d = 2 / T;
            for Adam it is its own metric (math.md 3).
        weight_decay: w of the training objective; from the record where None.
        calibration: where there is no record: rows that the model was not trained on, by which damping is chosen, or
            what :func:`calibrate_damping` found by them. A weight decay that is not given is then 0.
        steps: Newton steps, or ``auto``: 1, or as many as it takes at an optimum with damping 0.
        task: name of the task or a task.
        skip: patterns of layers to leave as they are (edits of the final weights only).
        layers: patterns of the only layers that are edited; all if None (edits of the final weights only). The steps
            minimise E in their weights and leave all others bit for bit, where the changed rows keep their share.
            After the idea of Grad-ReLU (LayerMatch, arXiv 2406.14207, abstract): it keeps the harmful gradients of
            pseudo-labels out of the classification layer in training, this takes them out of a layer afterwards.
        allow_empty_class: whether all rows of a class may go.
        batch_norm: what becomes of running statistics where the final weights are edited: ``re-estimate`` them on the
            changed rows, or ``freeze``. With ``layers`` or ``skip`` they are frozen; a replay moves them as training
            does.
        successor: a folder for the record of the edited training, from which a next edit can start; see
            :mod:`unlearn.training.successor` and :class:`unlearn.repair.EditChain`.

    Returns:
        The edit. A step that was not accepted leaves the weights as they were, and a note says so.

    Raises:
        InputError: changes, budget, damping or weight decay that can not be meant.
        RowNotFoundError: an id is not in the data.
        RecordError: no record where one is needed, or one of another model or of other data.
        StaleCurvatureError: curvature of other weights.
    """
    rows, the_task = as_rows(data), get_task(task)
    changes = changes.on(rows)
    changes.check(rows, allow_empty_class=allow_empty_class)
    if not 0 <= budget < math.inf:
        raise InputError(f"budget is {budget}; give a finite number of training epochs, 0 or more")
    if steps != "auto" and (not isinstance(steps, int) or steps < 1):
        raise InputError(f"steps is {steps!r}; give a number of at least 1, or 'auto'")
    calibrated = None
    if calibration is not None:
        calibrated = calibration_of(calibration, model, rows, record, damping, weight_decay, the_task)
        damping, weight_decay = calibrated.damping, calibrated.weight_decay
    decay = weight_decay_of(weight_decay, record)
    check_record(record, rows, the_task)
    start = rewind_step(record, rows, budget)
    skip = patterns_of(skip)
    if start is not None and skip:
        raise InputError("skip= leaves layers as they are, but a replay moves all of them; pass budget=0 with it")
    layers = None if layers is None else patterns_of(layers)
    if start is not None and layers is not None:
        raise InputError("layers= edits some layers only, but a replay moves all of them; pass budget=0 with it")
    check_rule(batch_norm, replays=start is not None, model=model)
    names = None if layers is None else chosen_parameters(model, layers)
    if start is None and skip and curvature is not None and curvature.options["skip"] != skip:
        raise InputError(
            f"the curvature given was fitted with skip={curvature.options['skip']}; fit it with skip={skip}"
        )
    keeper = None if successor is None or record is None else Successor(record, successor)
    notes = _rewind_notes(record, start, budget)
    if calibrated is not None:
        notes.append(str(calibrated))
    if layers is not None:
        notes.append(f"only layers {some(map(repr, layers))} were edited; all other weights are as they were")
    place, snapshot = model, None
    if record is not None and start is not None:
        check_final_weights(record, model)
        place, snapshot = copy.deepcopy(model), record.snapshot(start)
        snapshot.restore(place)
        if curvature is not None and curvature.weights_digest != weights_digest(place):
            curvature = None
            notes.append("the curvature given is of other weights than the snapshot; that of the snapshot was fitted")
    elif record is not None and record.optimizer == "adam" and damping == "horizon":
        snapshot = last_snapshot(record)
        check_final_weights(record, model)
    edited = changes.apply(rows)
    factor_rows = 0
    if curvature is None:
        chosen = edited.sample(_sample_size(len(edited), FACTOR_SHARE), 0, "factor-rows")
        left_out = skip if names is None else [*skip, *patterns_of_others(place, names)]
        curvature, factor_rows = fit_curvature(place, chosen, task=the_task, skip=left_out), len(chosen)
    else:
        curvature.check(place)
        if names is not None:
            curvature = restricted(curvature, names)
    objective = EditedObjective(
        place,
        rows,
        changes,
        the_task,
        curvature.covered,
        decay,
        damping_of(damping, record, start, snapshot, place),
        sample=_sample_size(len(edited), 1 if start is None else OPERATOR_SHARE),
    )
    moved, taken, solve_cost = _newton(objective, curvature, steps, notes)
    replayed = 0
    if record is not None and start is not None:
        take = None if keeper is None else keeper.take
        moved, replayed = replay(moved, edited, record, start=start, snapshot=snapshot, take=take)
    elif batch_norm == "re-estimate" and not skip and names is None and any(step.accepted for step in taken):
        passes = re_estimate(moved, edited)
        solve_cost += passes
        if passes:
            notes.append(
                f"running statistics of batch norm were estimated again on all {len(edited)} rows of the changed data"
            )
    if start is None and record is not None and keeper is not None:
        state = record.snapshot(record.steps).optimizer if record.steps in record.snapshots else {}
        keeper.take(record.steps, Snapshot(moved.state_dict(), state))
    copy_modes(model, moved)
    epoch = EPOCH_COST * len(rows)
    return Edit(
        model=moved,
        original=model,
        method="newton" if start is None else "rewind-newton-replay",
        changes=changes,
        data=rows,
        record=record,
        steps=taken,
        cost=Cost(FACTOR_COST * factor_rows / epoch, solve_cost / epoch, EPOCH_COST * replayed / epoch),
        before=measure(model, rows, changes, the_task),
        after=measure(moved, rows, changes, the_task),
        budget=budget,
        start_step=start,
        layers=None if layers is None else tuple(layers),
        curvature=curvature,
        calibration=calibrated,
        successor=None if keeper is None else keeper.finish(edited, changes.removed),
        notes=tuple(notes),
    )


def _rewind_notes(record: TrainingRecord | None, start: int | None, budget: float) -> list[str]:
    """Say why the final weights are edited where a rewind was allowed."""
    if start is not None or record is None or budget == 0 or len(record.snapshots) < 2:
        return []
    return [f"no snapshot lies within {budget:g} epochs of the end, so the final weights were edited"]


def _newton(
    objective: EditedObjective, curvature: Curvature, steps: int | str, notes: list[str]
) -> tuple[nn.Module, tuple[Step, ...], int]:
    """Take the Newton steps; return the moved copy, the numbers of the steps, and what they cost."""
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
    return load_weights(objective.model, weights), tuple(taken), objective.cost


def _sample_size(rows: int, share: int) -> int:
    """Return how many rows stand for all: one in ``share``, within ``LEAST_ROWS`` and ``MOST_ROWS``."""
    return max(LEAST_ROWS, min(MOST_ROWS, rows // share))


def _stands_at_optimum(objective: EditedObjective) -> bool:
    """Whether the unfinished training is small beside the request: ||grad J(theta_0)|| <= 0.01 ||right-hand side||."""
    total = loss_gradient(objective.model, objective.data, task=objective.task, parameters=objective.names)
    mean = {name: part / len(objective.data) for name, part in total.items()}
    rest = add_scaled(mean, objective.weight_decay, objective.start)
    objective.cost += EPOCH_COST * len(objective.data)
    return norm(rest) <= 0.01 * norm(objective.at_start()[1])
