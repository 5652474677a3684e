"""Edits in which only a few units of each layer change, and their neighbours under the same interface."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

from torch import Tensor, nn

from unlearn.curvature import Curvature, common_units, find_layers, fit_curvature, unit_selection
from unlearn.curvature.layers import Layer, patterns_of
from unlearn.curvature.units import Select, check_units
from unlearn.data import Rows, as_rows
from unlearn.errors import InputError, did_you_mean, some
from unlearn.modes import copy_modes
from unlearn.repair.changes import Changes
from unlearn.repair.chosen_layers import chosen_parameters, patterns_of_others, restricted
from unlearn.repair.damping import damping_of, weight_decay_of
from unlearn.repair.edit import Cost, Edit, measure
from unlearn.repair.newton import Step, load_weights
from unlearn.repair.objective import mean_damping
from unlearn.repair.restricted_steps import EditMethod, ExactSolve, KfacSolve, Solve, restricted_steps
from unlearn.repair.rewind import check_record, last_snapshot
from unlearn.repair.rounding import passes_notes, rounding_notes
from unlearn.repair.sampled_objective import SampledObjective
from unlearn.tasks import Task, get_task
from unlearn.training import TrainingRecord

SolvePath = Literal["exact", "kfac"]

DEFAULT_RATIO = 0.05
MOST_ROWS = 4096
EPOCH_COST = 3
FACTOR_COST = 6
_WHOLE = ("full", "second-order")


def restricted_edit(
    model: nn.Module,
    data: Any,
    changes: Changes,
    *,
    method: EditMethod = "gif",
    select: Select | None = None,
    ratio: float | None = None,
    path: SolvePath = "exact",
    record: TrainingRecord | None = None,
    damping: float | str = "horizon",
    weight_decay: float | None = None,
    curvature: Curvature | None = None,
    steps: int = 1,
    length: float = 1.0,
    layers: str | Iterable[str] | None = None,
    task: str | Task = "classification",
    tolerance: float = 1e-3,
    iterations: int = 500,
    sample: int = MOST_ROWS,
    allow_empty_class: bool = False,
) -> Edit:
    """Edit the final weights as if the changes had been made before the training, moving a few units of each layer.

    The units are selected once, by the changed rows together, in the model as it is: those of largest absolute mean
    output, or loss gradient (of relabelled rows at their new labels, since rows that are learnt have no gradient at
    the old ones). All other weights stay bit for bit as they were. See :mod:`unlearn.repair.restricted_steps` for what
    a step is, and arXiv 2312.05586 for ``gif``.

    Args:
        model: the trained model; not changed.
        data: the rows it was trained on, with their old labels. See :func:`unlearn.as_rows`.
        changes: rows to remove and to relabel.
        method: ``gif``: the gradient that the step causes on the frozen weights counts; and for comparison ``frozen``
            (FIF, as if the frozen weights did not exist), ``projected`` (PIF, a part of the step that moves
            everything), ``full`` (IF) and ``second-order`` (SIF, arXiv 1911.00418), which move all weights.
        select: ``outputs`` (the default) or ``gradients``; not for methods that move all weights.
        ratio: share of each layer's units that may move, rounded up, at least one; 0.05 if None.
        path: ``exact``: products with the Gauss-Newton matrix of the edited data and LSMR or conjugate gradients, which
            see all layers at once; ``kfac``: the closed form on K-FAC factors, layer by layer.
        record: how it was trained; gives weight decay and damping.
        damping: ``horizon`` (d = 2 / T; for Adam its own metric, on the exact path only), or a number.
        weight_decay: w of the training objective; from the record where None.
        curvature: for the path ``kfac``: factors of this model; fitted on a sample of the edited data where missing.
        steps: most steps; each starts from the weights that the last one led to.
        length: the longest that is tried of each step, as a factor; it is halved until the objective falls.
        layers: patterns of the only layers that may change; all if None.
        task: name of the task or a task.
        tolerance: of LSMR and conjugate gradients.
        iterations: most iterations of a solve.
        sample: most rows that stand for all in the curvature, and most untouched rows in the objective; every step
            draws its own.
        allow_empty_class: whether all rows of a class may go.

    Returns:
        The edit; its method is ``gif-exact``, ``frozen-kfac`` and so on. Notes say which share of the weights could
        move, and whether a step was not accepted.

    Raises:
        InputError: changes or options that can not be meant, or a layer without Kronecker factors on the path ``kfac``.
        ConvergenceError: a solve stopped short of the tolerance; the model is untouched, as always.
        RecordError: no record where one is needed, or one of other data.
        RowNotFoundError: an id is not in the data.
        StaleCurvatureError: curvature of other weights.

    >>> import torch
    >>> rows = Rows.from_tensors(torch.eye(6), torch.tensor([0, 1, 0, 1, 0, 1]))
    >>> model = nn.Linear(6, 2)
    >>> edit = restricted_edit(model, rows, Changes(relabelled={"0": 1}), ratio=0.5, damping=0.1, weight_decay=0.01)
    >>> edit.method, int((edit.model.weight != model.weight).any(1).sum())
    ('gif-exact', 1)
    """
    rows, the_task = as_rows(data), get_task(task)
    _check(method, select, ratio, path, curvature, steps, length, sample)
    changes = changes.on(rows)
    changes.check(rows, allow_empty_class=allow_empty_class)
    decay = weight_decay_of(weight_decay, record)
    check_record(record, rows, the_task)
    adam = record is not None and record.optimizer == "adam" and damping == "horizon"
    if adam and path == "kfac":
        raise InputError(
            "the damping of Adam is a metric and Kronecker factors take a number; give damping=, or path='exact'"
        )
    snapshot = last_snapshot(record) if adam and record is not None else None
    d = damping_of(damping, record, None, snapshot, model)
    patterns = None if layers is None else patterns_of(layers)
    names = None if patterns is None else chosen_parameters(model, patterns)
    others = [] if names is None else patterns_of_others(model, names)
    found = find_layers(model, rows, others).layers
    # the second-order term is an expansion around the old data; all others solve on the new
    operator_rows = rows if method == "second-order" else changes.apply(rows)
    objective = SampledObjective(
        model,
        rows,
        changes,
        the_task,
        [name for layer in found for name in layer.parameters],
        decay,
        d,
        untouched=sample,
    )
    units: dict[str, Tensor] | None = None
    if method not in _WHOLE:
        asked = _asked_rows(objective)
        units = common_units(
            model,
            asked,
            found,
            ratio=DEFAULT_RATIO if ratio is None else ratio,
            select=select or "outputs",
            task=the_task,
        )
        objective.cost += EPOCH_COST * len(asked)
    solve: Solve
    factor_rows = 0
    if path == "exact":
        standing = operator_rows.sample(sample, 0, "operator-rows")
        selection = None if units is None else unit_selection(found, units)
        solve = ExactSolve(objective, standing, selection, tolerance, iterations)
    else:
        if curvature is None:
            chosen = operator_rows.sample(sample, 0, "factor-rows")
            curvature, factor_rows = fit_curvature(model, chosen, task=the_task, kind="kfac", skip=others), len(chosen)
        else:
            curvature.check(model)
            curvature = curvature if names is None else restricted(curvature, names)
        solve = KfacSolve(curvature, units, decay + mean_damping(objective.damping, objective.names))
    weights, taken = restricted_steps(
        objective,
        solve,
        method=method,
        steps=steps,
        length=length,
        damping=mean_damping(objective.damping, objective.names),
    )
    moved = load_weights(model, weights)
    copy_modes(model, moved)
    epoch = EPOCH_COST * len(rows)
    return Edit(
        model=moved,
        original=model,
        method=f"{method}-{path}",
        changes=changes,
        data=rows,
        record=record,
        steps=tuple(taken),
        cost=Cost(FACTOR_COST * factor_rows / epoch, objective.cost / epoch),
        before=measure(model, rows, changes, the_task),
        after=measure(moved, rows, changes, the_task),
        layers=None if patterns is None else tuple(patterns),
        notes=(*_notes(model, found, units, taken, patterns), *rounding_notes(model, weights), *passes_notes()),
    )


def _check(
    method: str,
    select: str | None,
    ratio: float | None,
    path: str,
    curvature: Curvature | None,
    steps: int,
    length: float,
    sample: int,
) -> None:
    for name, word, known in (("method", method, EditMethod), ("path", path, SolvePath)):
        if word not in get_args(known):
            raise InputError(f"unknown {name} {word!r}; {did_you_mean(word, get_args(known))}")
    if method in _WHOLE and (ratio is not None or select is not None):
        raise InputError(f"method {method!r} moves all weights; leave out ratio and select, or take method='projected'")
    check_units(DEFAULT_RATIO if ratio is None else ratio, select or "outputs")
    if path == "exact" and curvature is not None:
        raise InputError(
            "the path 'exact' takes products with the exact curvature; leave out curvature=, or take path='kfac'"
        )
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps is {steps!r}; give a number of at least 1")
    if sample < 1:
        raise InputError(f"sample is {sample}; give a number of rows of at least 1")
    if not 0 < length < math.inf:
        raise InputError(f"length is {length}; give a finite factor above 0")


def _asked_rows(objective: SampledObjective) -> Rows:
    """Return the changed rows by which units are selected: relabelled ones at their new labels."""
    changes = objective.changes
    return objective.changed.relabelled(changes.relabelled) if changes.relabelled else objective.changed


def _notes(
    model: nn.Module,
    layers: list[Layer],
    units: dict[str, Tensor] | None,
    taken: list[Step],
    patterns: list[str] | None,
) -> Iterator[str]:
    if patterns is not None:
        yield f"only layers {some(map(repr, patterns))} were edited; all other weights are as they were"
    if units is not None:
        masks = unit_selection(layers, units)
        free, all_weights = sum(int(mask.sum()) for mask in masks.values()), sum(p.numel() for p in model.parameters())
        counts = ", ".join(f"{name}: {found.numel()}" for name, found in units.items())
        yield (
            f"{free} of {all_weights} weights could move, those of the selected units ({counts}); all others are as "
            "they were"
        )
    if taken and not taken[-1].accepted:
        why = taken[-1].breakdown or "the objective did not fall"
        yield f"step {len(taken)} was not accepted: {why}; weights stay as before it"
