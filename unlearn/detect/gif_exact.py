"""GIF scores with any operator and any coordinates, one least-squares problem for each row (arXiv 2312.05586)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import nn

from unlearn.curvature import Curvature, GaussNewton, dot, find_layers, gauss_newton, layer_gradients, loss_gradient
from unlearn.curvature.restricted import Method, Operator, Selection, restricted_step
from unlearn.curvature.units import Select, UnitActivity, check_units, common_units, largest_units, unit_selection
from unlearn.data import DEFAULT_BATCH, Rows, as_rows
from unlearn.detect.gif import Scope
from unlearn.detect.scores import Scores
from unlearn.errors import InputError, did_you_mean
from unlearn.precision import precision_option
from unlearn.progress import track
from unlearn.tasks import Task, get_task


def gif_exact(
    model: nn.Module,
    data: Any,
    *,
    damping: float,
    operator: Operator | None = None,
    selection: Selection | None = None,
    ratio: float | None = None,
    select: Select = "outputs",
    scope: Scope = "row",
    method: Method = "gif",
    weight_decay: float = 0.0,
    task: str | Task = "classification",
    tolerance: float = 1e-6,
    iterations: int = 1000,
    batch_size: int = DEFAULT_BATCH,
) -> Scores:
    """Return g_S^T pinv(H[:, S]) g of each row with H = G + w + d, by LSMR; see :mod:`unlearn.curvature.restricted`.

    The columns H[:, S] cross layers where G does, as the exact Gauss-Newton matrix does. With
    :func:`unlearn.curvature.damped_factors` as operator (and no damping beside it) the scores are those of the closed
    form, :func:`unlearn.detect.gif_scores`. Each row takes tens to hundreds of products with G, and a product with the
    exact G costs 4/3 training epochs: for small models, or few rows.

    Args:
        model: left as found; run in evaluation mode.
        data: the rows, with the labels to be judged. See :func:`unlearn.data.as_rows`.
        damping: d, a number: the exact G has no mean eigenvalue to take a share of.
        operator: G; the exact Gauss-Newton matrix of the rows' mean loss if None. A curvature must be of this model.
        selection: a mask of its shape for each parameter that may move, the same for all rows. Parts of units are
            allowed.
        ratio: in its place, the share of each layer's units that may move, as in :func:`unlearn.detect.gif_scores`.
        select: with a ratio, ``outputs`` or ``gradients``.
        scope: with a ratio, ``row`` or ``data``.
        method: ``gif``, or a neighbour on the same H: ``frozen`` g_S^T H[S, S]^-1 g_S, ``projected``
            g_S^T (H^-1 g)_S, ``full`` g^T H^-1 g, which takes neither a selection nor a ratio.
        weight_decay: w of the training objective; a coefficient of ``||theta||^2 / 2``.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        tolerance: of LSMR or conjugate gradients.
        iterations: most iterations for a row.
        batch_size: rows at a time in a product with the exact G; changes time and memory, not the result.

    Returns:
        Scores of the method ``gif-exact`` (``gif-exact-frozen``, ``-projected``, ``-full``), whose options hold
        ``ratio``, ``select`` and ``scope`` (None without a ratio), ``negative_share``, ``damping``, ``weight_decay``,
        ``products`` (with G, over all rows) and ``cost_epochs`` (products with other operators than the exact G are
        not counted).

    Raises:
        ConvergenceError: LSMR or conjugate gradients stopped short of the tolerance.
        StaleCurvatureError: the curvature belongs to other weights.
        InputError: an option outside its range, an empty selection or one that does not fit, or a label outside the
            model's classes.

    >>> model, inputs = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> _ = nn.init.eye_(model.weight)
    >>> scores = gif_exact(model, (inputs, torch.tensor([0, 1, 1])), ratio=0.5, damping=0.1)
    >>> scores.top(1)[0][0]  # row 1 has a wrong label
    '1'
    """
    _check(selection, ratio, select, scope, method, weight_decay, batch_size)
    rows, the_task = as_rows(data), get_task(task)
    if operator is None:
        operator = gauss_newton(model, rows, task=the_task, batch_size=batch_size)
    names = None
    if isinstance(operator, Curvature):
        operator.check(model)
        names = operator.covered
    elif isinstance(operator, GaussNewton):
        names = operator.parameters
    cost_before = operator.cost if isinstance(operator, GaussNewton) else 0
    chosen: Iterator[Selection | None] = iter([selection] * len(rows))
    if ratio is not None:
        chosen = _unit_selections(model, rows, operator, names, ratio, select, scope, the_task, batch_size)
    values, products = torch.zeros(len(rows), dtype=torch.float64), 0
    for i, mask in zip(track(range(len(rows)), "least squares"), chosen, strict=True):
        g = loss_gradient(model, rows.at(torch.tensor([i])), task=the_task, parameters=names)
        found = restricted_step(
            operator,
            g,
            mask,
            damping=weight_decay + damping,
            method=method,
            tolerance=tolerance,
            iterations=iterations,
        )
        values[i] = dot(g, found.step)
        products += found.products
    spent = operator.cost - cost_before if isinstance(operator, GaussNewton) else 0
    options = {
        "ratio": ratio,
        "select": None if ratio is None else select,
        "scope": None if ratio is None else scope,
        "negative_share": float((values < 0).double().mean()),
        "damping": float(damping),
        "weight_decay": float(weight_decay),
        "products": products,
        "cost_epochs": 1 + (ratio is not None) * (1 + (scope == "data")) + spent / (3 * len(rows)),
        **precision_option(),
    }
    return Scores(rows.ids, values.numpy(), "gif-exact" + ("" if method == "gif" else f"-{method}"), options)


def _unit_selections(
    model: nn.Module,
    rows: Rows,
    operator: Operator,
    names: list[str] | None,
    ratio: float,
    select: Select,
    scope: Scope,
    task: Task,
    batch_size: int,
) -> Iterator[Selection]:
    """Yield the masks of each row's units, in the order of the rows."""
    layers = operator.layers if isinstance(operator, Curvature) else find_layers(model, rows).layers
    if names is not None:
        layers = [layer for layer in layers if set(layer.parameters) <= set(names)]
    if scope == "data":
        units = common_units(model, rows, layers, ratio=ratio, select=select, task=task, batch_size=batch_size)
        yield from [unit_selection(layers, units)] * len(rows)
        return
    activity = UnitActivity(model, select)
    for positions, gradients in layer_gradients(model, rows, task, layers, batch_size):
        found = {layer.name: largest_units(activity(layer, *gradients[layer.name]), ratio) for layer in layers}
        for i in range(len(positions)):
            yield unit_selection(layers, {name: units[i] for name, units in found.items()})


def _check(
    selection: Selection | None,
    ratio: float | None,
    select: str,
    scope: str,
    method: str,
    weight_decay: float,
    batch_size: int,
) -> None:
    if method not in get_args(Method):
        raise InputError(f"unknown method {method!r}; {did_you_mean(method, get_args(Method))}")
    given = (selection is not None) + (ratio is not None)
    if method == "full" and given:
        raise InputError("method 'full' freezes nothing; leave out selection and ratio, or take method='projected'")
    if method != "full" and given != 1:
        raise InputError(
            f"method {method!r} moves selected weights, and {'both' if given else 'neither'} of selection and ratio "
            "are given; pass one of them"
        )
    if ratio is not None:
        check_units(ratio, select)
    if scope not in get_args(Scope):
        raise InputError(f"unknown scope {scope!r}; {did_you_mean(scope, get_args(Scope))}")
    if not 0 <= weight_decay < float("inf"):
        raise InputError(f"weight_decay is {weight_decay}; give a finite number of at least 0")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")
