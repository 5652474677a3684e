"""Fit the curvature of a model to its rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from unlearn.curvature.block import Basis, Block
from unlearn.curvature.curvature import Curvature
from unlearn.curvature.digest import check_ranks, weights_digest
from unlearn.curvature.fisher import FisherKind, FisherStream
from unlearn.curvature.kronecker import eigenbases, kronecker_factors, mean_squares
from unlearn.curvature.layers import find_layers, patterns_of
from unlearn.curvature.taps import TAP_BATCH
from unlearn.data import as_rows
from unlearn.errors import InputError, did_you_mean
from unlearn.ranks import ranks_agree
from unlearn.tasks import Task, get_task

CurvatureKind = Literal["ekfac", "kfac", "diagonal"]

_KEEP_BYTES = 512 * 2**20
_KEEP_WEIGHTS = 32 * 2**20  # bytes; above, what is kept between the passes would outgrow the factors


def fit_curvature(
    model: nn.Module,
    data: Any,
    *,
    task: str | Task = "classification",
    kind: CurvatureKind = "ekfac",
    fisher: FisherKind = "sampled",
    seed: int = 0,
    skip: str | Iterable[str] = (),
    batch_size: int = TAP_BATCH,
    dtype: torch.dtype | None = None,
) -> Curvature:
    """Fit a block-diagonal approximation of the Gauss-Newton matrix of the mean loss over the rows.

    Args:
        model: any module, left as found and run in evaluation mode. What its forward pass does with a parameter
            decides the form of its block, see :mod:`unlearn.curvature.layers`; ``summary()`` says which.
        data: the rows; labels are not used. See :func:`unlearn.data.as_rows`.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        kind: ``ekfac`` (arXiv 1806.03884; two passes, the best), ``kfac`` (arXiv 1503.05671; one pass) or
            ``diagonal`` (one pass, no decomposition).
        fisher: ``sampled`` (one label drawn from the model for each row) or ``exact`` (a backward pass for each
            output: no sampling noise, but as many times the cost).
        seed: seed of the sampled labels, drawn by row id.
        skip: patterns of module or parameter names to leave out.
        batch_size: rows at a time; changes time and memory, not the result.
        dtype: type of the factors; by default that of the weights, float32 at least.

    Several ranks (:mod:`unlearn.ranks`) share the rows out, and the eigendecompositions; each returns the whole.

    Raises:
        UnsupportedLayerError: the forward pass uses a layer in another way for some rows than for the first.
        InputError: an unknown option, a weight or row that is not finite.

    >>> model = nn.Linear(2, 2)
    >>> curvature = fit_curvature(model, (torch.eye(2), torch.tensor([0, 1])))
    >>> v = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    >>> x = curvature.solve(v, damping=0.5)
    >>> back = curvature.matvec(x)
    >>> all(torch.allclose(back[name] + 0.5 * x[name], v[name]) for name in v)
    True
    """
    if kind not in get_args(CurvatureKind):
        raise InputError(f"unknown curvature kind {kind!r}; {did_you_mean(kind, get_args(CurvatureKind))}")
    if fisher not in get_args(FisherKind):
        raise InputError(f"unknown fisher {fisher!r}; {did_you_mean(fisher, get_args(FisherKind))}")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")
    rows, loss = as_rows(data), get_task(task)
    skip = patterns_of(skip)
    check_ranks(model, rows)
    digest = weights_digest(model)
    layers, uncovered = find_layers(model, rows, skip)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    keep = _KEEP_BYTES if kind == "ekfac" and weights <= _KEEP_WEIGHTS else 0
    options = {
        "task": loss.name,
        "kind": kind,
        "fisher": fisher,
        "seed": seed,
        "skip": skip,
        "dtype": None if dtype is None else str(dtype),
    }
    ranks_agree("set of options", repr(options), "pass the same to fit_curvature on each")
    stream = FisherStream(model, rows, loss, layers, fisher, seed, batch_size, dtype, keep)
    blocks = _diagonal(stream) if kind == "diagonal" else _kronecker(stream, refit=kind == "ekfac")
    if weights_digest(model) != digest:
        raise InputError("the model's weights or buffers change when it is run; make it constant in evaluation mode")
    return Curvature(
        blocks=blocks,
        uncovered=uncovered,
        rows=len(rows),
        weights_digest=digest,
        data_fingerprint=rows.fingerprint,
        options=options,
    )


def _diagonal(stream: FisherStream) -> dict[str, Block]:
    eigenvalues = mean_squares(stream, {layer.name: Basis() for layer in stream.layers})
    return {layer.name: Block(layer, Basis(), eigenvalues[layer.name]) for layer in stream.layers}


def _kronecker(stream: FisherStream, *, refit: bool) -> dict[str, Block]:
    sides = {
        f"the {side} factor of layer {name!r}": factor
        for name, pair in kronecker_factors(stream).items()
        for side, factor in zip(("input", "output"), pair, strict=True)
    }
    found = iter(eigenbases(sides))
    blocks = {}
    for layer in stream.layers:
        (lambda_A, U_A, clamped_A), (lambda_S, U_S, clamped_S) = next(found), next(found)
        product = lambda_S[:, :, None] * lambda_A[:, None]
        if refit:
            product = product.new_zeros(()).expand_as(
                product
            )  # until the second pass; all of them would be weights again
        blocks[layer.name] = Block(layer, Basis(U_A, U_S), product, lambda_A, lambda_S, clamped_A + clamped_S)
    if not refit:
        return blocks
    eigenvalues = mean_squares(stream, {name: block.basis for name, block in blocks.items()})
    return {name: replace(block, eigenvalues=eigenvalues[name]) for name, block in blocks.items()}
