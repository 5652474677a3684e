"""Damping without a training record, from rows that the model was not trained on.

To a model that was trained without a row, that row is as new as one that it never had. So for training rows i and
held-out rows c drawn alike, with theta_-i the weights that training without row i leads to,

    E loss_i(theta_-i) = E loss_c(theta),      and therefore      mean_i (loss_i(theta_-i) - loss_i(theta)) = gap,

where the gap is the mean loss of held-out rows minus that of training rows: what the model has learnt of its own rows
is what leaving them out takes back. To first order the left side is the mean self-influence by n (Takeuchi's estimate
of the gap; arXiv 1703.04730 for its terms),

    rise(d) = (1/n) mean_i g_i^T (G + w + d)^-1 g_i,

which falls as d grows. The damping is the d with rise(d) = gap, by bisection on log d, with G by EK-FAC. Edits that
take their damping from it undo, on the average row, what held-out rows say the training did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.curvature import fit_curvature, layer_gradients
from unlearn.curvature.block import Basis
from unlearn.data import Rows, as_rows
from unlearn.data.overlap import check_disjoint
from unlearn.errors import InputError
from unlearn.predict import predict
from unlearn.tasks import Task, get_task
from unlearn.training import TrainingRecord

FACTOR_ROWS = 1024
GRADIENT_ROWS = 512
LEAST = 1e-6  # below it eigenvalues are rounding, and so are gradients along their vectors
FACTOR_COST, GRADIENT_COST = 6, 3


@dataclass(frozen=True)
class Calibration:
    """A damping and how it was found.

    Attributes:
        damping: d.
        low: d were the gap one standard error larger; 0 where no damping makes that up.
        high: d were the gap one standard error smaller; infinite where it were 0.
        weight_decay: w, which was added to G.
        gap: mean loss of the held-out rows minus that of the training rows.
        gap_error: its standard error.
        rows: the held-out rows; they are not to be tested on.
        cost: row passes, forward 1, backward 2.
    """

    damping: float
    low: float
    high: float
    weight_decay: float
    gap: float
    gap_error: float
    rows: Rows
    cost: int

    def __str__(self) -> str:
        return (
            f"damping {self.damping:.3g} ({self.low:.2g} to {self.high:.2g}) was calibrated on {len(self.rows)} rows "
            f"that were not trained on; their mean loss is {self.gap:.3g} +- {self.gap_error:.2g} above that of the "
            "training rows"
        )


def calibrate_damping(
    model: nn.Module,
    data: Any,
    calibration: Any,
    *,
    weight_decay: float = 0.0,
    task: str | Task = "classification",
    seed: int = 0,
) -> Calibration:
    """Return the damping at which leaving a row out makes it as new to the model as a row that it never had.

    Args:
        model: the trained model; not changed.
        data: the rows it was trained on.
        calibration: rows it was not trained on, drawn as the training rows were, wrong labels included; some hundreds.
            They must be no part of the test rows later.
        weight_decay: w of the training objective; where it is not known, 0 leaves its part to the damping.
        task: name of the task or a task.
        seed: of the draw of the rows whose gradients are taken.

    Raises:
        InputError: calibration rows that are training rows, a gap within two standard errors of 0, or one that no
            damping makes up.

    >>> draw = torch.Generator().manual_seed(4)
    >>> x = torch.randn(3300, 40, generator=draw)
    >>> y = (x[:, 0] + 0.7 * torch.randn(3300, generator=draw) > 0).long()
    >>> rows = Rows.from_tensors(x, y, ids=[f"row-{i}" for i in range(3300)])
    >>> trained, held_out = rows.at(torch.arange(300)), rows.at(torch.arange(300, 3300))
    >>> model = nn.Linear(40, 2)
    >>> _ = nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    >>> for _ in range(50):
    ...     loss = nn.functional.cross_entropy(model(x[:300]), y[:300])
    ...     for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters()))):
    ...         p.data -= 0.1 * g
    >>> horizon = 5.0
    >>> 0.3 < calibrate_damping(model, trained, held_out).damping * horizon < 3
    True
    """
    rows, held, the_task = as_rows(data), as_rows(calibration), get_task(task)
    check_disjoint(rows, held, "the calibration rows", "trained on", "give rows that the model was not trained on")
    own, new = losses(model, rows, the_task), losses(model, held, the_task)
    gap = float(new.mean() - own.mean())
    error = math.sqrt(float(new.var()) / len(new) + float(own.var()) / len(own))
    if not gap > 2 * error:
        raise InputError(
            f"the mean loss of the {len(held)} calibration rows is {gap:.3g} +- {error:.2g} above that of the training "
            "rows, which can not be told from 0: give more of them, or damping= as a number"
        )
    fitted = rows.sample(FACTOR_ROWS, 0, "factor-rows")
    rise = Rise(model, rows, fitted, rows.sample(GRADIENT_ROWS, seed, "calibration-rows"), the_task, weight_decay)
    damping = rise.inverse(gap)
    if damping == 0:
        raise InputError(
            f"no damping makes up the gap of {gap:.3g} between the losses of calibration and training rows: with none, "
            f"leaving rows out takes back {rise(0.0):.3g}; a model that has memorised its rows needs snapshots, or "
            "training again"
        )
    return Calibration(
        damping=damping,
        low=rise.inverse(gap + error),
        high=rise.inverse(gap - error),
        weight_decay=weight_decay,
        gap=gap,
        gap_error=error,
        rows=held,
        cost=len(rows) + len(held) + FACTOR_COST * len(fitted) + GRADIENT_COST * rise.rows,
    )


def calibration_of(
    given: Any,
    model: nn.Module,
    data: Rows,
    record: TrainingRecord | None,
    damping: float | str,
    weight_decay: float | None,
    task: Task,
) -> Calibration:
    """Return the calibration of an edit: the one given, or a new one by the rows given.

    Raises:
        InputError: damping is known from elsewhere, or what :func:`calibrate_damping` refuses.
    """
    if record is not None or damping != "horizon":
        known = "the training record gives one" if record is not None else "one is given"
        raise InputError(f"calibration rows choose a damping, and {known} already; leave out calibration=")
    if isinstance(given, Calibration):
        check_disjoint(data, given.rows, "the calibration rows", "trained on", "calibrate on others")
        return given
    return calibrate_damping(model, data, given, weight_decay=weight_decay or 0.0, task=task)


class Rise:
    """The mean rise of a row's loss when it is left out, to first order, as a function of d.

    In the eigenbasis of G it is a sum of weights over eigenvalues: ``sum_k c_k / (l_k + w + d)``, the c_k being mean
    squares of the rows' gradients along the eigenvectors, by n.
    """

    def __init__(
        self, model: nn.Module, rows: Rows, fitted: Rows, sample: Rows, task: Task, weight_decay: float
    ) -> None:
        curvature = fit_curvature(model, fitted, task=task)
        squares = {name: torch.zeros_like(block.eigenvalues).double() for name, block in curvature.blocks.items()}
        for _, gradients in layer_gradients(model, sample, task, curvature.layers):
            for name, (a, d) in gradients.items():
                squares[name] += sum_of_squares(curvature.blocks[name].basis, a, d)
        self.rows = len(sample)
        self._c = torch.cat([part.flatten() for part in squares.values()]) / (len(sample) * len(rows))
        eigenvalues = torch.cat([block.eigenvalues.double().flatten() for block in curvature.blocks.values()])
        self._l = eigenvalues + weight_decay
        self.least = LEAST * float(self._l.max())

    def __call__(self, damping: float) -> float:
        """Return rise(d); d is taken to be at least ``LEAST`` of the largest eigenvalue."""
        return float((self._c / (self._l + max(damping, self.least))).sum())

    def inverse(self, gap: float) -> float:
        """Return d with rise(d) = gap: 0 where even no damping gives it, infinite where the gap is not above 0."""
        if gap <= 0:
            return math.inf
        if self(0.0) <= gap:
            return 0.0
        low, high = self.least, float(self._c.sum()) / gap  # rise(d) <= sum c / d
        while high - low > 1e-6 * high:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self(middle) > gap else (low, middle)
        return 0.5 * (low + high)


def sum_of_squares(basis: Basis, a: Tensor, d: Tensor) -> Tensor:
    """Return the sum over rows of the squares of their rotated gradients, (g, o, i), in float64."""
    if a.shape[2] == 1:
        a2, d2 = basis.squares(a, [d])
        return (d2.mT @ a2).double()
    total = torch.zeros(a.shape[0], d.shape[3], a.shape[3], dtype=torch.float64, device=a.device)
    for part in basis.gradients(a, d):
        total += part.double().square().sum(1)
    return total


def losses(model: nn.Module, rows: Rows, task: Task) -> Tensor:
    """Return the loss of each row, (n,), in float64."""
    outputs = predict(model, rows).double()
    task.check(outputs, rows.labels)
    return task.loss(outputs, rows.labels)
