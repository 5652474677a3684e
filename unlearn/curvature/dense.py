"""The exact solve with the whole Gauss-Newton matrix, for small models: the oracle of the other solvers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.curvature.curvature import check_damping
from unlearn.curvature.gauss_newton import gauss_newton
from unlearn.curvature.vectors import Vector
from unlearn.data import DEFAULT_BATCH
from unlearn.errors import InputError
from unlearn.progress import track
from unlearn.tasks import Task

MOST_PARAMETERS = 4096


class DenseSolver:
    """The exact G of at most 4,096 parameters, column by column, and its eigendecomposition.

    One product with G for each parameter when it is made; none in a solve, whatever the damping. Entries are stored
    and decomposed in float64, each product has the precision of the weights.

    Args:
        model: any module; left as found.
        data: the rows; labels are not used. See :func:`unlearn.data.as_rows`.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        parameters: names of the parameters it acts on; by default all that are trained.
        batch_size: rows at a time.

    Attributes:
        matrix: G, shape (p, p), float64; parameters in the order of the model, each flattened.
        eigenvalues: of G, shape (p,), ascending; those below 0 by rounding are 0.
        cost: what making it cost, per row; see :class:`unlearn.curvature.GaussNewton`.

    Raises:
        InputError: too many parameters, or a matrix that is not finite or not positive semidefinite.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # x^T x / 2 = diag(0.5, 2)
    >>> solver = DenseSolver(nn.Linear(2, 1, bias=False), (x, torch.zeros(2)), task="regression")
    >>> solver.matrix.tolist()
    [[0.5, 0.0], [0.0, 2.0]]
    >>> solver.solve({"weight": torch.tensor([[3.0, 3.0]])}, damping=1.0)
    {'weight': tensor([[2., 1.]])}
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        task: str | Task = "classification",
        parameters: Iterable[str] | None = None,
        batch_size: int = DEFAULT_BATCH,
    ) -> None:
        operator = gauss_newton(model, data, task=task, parameters=parameters, batch_size=batch_size)
        weights = {name: model.get_parameter(name).detach() for name in operator.parameters}
        self._shapes = {name: weight.shape for name, weight in weights.items()}
        size = sum(weight.numel() for weight in weights.values())
        if size > MOST_PARAMETERS:
            raise InputError(
                f"a dense solve needs the {size:,} x {size:,} matrix; it is for at most {MOST_PARAMETERS:,} "
                "parameters: name fewer in parameters=, or use conjugate gradients"
            )
        columns = []
        for k in track(range(size), "Gauss-Newton matrix"):
            unit = torch.zeros(size, dtype=torch.float64)
            unit[k] = 1
            columns.append(_flat(operator.matvec(self._vector(unit, weights))))
        whole = torch.stack(columns, 1)
        if not torch.isfinite(whole).all():
            raise InputError("the Gauss-Newton matrix has NaN or infinite entries; the weights or inputs are damaged")
        self.matrix = (whole + whole.T) / 2
        self.cost = operator.cost
        self.eigenvalues, self._vectors = torch.linalg.eigh(self.matrix)
        precision = max(torch.finfo(weight.dtype).eps for weight in weights.values())
        self._rounding = precision * size * float(self.eigenvalues.abs().max())
        if float(self.eigenvalues[0]) < -self._rounding:
            raise InputError(
                f"the Gauss-Newton matrix has the eigenvalue {float(self.eigenvalues[0]):.3g}; give a task whose "
                "fisher_product is positive semidefinite"
            )
        self.eigenvalues.clamp_(min=0)

    def solve(self, vector: Vector, *, damping: float) -> Vector:
        """Return (G + damping)^-1 v.

        Raises:
            InputError: damping is negative or not finite, or 0 where G is singular; or the vector does not fit.
        """
        check_damping(damping)
        if {name: part.shape for name, part in vector.items()} != self._shapes:
            raise InputError(
                f"the vector has {_described({name: part.shape for name, part in vector.items()})}; the matrix is of "
                f"{_described(self._shapes)}"
            )
        if damping == 0 and float(self.eigenvalues[0]) <= self._rounding:
            singular = int((self.eigenvalues <= self._rounding).sum())
            raise InputError(
                f"{singular} of {len(self.eigenvalues)} eigenvalues of the Gauss-Newton matrix are 0, so it has no "
                f"inverse; give damping > 0 (the mean eigenvalue is {float(self.eigenvalues.mean()):.3g})"
            )
        rotated = self._vectors.T @ _flat({name: vector[name] for name in self._shapes})
        found = self._vector(self._vectors @ (rotated / (self.eigenvalues + damping)), vector)
        return {name: found[name] for name in vector}

    def _vector(self, flat: Tensor, like: Vector) -> Vector:
        parts = torch.split(flat, [shape.numel() for shape in self._shapes.values()])
        pairs = zip(self._shapes.items(), parts, strict=True)
        return {name: part.reshape(shape).to(like[name]) for (name, shape), part in pairs}


def _flat(vector: Vector) -> Tensor:
    return torch.cat([part.reshape(-1) for part in vector.values()]).to("cpu", torch.float64)


def _described(shapes: dict[str, torch.Size]) -> str:
    return ", ".join(f"{name!r} {tuple(shape)}" for name, shape in shapes.items())
