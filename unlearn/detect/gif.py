"""GIF: the influence of a row on itself when only a few selected weights of each layer may move (arXiv 2312.05586).

With S the selected coordinates, x_S = argmin ||H_d[:, S] x - g||^2 is the change of the selected weights that cancels
the row's gradient best, the gradient on the frozen coordinates included; the score is g_S^T x_S. This is the closed
form for whole units and Kronecker factors, layer by layer.

A unit is an output neuron or channel with its weight row and bias. For the units R of a layer,

    H_d[:, S] = B[:, R] (x) C,    C = A + pi sqrt(w + d),    B = S + sqrt(w + d) / pi,
    pi^2 = (tr A / dim A) / (tr S / dim S)                                     (arXiv 1503.05671, section 6.3)

so that x = pinv(B[:, R]) g_mat C^-1, where pinv(B[:, R]) v = (B^2)[R, R]^-1 (B v)_R. With g_mat' = g_mat C^-1/2 the
score is <g'_R, (B^2)[R, R]^-1 (B g')_R>, and g' = sum_t d (C^-1/2 a)^T; with one position C enters as a^T C^-1 a only.

Axes: g group, b row, t position, i inputs, o outputs, u units of all groups (g times o), k selected units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unlearn.curvature import Basis, Block, Curvature, Layer, layer_gradients
from unlearn.data import DEFAULT_BATCH, Rows, as_rows
from unlearn.detect.damped_curvature import damped_curvature
from unlearn.detect.scores import Scores
from unlearn.errors import InputError, did_you_mean
from unlearn.tasks import Task, get_task

Select = Literal["outputs", "gradients"]
Scope = Literal["row", "data"]

_CHUNK_BYTES = 64 * 2**20


def gif_scores(
    model: nn.Module,
    data: Any,
    *,
    curvature: Curvature | None = None,
    ratio: float = 0.05,
    select: Select = "outputs",
    scope: Scope = "row",
    damping: float | None = None,
    weight_decay: float = 0.0,
    task: str | Task = "classification",
    batch_size: int = DEFAULT_BATCH,
) -> Scores:
    """Return g_S^T pinv(H_d[:, S]) g of each row, g at its given label and H_d the damped K-FAC curvature.

    The score is signed and no norm: rank by value. With ``ratio=1`` it is g^T H_d^-1 g.

    Args:
        model: left as found; run in evaluation mode.
        data: the rows, with the labels to be judged. See :func:`unlearn.data.as_rows`.
        curvature: of kind ``kfac`` or ``ekfac`` (of which the K-FAC factors are used: there is no closed form for
            EK-FAC eigenvalues), of this model's weights; fitted on the rows if None.
        ratio: share of a layer's units that may move, in (0, 1]; rounded up, at least one. In a grouped convolution
            the units of all groups are ranked together.
        select: ``outputs``: units with the largest absolute mean activation before the non-linearity, over the rows
            concerned and over positions; ``gradients``: with that of the loss gradient there.
        scope: ``row``: each row selects its own units; ``data``: all rows together select (one more pass).
        damping: d; a tenth of the curvature's mean eigenvalue if None.
        weight_decay: w of the training objective; a coefficient of ``||theta||^2 / 2``.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time; changes time and memory, not the result.

    Returns:
        Scores whose options hold ``ratio``, ``select``, ``scope``, ``negative_share`` (share of the rows with a score
        below 0), ``kind``, ``damping``, ``damping_share`` (of the mean eigenvalue) and ``weight_decay``.

    Raises:
        StaleCurvatureError: the curvature belongs to other weights or another task.
        InputError: an unknown option or a value outside its range, a diagonal curvature, a label outside the model's
            classes, or a damping so small that the solve fails.

    >>> model, inputs = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> _ = nn.init.eye_(model.weight)
    >>> scores = gif_scores(model, (inputs, torch.tensor([0, 1, 1])), ratio=0.5)  # row 1 has a wrong label
    >>> scores.top(1)[0][0], scores.options["negative_share"]
    ('1', 0.0)
    """
    if not 0 < ratio <= 1:
        raise InputError(f"ratio is {ratio}; give a share of the units above 0 and up to 1")
    if select not in get_args(Select):
        raise InputError(f"unknown select {select!r}; {did_you_mean(select, get_args(Select))}")
    if scope not in get_args(Scope):
        raise InputError(f"unknown scope {scope!r}; {did_you_mean(scope, get_args(Scope))}")
    rows, the_task = as_rows(data), get_task(task)
    damped = damped_curvature(
        model,
        rows,
        curvature=curvature,
        damping=damping,
        weight_decay=weight_decay,
        task=the_task,
        batch_size=batch_size,
    )
    layers = damped.curvature.layers
    factors = {name: _damped_factors(block, damped.added) for name, block in damped.curvature.blocks.items()}
    ranking = _Ranking(model, select)
    common = _common_units(ranking, rows, the_task, layers, ratio, batch_size) if scope == "data" else {}
    values = torch.zeros(len(rows), dtype=torch.float64)
    for positions, gradients in layer_gradients(model, rows, the_task, layers, batch_size):
        for layer in layers:
            a, d = gradients[layer.name]
            units = common.get(layer.name)
            if units is None:
                units = _largest(ranking(layer, a, d), ratio)
            values[positions] += _layer_scores(factors[layer.name], a, d, units).cpu()
    options = {
        "ratio": ratio,
        "select": select,
        "scope": scope,
        "negative_share": float((values < 0).double().mean()),
        **damped.options,
    }
    return Scores(rows.ids, values.numpy(), "gif", options)


@dataclass(frozen=True)
class _DampedFactors:
    """The damped factors of a layer.

    Attributes:
        layer: name of the layer.
        whitening: C^-1/2 up to a rotation, as columns, shape (g, i, i).
        outputs: B, shape (g, o, o), in float64: its square is solved with.
        square: B^2 of all units, block-diagonal in the groups, shape (u, u).
    """

    layer: str
    whitening: Tensor
    outputs: Tensor
    square: Tensor


def _damped_factors(block: Block, damping: float) -> _DampedFactors:
    name = block.layer.name
    lambda_A, lambda_S = block.input_eigenvalues, block.output_eigenvalues
    U_A, U_S = block.basis.inputs, block.basis.outputs
    if lambda_A is None or lambda_S is None or U_A is None or U_S is None:
        raise InputError("GIF needs Kronecker factors, which a diagonal curvature lacks; fit kind='ekfac' or 'kfac'")
    lambda_A, lambda_S, U_S = lambda_A.double(), lambda_S.double(), U_S.double()
    mean_A, mean_S = lambda_A.mean(1, keepdim=True), lambda_S.mean(1, keepdim=True)
    pi = torch.where((mean_A > 0) & (mean_S > 0), mean_A / mean_S, 1.0).sqrt()
    inputs = lambda_A + pi * math.sqrt(damping)
    outputs = lambda_S + math.sqrt(damping) / pi
    if not ((inputs > 0).all() and (outputs > 0).all()):
        raise InputError(
            f"the factors of layer {name!r} have eigenvalues of 0, so they have no inverse; give damping > 0"
        )
    whitening = U_A * inputs.rsqrt()[:, None].to(U_A.dtype)
    B = U_S * outputs[:, None] @ U_S.mT
    return _DampedFactors(name, whitening, B, torch.block_diag(*(B @ B)))  # type: ignore[no-untyped-call]


class _Ranking:
    """What units are ranked by before the absolute value: its mean over positions for each row, shape (b, u)."""

    def __init__(self, model: nn.Module, select: Select) -> None:
        self.model = model
        self._select = select
        self._weights = {name: value.detach() for name, value in model.named_parameters()}

    def __call__(self, layer: Layer, a: Tensor, d: Tensor) -> Tensor:
        if self._select == "gradients":
            mean = d.mean(2)
        else:
            mean = a.mean(2) @ layer.block(self._weights).mT
            bias = self.model.get_submodule(layer.name).bias
            if layer.bias is None and isinstance(bias, Tensor):  # frozen or skipped, so no part of the block
                mean = mean + bias.detach().reshape(len(mean), 1, -1)
        return mean.transpose(0, 1).flatten(1)


def _largest(values: Tensor, ratio: float) -> Tensor:
    """Return the units of largest absolute value in each row, (b, k), ascending; of equal ones the first."""
    count = math.ceil(ratio * values.shape[1] - 1e-9)  # 0.07 * 100 is a little more than 7
    order = values.abs().sort(dim=1, descending=True, stable=True).indices
    return order[:, :count].sort(dim=1).values


def _common_units(
    ranking: _Ranking, rows: Rows, task: Task, layers: list[Layer], ratio: float, batch_size: int
) -> dict[str, Tensor]:
    """Return the units that all rows together select in each layer, shape (1, k)."""
    totals: dict[str, Tensor] = {}
    for _, gradients in layer_gradients(ranking.model, rows, task, layers, batch_size):
        for layer in layers:
            part = ranking(layer, *gradients[layer.name]).double().sum(0, keepdim=True)
            totals[layer.name] = totals[layer.name] + part if layer.name in totals else part
    return {name: _largest(total, ratio) for name, total in totals.items()}


def _layer_scores(factors: _DampedFactors, a: Tensor, d: Tensor, units: Tensor) -> Tensor:
    """Return one layer's part of the scores, shape (b,); units (b, k), or (1, k) where all rows share them."""
    if units.shape[1] == len(factors.square):
        units = units[:1]
    parts, start = [], 0
    for whitened in _whitened_gradients(factors, a, d):
        stop = start + whitened.shape[1]
        chosen = units if len(units) == 1 else units[start:stop]
        parts.append(_restricted_quadratic(factors, whitened, chosen))
        start = stop
    return torch.cat(parts)


def _whitened_gradients(factors: _DampedFactors, a: Tensor, d: Tensor) -> Iterator[Tensor]:
    """Yield g' transposed, (g, b, i, o), a few rows at a time; with one position (g, b, 1, o), of equal products."""
    a = a.to(factors.whitening.dtype)
    a = (a.flatten(1, 2) @ factors.whitening).reshape(a.shape)
    if a.shape[2] == 1:
        yield d.double() * a.double().norm(dim=3, keepdim=True)
        return
    for part in Basis().gradients(d.to(a.dtype), a):
        yield part.double()


def _restricted_quadratic(factors: _DampedFactors, gradients: Tensor, units: Tensor) -> Tensor:
    """Return <g_R, (B^2)[R, R]^-1 (B g)_R> of each row, shape (b,); the groups need not have equal shares of R.

    Gradients are transposed, (g, b, i, o); B is symmetric.
    """
    by_unit = _by_unit(gradients)
    pulled = _by_unit((gradients.flatten(1, 2) @ factors.outputs).reshape(gradients.shape))
    if len(units) == 1:
        chosen = units[0]
        square = factors.square[chosen[:, None], chosen]
        b, k, c = len(by_unit), len(chosen), by_unit.shape[2]
        rhs = pulled[:, chosen].transpose(0, 1).reshape(k, b * c)
        x = torch.cholesky_solve(rhs, _cholesky(square, factors.layer)).reshape(k, b, c).transpose(0, 1)
        return (by_unit[:, chosen] * x).sum((1, 2))
    step = max(1, _CHUNK_BYTES // (8 * units.shape[1] ** 2))
    parts = []
    for start in range(0, len(units), step):
        some_rows = slice(start, start + step)
        R = units[some_rows]
        row = torch.arange(len(R), device=R.device)[:, None]
        square = factors.square[R[:, :, None], R[:, None]]
        x = torch.cholesky_solve(pulled[some_rows][row, R], _cholesky(square, factors.layer))
        parts.append((by_unit[some_rows][row, R] * x).sum((1, 2)))
    return torch.cat(parts)


def _by_unit(x: Tensor) -> Tensor:
    """Return (g, b, i, o) as (b, u, i)."""
    return x.permute(1, 0, 3, 2).flatten(1, 2)


def _cholesky(square: Tensor, layer: str) -> Tensor:
    root: Tensor
    root, info = torch.linalg.cholesky_ex(square)
    if info.any():
        raise InputError(f"the selected units of layer {layer!r} are dependent to rounding; give more damping")
    return root
