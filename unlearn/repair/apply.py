"""The front door of repair: choose what to edit, edit it, replay, and say what was done."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.curvature import Curvature, Vector, fit_curvature, loss_gradient
from unlearn.curvature.layers import patterns_of
from unlearn.curvature.vectors import add_scaled, norm
from unlearn.data import Rows, as_rows, draws
from unlearn.errors import InputError, RecordError
from unlearn.modes import copy_modes
from unlearn.predict import predict
from unlearn.repair.changes import Changes, removal
from unlearn.repair.edit import Cost, Edit
from unlearn.repair.newton import load_weights, newton_steps
from unlearn.repair.objective import Damping, EditedObjective
from unlearn.tasks import Task, get_task, phi
from unlearn.training import Snapshot, TrainingRecord, replay

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
    steps: int | str = "auto",
    task: str | Task = "classification",
    skip: Iterable[str] = (),
    allow_empty_class: bool = False,
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
        changes: rows to remove and to relabel.
        record: how it was trained; gives weight decay, damping, snapshots and row order.
        budget: training epochs that may be replayed; 0 edits the final weights.
        curvature: the preconditioner for an edit of the final weights; fitted where missing.
        damping: ``horizon``, or a number. The horizon T is that of the training up to the edited weights and d = 2 / T;
            for Adam it is its own metric (math.md 3).
        weight_decay: w of the training objective; from the record where None.
        steps: Newton steps, or ``auto``: 1, or as many as it takes at an optimum with damping 0.
        task: name of the task or a task.
        skip: patterns of layers to leave as they are (edits of the final weights only).
        allow_empty_class: whether all rows of a class may go.

    Returns:
        The edit. A step that was not accepted leaves the weights as they were, and a note says so.

    Raises:
        InputError: changes, budget, damping or weight decay that can not be meant.
        RowNotFoundError: an id is not in the data.
        RecordError: no record where one is needed, or one of another model or of other data.
        StaleCurvatureError: curvature of other weights.
    """
    rows, the_task = as_rows(data), get_task(task)
    changes.check(rows, allow_empty_class=allow_empty_class)
    if not budget >= 0:
        raise InputError(f"budget is {budget}; give training epochs, 0 or more")
    if steps != "auto" and (not isinstance(steps, int) or steps < 1):
        raise InputError(f"steps is {steps!r}; give a number of at least 1, or 'auto'")
    decay = _weight_decay(weight_decay, record)
    _check_record(record, rows, the_task)
    start = _rewind_step(record, rows, budget)
    method = "newton" if start is None else "rewind-newton-replay"
    skip = patterns_of(skip)
    if start is not None and skip:
        raise InputError("skip= leaves layers as they are, but a replay moves all of them; pass budget=0 with it")
    if start is None and skip and curvature is not None and curvature.options["skip"] != skip:
        raise InputError(
            f"the curvature given was fitted with skip={curvature.options['skip']}; fit it with skip={skip}"
        )
    notes: list[str] = []
    if record is not None and record.order is not None and start is None and budget > 0 and len(record.snapshots) > 1:
        notes.append(f"no snapshot lies within {budget:g} epochs of the end, so the final weights were edited")
    if record is not None and start is not None:
        _check_final_weights(record, model)
        snapshot = record.snapshot(start)
        place = copy.deepcopy(model)
        snapshot.restore(place)
        if curvature is not None:
            notes.append("the curvature given is of the final weights; that of the snapshot was fitted for this edit")
            curvature = None
    else:
        place, snapshot = model, None
        if record is not None and record.optimizer == "adam" and damping == "horizon":
            snapshot = _last_snapshot(record)
            _check_final_weights(record, model)
    metric = _damping(damping, record, start, snapshot, place)
    moved, objective_steps, factor_rows, solve_cost = _newton(
        place,
        rows,
        changes,
        the_task,
        decay,
        metric,
        curvature,
        steps,
        skip,
        1 if start is None else OPERATOR_SHARE,
        notes,
    )
    replayed = 0
    if record is not None and start is not None:
        moved, replayed = replay(moved, changes.apply(rows), record, start=start, snapshot=snapshot)
    copy_modes(model, moved)
    epoch = EPOCH_COST * len(rows)
    return Edit(
        model=moved,
        original=model,
        method=method,
        changes=changes,
        data=rows,
        record=record,
        steps=objective_steps,
        cost=Cost(FACTOR_COST * factor_rows / epoch, solve_cost / epoch, EPOCH_COST * replayed / epoch),
        before=_measure(model, rows, changes, the_task),
        after=_measure(moved, rows, changes, the_task),
        budget=budget,
        start_step=start,
        notes=tuple(notes),
    )


def _newton(
    place: nn.Module,
    rows: Rows,
    changes: Changes,
    task: Task,
    decay: float,
    damping: Damping,
    curvature: Curvature | None,
    steps: int | str,
    skip: list[str],
    operator_share: int,
    notes: list[str],
) -> tuple[nn.Module, tuple[Any, ...], int, int]:
    """Take the Newton steps; return the moved copy, the steps, the rows factors were fitted on, and the cost."""
    edited = changes.apply(rows)
    factor_rows = 0
    if curvature is None:
        order = torch.from_numpy(draws.permutation(0, edited.ids, "factor-rows").copy())
        chosen = order[: _sample_size(len(edited), FACTOR_SHARE)].sort().values
        curvature = fit_curvature(place, edited.at(chosen), task=task, skip=skip)
        factor_rows = len(chosen)
    else:
        curvature.check(place)
    names = curvature.covered
    objective = EditedObjective(
        place, rows, changes, task, names, decay, damping, sample=_sample_size(len(edited), operator_share)
    )
    converge = damping == 0 and _stands_at_optimum(objective)
    if converge:
        cost = objective.cost
        objective = EditedObjective(place, rows, changes, task, names, decay, damping, full=True)
        objective.cost = cost
        limits: dict[str, Any] = {"iterations": 1000, "tolerance": 1e-8}
    else:
        limits = {"iterations": ITERATIONS}
        if damping == 0:
            notes.append(
                "damping is 0, but these weights are not at an optimum, so the edit is not iterated to convergence"
            )
    most = steps if isinstance(steps, int) else OPTIMUM_STEPS if converge else 1
    weights, taken = newton_steps(objective, curvature, steps=most, **limits)
    if taken and not taken[-1].accepted:
        notes.append(
            f"Newton step {len(taken)} was not accepted: the objective did not fall; weights stay as before it"
        )
    elif converge and len(taken) == OPTIMUM_STEPS:
        notes.append(
            f"not converged to retraining after {OPTIMUM_STEPS} Newton steps: the gradient fell from "
            f"{taken[0].gradient_norm:.1e} to {taken[-1].gradient_norm:.1e}"
        )
    return load_weights(place, weights), tuple(taken), factor_rows, objective.cost


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


def _weight_decay(given: float | None, record: TrainingRecord | None) -> float:
    if given is None:
        if record is None:
            raise RecordError(
                "no training record and no weight decay: pass record=TrainingRecord(optimizer, lr, steps, ...), or "
                "weight_decay= and damping= as numbers"
            )
        return record.weight_decay
    if not 0 <= given < math.inf:
        raise InputError(f"weight_decay is {given}; give a finite number, 0 or more")
    return given


def _check_record(record: TrainingRecord | None, rows: Rows, task: Task) -> None:
    if record is None:
        return
    if record.task != task.name:
        raise RecordError(
            f"the record is of task {record.task!r}, the edit of {task.name!r}; pass task={record.task!r}"
        )
    if record.data_fingerprint not in (None, rows.fingerprint):
        raise RecordError(
            f"the record is of data {str(record.data_fingerprint)[:12]}, this data is {rows.fingerprint[:12]}; pass "
            "the rows as they were in training, with their old labels"
        )


def _rewind_step(record: TrainingRecord | None, rows: Rows, budget: float) -> int | None:
    """Return the earliest snapshot from which a replay stays within the budget; None to edit the final weights."""
    if record is None or record.order is None or budget == 0:
        return None
    seen = (record.order.positions >= 0).sum(1)
    left = seen.flip(0).cumsum(0).flip(0)
    within = [step for step in sorted(record.snapshots) if 0 < step < record.steps and left[step] <= budget * len(rows)]
    return within[0] if within else None


def _check_final_weights(record: TrainingRecord, model: nn.Module) -> None:
    """Refuse to rewind a training whose last weights are not those of the model."""
    last = record.snapshot(record.steps).weights
    own = model.state_dict()
    if last.keys() != own.keys() or not all(torch.equal(last[name].to(own[name]), own[name]) for name in own):
        raise RecordError(
            "the record's last snapshot has other weights than the model, so it is the record of another one; pass "
            "its own record"
        )


def _last_snapshot(record: TrainingRecord) -> Snapshot:
    if record.steps not in record.snapshots or record.folder is None:
        raise RecordError(
            "the damping of Adam needs the last snapshot with its second moments; record it, or give damping="
        )
    return record.snapshot(record.steps)


def _damping(
    given: float | str, record: TrainingRecord | None, start: int | None, snapshot: Snapshot | None, place: nn.Module
) -> Damping:
    """Return the number or metric d; see math.md 3 for both."""
    if not isinstance(given, str):
        if not 0 <= given < math.inf:
            raise InputError(f"damping is {given}; give a finite number, 0 or more")
        return float(given)
    if given != "horizon":
        raise InputError(f"unknown damping {given!r}; give a number or 'horizon'")
    if record is None:
        raise RecordError(
            "no training record and no damping: pass record=TrainingRecord(optimizer, lr, steps, ...), from which the "
            "damping 2 / T follows, or damping= as a number"
        )
    if record.optimizer != "adam":
        return record.damping(start)
    if snapshot is None:
        raise RecordError("the damping of Adam needs a snapshot with its second moments; record one, or give damping=")
    done = record.steps if start is None else start
    return _adam_metric(record, snapshot, done, dict(place.named_parameters()))


def _adam_metric(record: TrainingRecord, snapshot: Snapshot, done: int, parameters: dict[str, Any]) -> Vector:
    """Return (sqrt(v) + eps) / sum lr, with Adam's bias-corrected second moments v after ``done`` steps."""
    horizon, correction = record.horizon(0, done), 1 - record.betas[1] ** done
    metric: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        moment = snapshot.optimizer.get(f"exp_avg_sq/{name}")
        if moment is not None:
            metric[name] = (((moment / correction).sqrt() + record.eps) / horizon).to(parameter)
    return metric


def _measure(model: nn.Module, rows: Rows, changes: Changes, task: Task) -> dict[str, float]:
    changed, kept = rows.only(changes.ids), rows.without(changes.ids) if len(changes.ids) < len(rows) else None
    outputs = predict(model, changed)
    found = {"changed_loss": float(task.loss(outputs, changed.labels).mean())}
    if rows.classes is not None:
        found["changed_phi"] = float(phi(outputs, changed.labels).mean())
    if kept is not None:
        outputs = predict(model, kept)
        found["kept_loss"] = float(task.loss(outputs, kept.labels).mean())
        if rows.classes is not None:
            found["kept_accuracy"] = float((outputs.argmax(1) == kept.labels).double().mean())
    return found
