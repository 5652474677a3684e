"""The front door of repair: choose a method, edit, replay, and say what was done."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unlearn.curvature import Curvature
from unlearn.curvature.digest import weights_digest
from unlearn.curvature.layers import patterns_of
from unlearn.data import as_rows
from unlearn.errors import InputError, some
from unlearn.modes import copy_modes
from unlearn.precision import refuse_half
from unlearn.repair.batch_norm import BatchNormRule, check_rule, re_estimate
from unlearn.repair.calibration import calibration_of
from unlearn.repair.changes import Changes, emptied_classes, removal
from unlearn.repair.chosen_layers import chosen_parameters
from unlearn.repair.damping import damping_of, weight_decay_of
from unlearn.repair.descent import descent
from unlearn.repair.edit import Cost, Edit, measure
from unlearn.repair.head import HEAD_EPOCHS, HeadRule, ReplayedHead, check_head_rule, renewed_head, replayable_head
from unlearn.repair.method import MANY, Method, choose_method
from unlearn.repair.newton import Step
from unlearn.repair.newton_edit import FINAL_SHARE, REPLAY_SHARE, newton_edit
from unlearn.repair.old_answers import learnt_less
from unlearn.repair.rewind import check_record, compressed_schedule, rewound, start_before_learnt
from unlearn.repair.rounding import passes_notes
from unlearn.repair.trajectory import FACTOR_COST
from unlearn.repair.unrolled_edit import unrolled_edit
from unlearn.tasks import Task, get_task
from unlearn.training import Snapshot, Successor, TrainingRecord, replay

EPOCH_COST = 3


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
    method: Method = "auto",
    curvature: Curvature | None = None,
    factors: str | Path | None = None,
    damping: float | str = "horizon",
    weight_decay: float | None = None,
    calibration: Any = None,
    steps: int | str = "auto",
    task: str | Task = "classification",
    skip: Iterable[str] = (),
    layers: str | Iterable[str] | None = None,
    allow_empty_class: bool = False,
    batch_norm: BatchNormRule = "re-estimate",
    head: HeadRule = "replay",
    successor: str | Path | None = None,
) -> Edit:
    """Edit a model as if the changes had been made before its training.

    What can be done depends on what was recorded (:mod:`unlearn.repair.method` says how one is chosen):

    - weights alone: a Newton step on the edited objective (:mod:`unlearn.repair.objective`), by a few
      conjugate-gradient iterations with the exact Gauss-Newton matrix of a sample of rows and an EK-FAC
      preconditioner. At an optimum with damping 0, steps on the edited training objective itself are taken until they
      converge to retraining.
    - snapshots and row order: the unrolled edit (:mod:`unlearn.repair.unrolled`), which sees the changed rows'
      gradients when they were large.
    - many labels were wrong or a class goes: then the last linear layer is trained again on the features of the edited
      weights (:mod:`unlearn.repair.head`).
    - and a budget: the edit is made at the earliest snapshot that the budget reaches, and the recorded steps from there
      on are run again on the changed data. For many wrong labels nothing is edited: training is taken up at a
      far earlier snapshot that had not learnt them, and the rest of its schedule is run on the changed data in as many
      epochs as the budget pays for (:func:`unlearn.repair.rewind.compressed_step`). Where no snapshot is within the
      budget, they are corrected by training the final weights on (:mod:`unlearn.repair.descent`).

    Args:
        model: the trained model; not changed.
        data: the rows it was trained on, with their old labels.
        changes: rows to remove and to relabel, classes to remove.
        record: how it was trained; gives weight decay, damping, snapshots and row order.
        budget: training epochs that may be replayed, or trained on; 0 edits the final weights.
        method: ``auto``, ``newton``, ``unrolled``, ``compressed`` or ``descent``.
        curvature: the preconditioner for a Newton step on the final weights; fitted where missing.
        factors: folder in which the unrolled edit's factors are kept and looked for. They belong to the training, so
            requests share them, and they are fitted well: on all rows, between all snapshots. Without a folder they are
            fitted for this edit alone, on one row in four and for at most five segments.
        damping: of a Newton step: ``horizon``, or a number. The horizon T is that of the training up to the edited
            weights and d = 2 / T; for Adam it is its own metric (math.md 3).
        weight_decay: w of the training objective; from the record where None.
        calibration: where there is no record: rows that the model was not trained on, by which damping is chosen, or
            what :func:`calibrate_damping` found by them. A weight decay that is not given is then 0.
        steps: Newton steps, or ``auto``: 1, or as many as it takes at an optimum with damping 0.
        task: name of the task or a task.
        skip: patterns of layers to leave as they are (Newton steps on the final weights only).
        layers: patterns of the only layers that are edited; all if None (Newton steps on the final weights only). The
            steps minimise E in their weights and leave all others bit for bit, where the changed rows keep their share.
            After the idea of Grad-ReLU (LayerMatch, arXiv 2406.14207, abstract): it keeps the harmful gradients of
            pseudo-labels out of the classification layer in training, this takes them out of a layer afterwards.
        allow_empty_class: whether all rows of a class may go.
        batch_norm: what becomes of running statistics where the final weights are edited: ``re-estimate`` them on the
            changed rows, or ``freeze``. With ``layers`` or ``skip`` they are frozen; a replay or a descent moves them
            as training does.
        head: where many labels were wrong or a class goes, ``replay`` the recorded training of the last linear layer on
            the edited features, if its steps cost no more than the budget, or one epoch; or ``leave`` it to the edit.
            Labels were wrong if the edited weights give most of the changed rows another class. An edit with
            ``layers``, ``skip``, ``steps``, ``damping`` or ``weight_decay`` of its own leaves it.
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
    refuse_half("edits are", only=torch.float16)
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
    check_head_rule(head)
    skip = patterns_of(skip)
    layers = None if layers is None else patterns_of(layers)
    names = None if layers is None else chosen_parameters(model, layers)
    given = {
        "skip": bool(skip),
        "layers": layers is not None,
        "curvature": curvature is not None,
        "damping": damping != "horizon",
        "steps": steps != "auto",
        "weight_decay": weight_decay is not None,
    }
    edited = changes.apply(rows)
    class_goes = bool(emptied_classes(rows, edited))
    many = len(changes.ids) > MANY * len(rows) or class_goes
    last_layer: str | None = None
    head_notes: tuple[str, ...] = ()
    own_step = any(there for option, there in given.items() if option != "curvature")
    if head == "replay" and many and record is not None and not own_step:
        last_layer, head_notes = replayable_head(model, edited, record, most=max(HEAD_EPOCHS, budget))
    free = last_layer is not None and method == "auto" and not class_goes
    early = start_before_learnt(model, record, rows, changes.ids, budget) if free else None
    wrong = free and early is None and bool(learnt_less(model, rows, changes.ids))
    plan = choose_method(
        method,
        record,
        rows,
        budget,
        many=many,
        left=len(edited),
        early=early,
        wrong=wrong,
        shared=factors is not None,
        newton_only=[option for option, there in given.items() if there],
    )
    start, notes = plan.start, [*plan.notes, *passes_notes()]
    check_rule(batch_norm, replays=start is not None or plan.descent, model=model)
    if calibrated is not None:
        notes.append(str(calibrated))
    if start is None and skip and curvature is not None and curvature.options["skip"] != skip:
        raise InputError(
            f"the curvature given was fitted with skip={curvature.options['skip']}; fit it with skip={skip}"
        )
    if layers is not None:
        notes.append(f"only layers {some(map(repr, layers))} were edited; all other weights are as they were")
    keeper = None if successor is None or record is None else Successor(record, successor)
    by_metric = record is not None and record.optimizer == "adam" and damping == "horizon" and not plan.descent
    place, snapshot = rewound(model, record, start, needed=plan.unrolled or plan.compressed or by_metric)
    if start is not None and curvature is not None and curvature.weights_digest != weights_digest(place):
        curvature = None
        notes.append("the curvature given is of other weights than the snapshot; that of the snapshot was fitted")
    moved, solve_cost, factor_rows, storage = place, 0, 0, 0
    taken: tuple[Step, ...] = ()
    preconditioner: Curvature | None = None
    if plan.unrolled and record is not None and snapshot is not None:
        unrolled = unrolled_edit(
            place,
            snapshot,
            rows,
            changes,
            the_task,
            record=record,
            segments=plan.segments,
            weight_decay=decay,
            damping=damping_of(damping, record, start, snapshot, place),
            factors=factors,
            successor=keeper,
        )
        moved, snapshot, storage = unrolled.model, unrolled.snapshot, unrolled.storage
        solve_cost, factor_rows = unrolled.cost, unrolled.factor_rows
        notes += unrolled.notes
        del unrolled
    elif not (plan.compressed or plan.descent):
        newton = newton_edit(
            place,
            rows,
            changes,
            the_task,
            weight_decay=decay,
            damping=damping_of(damping, record, start, snapshot, place),
            steps=steps,
            curvature=curvature,
            share=FINAL_SHARE if start is None else REPLAY_SHARE,
            skip=skip,
            names=names,
        )
        moved, taken, preconditioner = newton.model, newton.steps, newton.curvature
        solve_cost, factor_rows = newton.cost, newton.factor_rows
        notes += newton.notes
        del newton
    del place  # a replay needs room for the weights' gradients and moments
    replayed = 0
    if plan.descent and record is not None:
        moved, replayed = descent(model, edited, record, budget)
        notes.append(
            f"the final weights were trained on the changed data for {budget:g} epochs, at rates falling from "
            f"{record.rates().max():g} to 0"
        )
    moves_all = not skip and names is None and (plan.unrolled or any(step.accepted for step in taken))
    if start is None and batch_norm == "re-estimate" and moves_all:
        passes = re_estimate(moved, edited)
        solve_cost += passes
        if passes:
            notes.append(
                f"running statistics of batch norm were estimated again on all {len(edited)} rows of the changed data"
            )
    if record is not None and start is not None:
        take = None if keeper is None else keeper.take
        if snapshot is None:
            snapshot = Snapshot({}, record.snapshot(start).optimizer)
        rates = compressed_schedule(record, rows, start, budget) if plan.compressed else None
        moved, replayed = replay(
            moved, edited, record, start=start, rates=rates, snapshot=snapshot, take=take, copied=False
        )
        if rates is not None:
            notes.append(
                f"the recorded training was taken up at step {start} of {record.steps}, and its other "
                f"{record.steps - start} steps were compressed into {len(rates)} on the changed data"
            )
    elif record is not None and keeper is not None:
        last = record.snapshot(record.steps) if snapshot is None and record.steps in record.snapshots else snapshot
        keeper.take(record.steps, Snapshot(moved.state_dict(), {} if last is None else last.optimizer))
    new_head = ReplayedHead(moved)
    if last_layer is not None and record is not None:
        sure = class_goes or plan.compressed or plan.descent
        new_head = renewed_head(moved, rows, changes, record, the_task, last_layer, sure=sure)
        if keeper is not None and new_head.name is not None:
            keeper.replace_weights(record.steps, new_head.model)
    moved, notes = new_head.model, [*notes, *head_notes, *new_head.notes]
    copy_modes(model, moved)
    epoch = EPOCH_COST * len(rows)
    return Edit(
        model=moved,
        original=model,
        method=plan.name,
        changes=changes,
        data=rows,
        record=record,
        steps=taken,
        cost=Cost(
            factors=FACTOR_COST * factor_rows / epoch,
            solve=(solve_cost + new_head.cost) / epoch,
            replay=EPOCH_COST * replayed / epoch,
            storage=storage,
        ),
        before=measure(model, rows, changes, the_task),
        after=measure(moved, rows, changes, the_task),
        budget=budget,
        start_step=start,
        layers=None if layers is None else tuple(layers),
        head=new_head.name,
        curvature=preconditioner,
        calibration=calibrated,
        successor=None if keeper is None else keeper.finish(edited, changes.removed),
        notes=tuple(notes),
    )
