"""Self-influence: how much a row's own loss moves when the row gets more weight."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unlearn.curvature import Curvature, Solver, dot, layer_gradients, loss_gradient
from unlearn.curvature.make_solver import SolverKind
from unlearn.curvature.taps import TAP_BATCH
from unlearn.data import Rows, as_rows
from unlearn.detect.damped_solver import DampedSolver, damped_solver
from unlearn.detect.recorded_steps import recorded_steps
from unlearn.detect.relative import divided, row_norms
from unlearn.detect.scores import Scores
from unlearn.errors import InputError, did_you_mean
from unlearn.progress import track
from unlearn.ranks import as_one_process, sum_over_ranks
from unlearn.tasks import Task, get_task
from unlearn.training import TrainingRecord

RelativeSelf = Literal["gradient", "parameters"]


def self_influence(
    model: nn.Module,
    data: Any,
    *,
    curvature: Curvature | None = None,
    solver: SolverKind | Solver | None = None,
    relative: RelativeSelf | None = None,
    record: TrainingRecord | None = None,
    steps: Sequence[int] | None = None,
    damping: float | None = None,
    weight_decay: float = 0.0,
    task: str | Task = "classification",
    batch_size: int = TAP_BATCH,
) -> Scores:
    """Return g^T (G + w + d)^-1 g of each row, with g the gradient of its loss at its given label.

    It is minus the influence of a row on itself (arXiv 1703.04730, eq. 2), with EK-FAC for G as in
    arXiv 2308.03296, so it is never negative and large where the model had to move far to fit a row.

    A curvature gives all rows in one pass (one training epoch). Any other solver takes the rows one by one: one epoch
    for their gradients and a solve for each, which for ``cg`` is 4/3 epochs an iteration *and row*; ``cost_epochs``
    counts it. Solvers other than a curvature take any module, and all its trained parameters.

    With a record it is the mean over the recorded snapshots: at the end of training a memorised row has a small
    gradient, earlier it had not. Each snapshot has its own G, and so its own unit; learning rates do not enter (for
    their sum see :func:`unlearn.detect.tracin`).

    Args:
        model: left as found; run in evaluation mode. With a record its weights matter only for a given curvature.
        data: the rows, with the labels to be judged. See :func:`unlearn.data.as_rows`.
        curvature: G of this model's weights; fitted on the rows if None (EK-FAC, one sampled label for each row).
        solver: in place of a curvature, a solver or the name of one; see :func:`unlearn.curvature.make_solver`. With a
            record a curvature or a solver that is given is shared by all snapshots, and one that is named (or None) is
            made anew at each.
        relative: divide by ``gradient``: g^T g, so that directions are compared and not lengths (arXiv 2201.10055);
            ``parameters``: ||(G + w + d)^-1 g|| (theta-RelatIF, arXiv 2003.11630). Its loss-relative form is the square
            root of the score: the same order.
        record: of the training, with snapshots.
        steps: snapshots to use, by their number of steps; all after the first step if None.
        damping: d; a tenth of the curvature's mean eigenvalue if None (at each snapshot where it is made there). Other
            solvers need a number.
        weight_decay: w of the training objective; a coefficient of ``||theta||^2 / 2``.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time; changes time and memory, not the result.

    Returns:
        Scores of the method ``self-influence`` (``self-influence-snapshots`` with a record; ``-gradient`` or
        ``-parameters`` behind it where relative), whose options hold ``kind``, ``damping``, ``damping_share`` (of the
        mean eigenvalue), ``weight_decay`` and ``cost_epochs``; with a record ``snapshots``, and of damping and share
        one for each. Parameters that the curvature does not cover do not count.

    Raises:
        StaleCurvatureError: the curvature belongs to other weights or another task.
        ConvergenceError: an iterative solver ended short of its tolerance.
        RecordError: no snapshots, one that was not recorded or is damaged, or of another architecture.
        InputError: a label outside the model's classes, a bad option, or a row whose score is not finite.

    >>> model, inputs = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> _ = nn.init.eye_(model.weight)
    >>> scores = self_influence(model, (inputs, torch.tensor([0, 1, 1])))  # row 1 has a wrong label
    >>> scores.top(1)[0][0]
    '1'
    >>> self_influence(model, (inputs, torch.tensor([0, 1, 1])), solver="dense", damping=0.1).top(1)[0][0]
    '1'
    """
    if relative is not None and relative not in get_args(RelativeSelf):
        raise InputError(f"unknown relative {relative!r}; {did_you_mean(relative, get_args(RelativeSelf))}")
    if steps is not None and record is None:
        raise InputError("steps name snapshots of a training record and there is none; give record= too")
    rows, the_task = as_rows(data), get_task(task)
    asked = _Asked(rows, the_task, curvature, solver, damping, weight_decay, batch_size)
    suffix = "" if relative is None else f"-{relative}"
    if record is None:
        damped = asked.at(model)
        values = _values(model, damped, asked, relative)
        options = {**damped.options, "cost_epochs": 1 + damped.epochs(len(rows))}
        return Scores(rows.ids, values.numpy(), "self-influence" + suffix, options)

    chosen = recorded_steps(record, steps)
    shared = asked.at(model) if asked.given else None
    there = copy.deepcopy(model)
    total, made = torch.zeros(len(rows), dtype=torch.float64), []
    for step in chosen:
        record.snapshot(step).restore(there)
        damped = shared or asked.at(there)
        total += _values(there, damped, asked, relative)
        made.append((damped.options, damped.epochs(len(rows))))
    fitting = made[-1][1] if shared else sum(epochs for _, epochs in made)
    options = {
        **made[0][0],
        "damping": [one["damping"] for one, _ in made],
        "damping_share": [one["damping_share"] for one, _ in made],
        "snapshots": chosen,
        "cost_epochs": len(chosen) + fitting,
    }
    return Scores(rows.ids, (total / len(chosen)).numpy(), "self-influence-snapshots" + suffix, options)


@dataclass(frozen=True)
class _Asked:
    """The rows, and the solver that was asked for."""

    rows: Rows
    task: Task
    curvature: Curvature | None
    solver: SolverKind | Solver | None
    damping: float | None
    weight_decay: float
    batch_size: int

    @property
    def given(self) -> bool:
        """Whether there is a solver already, or one has to be made."""
        return self.curvature is not None or not (self.solver is None or isinstance(self.solver, str))

    def at(self, model: nn.Module) -> DampedSolver:
        """Return the solver for a model."""
        return damped_solver(
            model,
            self.rows,
            curvature=self.curvature,
            solver=self.solver,
            damping=self.damping,
            weight_decay=self.weight_decay,
            task=self.task,
            batch_size=self.batch_size,
        )


def _values(model: nn.Module, damped: DampedSolver, asked: _Asked, relative: RelativeSelf | None) -> Tensor:
    """Return the score of each row at the model's weights, float64."""
    if damped.curvature is None:
        return _row_by_row(model, damped, asked, relative)
    curvature = damped.curvature
    forms = curvature.per_layer(lambda block: block.quadratic_form(damped.added))
    norms = None if relative is None else row_norms(curvature, damped.added, relative)
    values = torch.zeros(len(asked.rows), dtype=torch.float64)
    for positions, gradients in layer_gradients(
        model, asked.rows, asked.task, curvature.layers, asked.batch_size, shared=True
    ):
        for name, (a, d) in gradients.items():
            values[positions] += forms[name](a, d).double().cpu()
        if norms is not None:
            scale = norms(gradients)
            values[positions] = divided(values[positions], scale.square() if relative == "gradient" else scale)
    sum_over_ranks(values)
    return values


def _row_by_row(model: nn.Module, damped: DampedSolver, asked: _Asked, relative: RelativeSelf | None) -> Tensor:
    """Return the score of each row with one solve for each."""
    values, scales = torch.zeros(2, len(asked.rows), dtype=torch.float64)
    for i in track(range(len(asked.rows)), "solving"):
        with as_one_process():  # one row is not worth sharing; the products of the solve are
            g = loss_gradient(model, asked.rows.at(torch.tensor([i])), task=asked.task)
        x = damped.solver.solve(g, damping=damped.added)
        values[i] = dot(g, x)
        if relative is not None:
            scales[i] = dot(g, g) if relative == "gradient" else dot(x, x) ** 0.5
    return values if relative is None else divided(values, scales)
