"""The curvature that scores are taken in: G + w + d, with the weight decay w and the damping d kept apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from unlearn.curvature import Curvature, fit_curvature
from unlearn.curvature.fit import CurvatureKind
from unlearn.data import Rows
from unlearn.errors import InputError, StaleCurvatureError
from unlearn.precision import precision_option
from unlearn.tasks import Task

DEFAULT_SHARE = 0.1


@dataclass(frozen=True)
class DampedCurvature:
    """A curvature and what is added to its eigenvalues.

    Attributes:
        curvature: G.
        damping: d.
        weight_decay: w.
    """

    curvature: Curvature
    damping: float
    weight_decay: float

    @property
    def added(self) -> float:
        """W + d."""
        return self.weight_decay + self.damping

    @property
    def options(self) -> dict[str, object]:
        """What scores report: kind, damping, its share of the mean eigenvalue (None if that is 0), weight decay.

        In half precision also ``precision``, the type of the scores' own; a curvature says what it was fitted in.
        """
        mean = self.curvature.mean_eigenvalue
        return {
            "kind": self.curvature.kind,
            "damping": self.damping,
            "damping_share": self.damping / mean if mean > 0 else None,
            "weight_decay": self.weight_decay,
            **precision_option(),
        }


def check_options(damping: float | None, weight_decay: float, batch_size: int) -> None:
    """Refuse what can not be meant, before anything is fitted."""
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")
    for name, value in (("damping", damping), ("weight_decay", weight_decay)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} is {value}; give a finite number of at least 0")


def damped_curvature(
    model: nn.Module,
    rows: Rows,
    *,
    curvature: Curvature | None,
    damping: float | None,
    weight_decay: float,
    task: Task,
    batch_size: int,
    kind: CurvatureKind = "ekfac",
) -> DampedCurvature:
    """Return a curvature that belongs to the model, fitted on the rows (of a kind) if None, with its damping.

    The damping is a tenth of the mean eigenvalue if None.

    Raises:
        StaleCurvatureError: the curvature belongs to other weights or another task.
        InputError: damping or weight decay is negative or not finite, both are 0 where an eigenvalue is 0, or the
            batch size is not positive.

    >>> import torch
    >>> rows = Rows.from_tensors(torch.eye(2), torch.tensor([0, 1]))
    >>> from unlearn.tasks import get_task
    >>> task, model = get_task("classification"), nn.Linear(2, 2)
    >>> damped = damped_curvature(
    ...     model, rows, curvature=None, damping=None, weight_decay=0.5, task=task, batch_size=2
    ... )
    >>> damped.added == 0.5 + 0.1 * damped.curvature.mean_eigenvalue
    True
    """
    check_options(damping, weight_decay, batch_size)
    if curvature is None:
        curvature = fit_curvature(model, rows, task=task, kind=kind, batch_size=batch_size)
    else:
        curvature.check(model)
        if curvature.options["task"] != task.name:
            raise StaleCurvatureError(
                f"the curvature was fitted for {curvature.options['task']}, this is {task.name}; pass "
                f"task={curvature.options['task']!r}, or fit it for {task.name}"
            )
    chosen = DEFAULT_SHARE * curvature.mean_eigenvalue if damping is None else float(damping)
    if chosen + weight_decay == 0:
        curvature.check_invertible()
    return DampedCurvature(curvature, chosen, float(weight_decay))
