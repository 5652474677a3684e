"""LiSSA: the damped solve as a stochastic Neumann series (arXiv 1602.03943; for influence arXiv 1703.04730, section 3).

With H = G + damping and a scale s, x_0 = v / s and

    x_j = v / s + (I - H_B / s) x_(j-1)

with H_B of rows B drawn anew at each step, so that its mean is H. Two things are measured that the papers leave to the
user. The scale is damping + 1.1 times the top eigenvalue, by power iteration, of G and of a few drawn G_B. The depth is
that of the contraction: eigenvalues of H lie between the damping and s, so

    ||E x_j - H^-1 v|| <= (1 - damping / s)^(j+1) ||H^-1 v||

and the first j with a factor within the tolerance is the last step. Up to 2 s - damping a larger eigenvalue contracts
as fast; beyond it H is refused, and steps with such an H_B are seen where the norm passes ||v|| / damping, which
neither the solution nor a contracting step does. arXiv 2409.17357 also chooses scale, rows and depth by the spectrum.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from unlearn.curvature.curvature import check_damping
from unlearn.curvature.gauss_newton import GaussNewton, gauss_newton
from unlearn.curvature.power_iteration import top_eigenvalue
from unlearn.curvature.vectors import Vector, add_scaled, dot, norm, zeros_like
from unlearn.data import DEFAULT_BATCH, as_rows, draws
from unlearn.errors import ConvergenceError, InputError
from unlearn.progress import track
from unlearn.tasks import Task, get_task

_MARGIN = 1.1
_PROBES = 8
_ROUNDING = 1.01


@dataclass(frozen=True)
class LissaResult:
    """What LiSSA found.

    Attributes:
        solution: mean of the repeats' last iterates.
        scale: s.
        depth: steps of each repeat.
        residual: ||v - H x|| / ||v|| of the solution, on all rows.
        noise: standard error of the solution from the repeats, as a part of its norm; 0 where every step saw all rows,
            None for one repeat.
    """

    solution: Vector
    scale: float
    depth: int
    residual: float
    noise: float | None


class LissaSolver:
    """LiSSA on the exact G, at the weights the model has now; see :mod:`unlearn.curvature.lissa`.

    The answer is within ``tolerance`` of (G + damping)^-1 v in relative norm, apart from the noise of the drawn rows,
    which only more repeats or larger samples reduce; :meth:`run` tells it. Conjugate gradients need far fewer passes;
    LiSSA is here for comparison with the literature.

    Args:
        model: any module; left as found.
        data: the rows; labels are not used. See :func:`unlearn.data.as_rows`.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        parameters: names of the parameters it acts on; by default all that are trained.
        sample: rows drawn at each step, without repetition; None, or as many as there are, takes all at every step.
        repeats: independent runs that are averaged; without drawn rows they would agree, and there is one.
        tolerance: relative error of the answer's mean, above 0 and below 1.
        scale: s; by default measured. A larger one is slower and less noisy.
        most_steps: refuse a depth beyond it.
        seed: seed of the drawn rows, and of the start of power iteration.
        batch_size: rows at a time; changes time and memory, not the result.

    Attributes:
        eigenvalue: the measured top eigenvalue of G, with the residual of its measurement added.
        cost: what its products cost so far, per row; see :class:`unlearn.curvature.GaussNewton`.

    Raises:
        InputError: an option out of its range, or an unknown parameter.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # x^T x / 2 = diag(0.5, 2)
    >>> model = nn.Linear(2, 1, bias=False)
    >>> solver = LissaSolver(model, (x, torch.zeros(2)), task="regression", sample=None, tolerance=1e-4)
    >>> result = solver.run({"weight": torch.tensor([[3.0, 3.0]])}, damping=1.0)
    >>> result.solution["weight"].round(decimals=3), result.depth, 3 < result.scale < 3.4
    (tensor([[2., 1.]]), 24, True)
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        task: str | Task = "classification",
        parameters: Iterable[str] | None = None,
        sample: int | None = 64,
        repeats: int = 8,
        tolerance: float = 1e-2,
        scale: float | None = None,
        most_steps: int = 100_000,
        seed: int = 0,
        batch_size: int = DEFAULT_BATCH,
    ) -> None:
        if repeats < 1 or (sample is not None and sample < 1):
            raise InputError(f"sample is {sample} and repeats {repeats}; give at least 1")
        if not 0 < tolerance < 1:
            raise InputError(f"tolerance is {tolerance}; give a relative error above 0 and below 1")
        if scale is not None and not (math.isfinite(scale) and scale > 0):
            raise InputError(f"scale is {scale}; give a finite number above 0, or None to measure it")
        self._rows = as_rows(data)
        self._task = get_task(task)
        self._model = copy.deepcopy(model)
        self._batch_size = batch_size
        self._operator = gauss_newton(
            self._model, self._rows, task=self._task, parameters=parameters, batch_size=batch_size
        )
        self._sample = None if sample is None or sample >= len(self._rows) else sample
        self._order = draws.permutation(seed, self._rows.ids, "lissa")  # draws follow the ids, not the order of rows
        self._repeats = 1 if self._sample is None else repeats
        self._tolerance = tolerance
        self._scale = scale
        self._most_steps = most_steps
        self._seed = seed
        self.cost = 0
        self.eigenvalue = self._top(self._operator)
        self._largest = self.eigenvalue
        if scale is None and self._sample is not None:
            for k in track(range(_PROBES), "top eigenvalue"):
                self._largest = max(self._largest, self._top(self._drawn(self._rng("probe", k))))

    def scale(self, damping: float) -> float:
        """Return s at this damping."""
        return self._scale if self._scale is not None else damping + _MARGIN * self._largest

    def run(self, vector: Vector, *, damping: float) -> LissaResult:
        """Return (G + damping)^-1 v with its residual and noise.

        Raises:
            ConvergenceError: the scale is too small for G, or for the drawn rows; or rounding stops it.
            InputError: damping is not a finite number above 0, more steps are needed than allowed, the scale is below
                the damping, or the vector does not fit.
        """
        check_damping(damping)
        if damping == 0:
            raise InputError("damping is 0, and the depth of LiSSA follows from it; give damping > 0")
        size = norm(vector)
        if not math.isfinite(size):
            raise InputError("the right-hand side has NaN or infinite values; check the rows whose gradient it is")
        scale = self.scale(damping)
        depth = self._depth(scale, damping)
        if size == 0:
            return LissaResult(zeros_like(vector), scale, depth, 0.0, 0.0)
        mean, squares = zeros_like(vector), 0.0
        for repeat in range(self._repeats):
            found = self._iterate(vector, scale, depth, damping, repeat, size)
            change = add_scaled(found, -1.0, mean)
            mean = add_scaled(mean, 1 / (repeat + 1), change)
            squares += dot(change, add_scaled(found, -1.0, mean))
        product = add_scaled(self._matvec(self._operator, mean), damping, mean)
        residual = norm(add_scaled(vector, -1.0, product)) / size
        if self._sample is None:
            if not residual <= self._tolerance * _ROUNDING:
                raise ConvergenceError(
                    f"LiSSA ended at a relative residual of {residual:.2g}, above tolerance {self._tolerance:.2g}, at "
                    f"scale {scale:.3g} and depth {depth}: rounding stops it there; give float64 weights, or more "
                    "damping or tolerance"
                )
            return LissaResult(mean, scale, depth, residual, 0.0)
        k = self._repeats
        noise = math.sqrt(squares / (k * (k - 1))) / norm(mean) if k > 1 else None
        return LissaResult(mean, scale, depth, residual, noise)

    def solve(self, vector: Vector, *, damping: float) -> Vector:
        """Return (G + damping)^-1 v; see :meth:`run`."""
        return self.run(vector, damping=damping).solution

    def _iterate(self, vector: Vector, scale: float, depth: int, damping: float, repeat: int, size: float) -> Vector:
        """Return the last iterate x."""
        first = {name: part / scale for name, part in vector.items()}
        rng = self._rng("steps", repeat)
        x, bound = first, _ROUNDING * size / damping
        for step in track(range(depth), "LiSSA"):
            product = self._matvec(self._drawn(rng), x)
            x = add_scaled(add_scaled(first, 1 - damping / scale, x), -1 / scale, product)
            length = norm(x)
            if not length <= bound:
                raise ConvergenceError(
                    f"LiSSA diverges at scale {scale:.3g}: the norm is {length:.2g} at step {step + 1} of depth "
                    f"{depth}, and no solution's is above {bound:.2g}; give a larger scale or sample, or more damping"
                )
        return x

    def _matvec(self, operator: GaussNewton, x: Vector) -> Vector:
        before = operator.cost
        product = operator.matvec(x)
        self.cost += operator.cost - before
        return product

    def _drawn(self, rng: np.random.Generator) -> GaussNewton:
        """Return G of drawn rows, or of all."""
        if self._sample is None:
            return self._operator
        chosen = rng.choice(len(self._order), self._sample, replace=False, shuffle=False)
        rows = self._rows.at(torch.from_numpy(self._order[chosen]))
        names = self._operator.parameters
        return gauss_newton(self._model, rows, task=self._task, parameters=names, batch_size=self._batch_size)

    def _rng(self, *use: object) -> np.random.Generator:
        return np.random.default_rng(draws.derived_seed(self._seed, "lissa", *use))

    def _depth(self, scale: float, damping: float) -> int:
        if scale < damping:
            raise InputError(
                f"scale is {scale:.3g}, below the damping {damping:.3g}; give damping plus the top eigenvalue, "
                f"{self.eigenvalue:.3g}, or None"
            )
        contraction = 1 - damping / scale
        needed = math.log(self._tolerance) / math.log(contraction) if contraction > self._tolerance else 1.0
        steps = math.ceil(needed) - 1
        if self.eigenvalue + damping > 2 * scale - damping:
            raise ConvergenceError(
                f"LiSSA does not converge in depth {steps} at scale {scale:.3g}: the top eigenvalue is "
                f"{self.eigenvalue:.3g} and the damping {damping:.3g}; give a scale of at least their sum, or None"
            )
        if steps > self._most_steps:
            raise InputError(
                f"LiSSA needs {steps:,} steps for tolerance {self._tolerance:.2g} at damping {damping:.3g} and scale "
                f"{scale:.3g}, above most_steps={self._most_steps:,}; raise tolerance, damping or most_steps, or use "
                "conjugate gradients"
            )
        return steps

    def _top(self, operator: GaussNewton) -> float:
        parameters = dict(self._model.named_parameters())
        rng = self._rng("start")
        start = {
            name: torch.from_numpy(rng.standard_normal(parameters[name].shape)).to(parameters[name])
            for name in operator.parameters
        }
        return sum(top_eigenvalue(partial(self._matvec, operator), start))
