"""The solver that scores are taken with: (G + w + d)^-1 of any kind, with what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import nn

from unlearn.curvature import Curvature, Solver, make_solver
from unlearn.curvature.fit import CurvatureKind
from unlearn.curvature.make_solver import SolverKind
from unlearn.data import Rows
from unlearn.detect.damped_curvature import DampedCurvature, check_options, damped_curvature
from unlearn.errors import InputError
from unlearn.precision import precision_option
from unlearn.tasks import Task

FIT_EPOCHS = {"ekfac": 2.0, "kfac": 1.0, "diagonal": 1.0, "pcg": 2.0}
"""Training epochs that fitting the factors of a kind of solver costs, with one sampled label for each row."""

_FACTORED = ("ekfac", "kfac", "diagonal")


@dataclass(frozen=True)
class DampedSolver:
    """A solver, what is added to G, and what the solver had cost before it was used.

    Attributes:
        solver: a Curvature, or any other solver.
        kind: its name in :func:`unlearn.curvature.make_solver`, or of its class.
        damping: d.
        weight_decay: w.
        fit_epochs: training epochs that fitting factors cost here; 0 where they were given.
        cost_before: the solver's own count of its products when it came, per row.
    """

    solver: Solver
    kind: str
    damping: float
    weight_decay: float
    fit_epochs: float
    cost_before: int

    @property
    def added(self) -> float:
        """W + d."""
        return self.weight_decay + self.damping

    @property
    def curvature(self) -> Curvature | None:
        """The solver where it is a Curvature, whose blocks allow faster ways."""
        return self.solver if isinstance(self.solver, Curvature) else None

    @property
    def options(self) -> dict[str, object]:
        """What scores report; see :attr:`DampedCurvature.options`. The share is None where no mean is known."""
        if self.curvature is not None:
            return DampedCurvature(self.curvature, self.damping, self.weight_decay).options
        return {
            "kind": self.kind,
            "damping": self.damping,
            "damping_share": None,
            "weight_decay": self.weight_decay,
            **precision_option(),
        }

    def epochs(self, rows: int) -> float:
        """Return what fitting, making and using the solver cost so far, in training epochs of so many rows."""
        return self.fit_epochs + (getattr(self.solver, "cost", 0) - self.cost_before) / (3 * rows)


def damped_solver(
    model: nn.Module,
    rows: Rows,
    *,
    curvature: Curvature | None,
    solver: SolverKind | Solver | None,
    damping: float | None,
    weight_decay: float,
    task: Task,
    batch_size: int,
) -> DampedSolver:
    """Return the solver that a score was asked for: a curvature that belongs to the model, or any other solver.

    Args:
        model: whose weights G belongs to.
        rows: what a solver is made of where none is given.
        curvature: a fitted curvature, the same as ``solver=curvature``.
        solver: a solver, or the name of one (see :func:`unlearn.curvature.make_solver`); EK-FAC if both are None.
        damping: d. For a curvature a tenth of its mean eigenvalue if None; other solvers need a number.
        weight_decay: w.
        task: of the model.
        batch_size: rows at a time.

    Raises:
        StaleCurvatureError: the curvature belongs to other weights or another task.
        InputError: both are given, the solver is unknown or nothing that solves, or damping or weight decay can not be
            meant.
    """
    if curvature is not None and solver is not None:
        raise InputError("curvature and solver are both given, and they are two names of one thing; pass one of them")
    given = curvature if solver is None else solver
    if given is None:
        given = "ekfac"
    if isinstance(given, Curvature) or given in _FACTORED:
        fitted = given if isinstance(given, Curvature) else None
        kind = cast("CurvatureKind", "ekfac" if fitted is not None else given)
        damped = damped_curvature(
            model,
            rows,
            curvature=fitted,
            damping=damping,
            weight_decay=weight_decay,
            task=task,
            batch_size=batch_size,
            kind=kind,
        )
        fit_epochs = 0.0 if fitted is not None else FIT_EPOCHS[kind]
        return DampedSolver(damped.curvature, damped.curvature.kind, damped.damping, damped.weight_decay, fit_epochs, 0)
    check_options(damping, weight_decay, batch_size)
    if isinstance(given, str):
        made = make_solver(given, model, rows, task=task, batch_size=batch_size)
        name, fit_epochs, before = str(given), FIT_EPOCHS.get(given, 0.0), 0
    elif callable(getattr(given, "solve", None)):
        name, made, fit_epochs = type(given).__name__, given, 0.0
        before = getattr(given, "cost", 0)
    else:
        raise InputError(f"solver is {type(given).__name__}; give a name such as 'cg', or an object with solve()")
    if damping is None:
        raise InputError(
            f"solver {name!r} knows no mean eigenvalue to take a share of; give damping, such as a tenth of "
            "fit_curvature(model, data).mean_eigenvalue"
        )
    return DampedSolver(made, name, float(damping), float(weight_decay), fit_epochs, before)
