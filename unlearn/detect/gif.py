"""GIF: the influence of a row on itself when only a few selected weights of each layer may move (arXiv 2312.05586).

With S the selected coordinates, x_S = argmin ||H_d[:, S] x - g||^2 is the change of the selected weights that cancels
the row's gradient best, the gradient on the frozen coordinates included; the score is g_S^T x_S. This is the closed
form for whole units and Kronecker factors, layer by layer.

A unit is an output neuron or channel with its weight row and bias. For the units R of a layer,

    H_d[:, S] = B[:, R] (x) C,    C = A + pi sqrt(w + d),    B = S + sqrt(w + d) / pi,
    pi^2 = (tr A / dim A) / (tr S / dim S)                                     (arXiv 1503.05671, section 6.3)

so that x = pinv(B[:, R]) g_mat C^-1, where pinv(B[:, R]) v = (B^2)[R, R]^-1 (B v)_R. With g_mat' = g_mat C^-1/2 the
score is <g'_R, (B^2)[R, R]^-1 (B g')_R>, and g' = sum_t d (C^-1/2 a)^T; with one position C enters as a^T C^-1 a only.
The neighbours of :mod:`unlearn.curvature.restricted` have closed forms on the same H_d: <g'_R, B[R, R]^-1 g'_R> for
frozen, <g'_R, (B^-1 g')_R> for projected and <g', B^-1 g'> for full. Where B is diagonal the first three are one.

Axes: g group, b row, t position, i inputs, o outputs, u units of all groups (g times o), k selected units.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unlearn.curvature import Basis, Curvature, layer_gradients
from unlearn.curvature.damped_factors import DampedFactors
from unlearn.curvature.restricted import Method
from unlearn.curvature.units import Select, UnitActivity, check_units, common_units, largest_units
from unlearn.data import DEFAULT_BATCH, as_rows
from unlearn.detect.damped_curvature import damped_curvature
from unlearn.detect.scores import Scores
from unlearn.errors import InputError, did_you_mean
from unlearn.tasks import Task, get_task

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
    method: Method = "gif",
    damping: float | None = None,
    weight_decay: float = 0.0,
    task: str | Task = "classification",
    batch_size: int = DEFAULT_BATCH,
) -> Scores:
    """Return g_S^T pinv(H_d[:, S]) g of each row, g at its given label and H_d the damped K-FAC curvature.

    The score is signed and no norm: rank by value. With ``ratio=1`` it is g^T H_d^-1 g. For other operators, and for
    parts of units, see :func:`unlearn.detect.gif_exact`.

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
        method: ``gif``, or a neighbour: ``frozen`` g_S^T H_d[S, S]^-1 g_S (never negative), ``projected``
            g_S^T (H_d^-1 g)_S, ``full`` g^T H_d^-1 g, which needs ``ratio=1``.
        damping: d; a tenth of the curvature's mean eigenvalue if None.
        weight_decay: w of the training objective; a coefficient of ``||theta||^2 / 2``.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time; changes time and memory, not the result.

    Returns:
        Scores of the method ``gif`` (``gif-frozen``, ``gif-projected``, ``gif-full``), whose options hold ``ratio``,
        ``select``, ``scope``, ``negative_share`` (share of the rows with a score below 0), ``kind``, ``damping``,
        ``damping_share`` (of the mean eigenvalue) and ``weight_decay``.

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
    check_units(ratio, select)
    if scope not in get_args(Scope):
        raise InputError(f"unknown scope {scope!r}; {did_you_mean(scope, get_args(Scope))}")
    if method not in get_args(Method):
        raise InputError(f"unknown method {method!r}; {did_you_mean(method, get_args(Method))}")
    if method == "full" and ratio != 1:
        raise InputError(f"method 'full' freezes nothing and ratio is {ratio}; give ratio=1, or method='projected'")
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
    factors = damped.curvature.per_layer(lambda block: DampedFactors.of(block, damped.added))
    activity = UnitActivity(model, select)
    common: dict[str, Tensor] = {}
    if scope == "data":
        common = common_units(model, rows, layers, ratio=ratio, select=select, task=the_task, batch_size=batch_size)
    values = torch.zeros(len(rows), dtype=torch.float64)
    for positions, gradients in layer_gradients(model, rows, the_task, layers, batch_size):
        for layer in layers:
            a, d = gradients[layer.name]
            units = common.get(layer.name)
            if units is None:
                units = largest_units(activity(layer, a, d), ratio)
            values[positions] += _layer_scores(factors[layer.name], a, d, units, method).cpu()
    options = {
        "ratio": ratio,
        "select": select,
        "scope": scope,
        "negative_share": float((values < 0).double().mean()),
        **damped.options,
    }
    return Scores(rows.ids, values.numpy(), "gif" if method == "gif" else f"gif-{method}", options)


def _layer_scores(factors: DampedFactors, a: Tensor, d: Tensor, units: Tensor, method: Method) -> Tensor:
    """Return one layer's part of the scores, shape (b,); units (b, k), or (1, k) where all rows share them."""
    if units.shape[1] == factors.outputs.numel():
        units = units[:1]
    form = _diagonal_form if factors.output_basis is None else _FORMS[method]
    parts, start = [], 0
    for whitened in _whitened_gradients(factors, a, d):
        stop = start + whitened.shape[1]
        chosen = units if len(units) == 1 else units[start:stop]
        parts.append(form(factors, whitened, chosen))
        start = stop
    return torch.cat(parts)


def _whitened_gradients(factors: DampedFactors, a: Tensor, d: Tensor) -> Iterator[Tensor]:
    """Yield g' transposed, (g, b, i, o), a few rows at a time; with one position (g, b, 1, o), of equal products."""
    a = a.to(factors.whitening.dtype)
    diagonal = factors.whitening.shape[1] != factors.whitening.shape[2]
    flat = a.flatten(1, 2)
    a = (flat * factors.whitening if diagonal else flat @ factors.whitening).reshape(a.shape)
    if a.shape[2] == 1:
        yield d.double() * a.double().norm(dim=3, keepdim=True)
        return
    for part in Basis().gradients(d.to(a.dtype), a):
        yield part.double()


def _by_unit(x: Tensor) -> Tensor:
    """Return (g, b, i, o) as (b, u, i)."""
    return x.permute(1, 0, 3, 2).flatten(1, 2)


def _times(gradients: Tensor, matrix: Tensor) -> Tensor:
    """Return a symmetric matrix (g, o, o) times transposed gradients (g, b, i, o)."""
    return (gradients.flatten(1, 2) @ matrix).reshape(gradients.shape)


def _gif_form(factors: DampedFactors, gradients: Tensor, units: Tensor) -> Tensor:
    """Return <g_R, (B^2)[R, R]^-1 (B g)_R> of each row, shape (b,); the groups need not have equal shares of R."""
    pulled = _by_unit(_times(gradients, factors.output_factor))
    return _restricted_form(factors, _by_unit(gradients), pulled, factors.whole_square, units)


def _frozen_form(factors: DampedFactors, gradients: Tensor, units: Tensor) -> Tensor:
    """Return <g_R, B[R, R]^-1 g_R> of each row, shape (b,)."""
    by_unit = _by_unit(gradients)
    return _restricted_form(factors, by_unit, by_unit, factors.whole, units)


def _projected_form(factors: DampedFactors, gradients: Tensor, units: Tensor) -> Tensor:
    """Return <g_R, (B^-1 g)_R> of each row, shape (b,)."""
    return _sum_over((gradients * _times(gradients, factors.inverse)).sum(2), units)


def _diagonal_form(factors: DampedFactors, gradients: Tensor, units: Tensor) -> Tensor:
    """Return <g_R, B[R, R]^-1 g_R> of each row for a diagonal B, shape (b,)."""
    return _sum_over(gradients.square().sum(2) / factors.outputs[:, None], units)


def _sum_over(terms: Tensor, units: Tensor) -> Tensor:
    """Return the sum over the chosen units of terms (g, b, o), shape (b,)."""
    by_unit = terms.transpose(0, 1).flatten(1)
    return by_unit.gather(1, units.expand(len(by_unit), -1)).sum(1)


_FORMS = {"gif": _gif_form, "frozen": _frozen_form, "projected": _projected_form, "full": _projected_form}


def _restricted_form(
    factors: DampedFactors, gradients: Tensor, pulled: Tensor, matrix: Tensor, units: Tensor
) -> Tensor:
    """Return <g_R, matrix[R, R]^-1 pulled_R> of each row, shape (b,), for gradients and pulled (b, u, i)."""
    if len(units) == 1:
        chosen = units[0]
        b, k, c = len(gradients), len(chosen), gradients.shape[2]
        rhs = pulled[:, chosen].transpose(0, 1).reshape(k, b * c)
        root = factors.root(matrix[chosen[:, None], chosen])
        x = torch.cholesky_solve(rhs, root).reshape(k, b, c).transpose(0, 1)
        return (gradients[:, chosen] * x).sum((1, 2))
    step = max(1, _CHUNK_BYTES // (8 * units.shape[1] ** 2))
    parts = []
    for start in range(0, len(units), step):
        some_rows = slice(start, start + step)
        R = units[some_rows]
        row = torch.arange(len(R), device=R.device)[:, None]
        root = factors.root(matrix[R[:, :, None], R[:, None]])
        x = torch.cholesky_solve(pulled[some_rows][row, R], root)
        parts.append((gradients[some_rows][row, R] * x).sum((1, 2)))
    return torch.cat(parts)
