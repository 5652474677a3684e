"""Fit the curvature of a model to its rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from unlearn.atomic import make_folder
from unlearn.curvature.block import Basis, Block
from unlearn.curvature.curvature import Curvature
from unlearn.curvature.digest import check_ranks, weights_digest
from unlearn.curvature.factor_file import factor_count
from unlearn.curvature.fisher import FisherKind, FisherStream
from unlearn.curvature.kronecker import eigenbases, kronecker_factors, mean_squares
from unlearn.curvature.layers import Layer, find_layers, patterns_of
from unlearn.curvature.store import load_curvature, write_curvature
from unlearn.curvature.taps import TAP_BATCH, rows_at_once
from unlearn.data import as_rows
from unlearn.errors import FolderError, InputError, did_you_mean
from unlearn.precision import precision_name
from unlearn.ranks import on_first_rank, ranks_agree, this_rank, world_size
from unlearn.tasks import Task, get_task

CurvatureKind = Literal["ekfac", "kfac", "diagonal"]

_PASSES = {"ekfac": 2, "kfac": 1, "diagonal": 1}
_LEAST_BYTES = 16 * 2**20  # of factors that a group of layers may have at least: a small model is fitted in one
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
    folder: str | Path | None = None,
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
        folder: fit with no more factors in memory than the weights take (those of one layer, or 16 MB, where that is
            more), and leave them there as :func:`unlearn.curvature.load_curvature` reads them. Layers are fitted in
            groups, with the passes of the kind for each group; ``passes`` says how many. Values are the same, bit for
            bit. What comes back reads a layer when it is used. Cut off, the fit leaves nothing that reads as a
            curvature.

    The model is run in the type of its weights, or of :func:`unlearn.half_precision`; sums are of the factors' type.

    Several ranks (:mod:`unlearn.ranks`) share the rows out, and the eigendecompositions; each returns the whole.

    Raises:
        UnsupportedLayerError: the forward pass uses a layer in another way for some rows than for the first.
        InputError: an unknown option, a weight or row that is not finite.
        FolderError: the folder can not be written.

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
    keep = _KEEP_BYTES if kind == "ekfac" and weights <= _KEEP_WEIGHTS and folder is None else 0
    options = {
        "task": loss.name,
        "kind": kind,
        "fisher": fisher,
        "seed": seed,
        "skip": skip,
        "dtype": None if dtype is None else str(dtype),
        "precision": precision_name(),
    }
    ranks_agree("set of options", repr(options), "pass the same to fit_curvature on each")
    at_once = rows_at_once(layers, batch_size)  # of all layers, so that groups of them see the same batches
    stream = FisherStream(model, rows, loss, layers, fisher, seed, at_once, dtype, keep)
    sizes = [factor_count(layer, kind) * stream.dtype_of(layer).itemsize for layer in layers]
    groups = [layers] if folder is None else layer_groups(layers, sizes, weights)

    def blocks() -> Iterator[Block]:
        for group in groups:
            yield from _fitted(replace(stream, layers=group), kind)
        if weights_digest(model) != digest:
            raise InputError(
                "the model's weights or buffers change when it is run; make it constant in evaluation mode"
            )

    about = Curvature(
        blocks={},
        uncovered=uncovered,
        rows=len(rows),
        weights_digest=digest,
        data_fingerprint=rows.fingerprint,
        options=options,
        passes=len(groups) * _PASSES[kind],
    )
    if folder is None:
        return replace(about, blocks={block.layer.name: block for block in blocks()})
    _write_together(about, layers, blocks(), make_folder(folder))
    return load_curvature(folder, model, rows, stream=True)


def _write_together(about: Curvature, layers: list[Layer], blocks: Iterator[Block], folder: Path) -> None:
    """Let the first rank write what all ranks fit; where it can not, all are told when they have come to the end."""
    failed: FolderError | None = None
    try:
        if this_rank() == 0:
            write_curvature(about, layers, blocks, folder)
    except FolderError as error:
        if world_size() == 1:
            raise
        failed = error
    deque(blocks, maxlen=0)

    def tell() -> None:
        if failed is not None:
            raise failed

    on_first_rank(tell)


def layer_groups(layers: Iterable[Layer], sizes: Iterable[int], weights: int) -> list[list[Layer]]:
    """Return neighbouring layers whose factors take no more memory than the weights, or one layer.

    Args:
        layers: in their order.
        sizes: bytes of the factors of each.
        weights: bytes.
    """
    groups: list[list[Layer]] = []
    room = 0
    for layer, size in zip(layers, sizes, strict=True):
        if size > room:
            groups.append([])
            room = max(weights, _LEAST_BYTES)
        groups[-1].append(layer)
        room -= size
    return groups


def _fitted(stream: FisherStream, kind: CurvatureKind) -> Iterator[Block]:
    if kind == "diagonal":
        eigenvalues = mean_squares(stream, {layer.name: Basis() for layer in stream.layers})
        return (Block(layer, Basis(), eigenvalues.pop(layer.name)) for layer in stream.layers)
    return _kronecker(stream, refit=kind == "ekfac")


def _kronecker(stream: FisherStream, *, refit: bool) -> Iterator[Block]:
    sides = {
        f"the {side} factor of layer {name!r}": factor
        for name, pair in kronecker_factors(stream).items()
        for side, factor in zip(("input", "output"), pair, strict=True)
    }
    found = iter(eigenbases(sides))
    pairs = {layer.name: (next(found), next(found)) for layer in stream.layers}
    bases = {name: Basis(inputs[1], outputs[1]) for name, (inputs, outputs) in pairs.items()}
    eigenvalues = mean_squares(stream, bases) if refit else {}
    for layer in stream.layers:
        (lambda_A, _, clamped_A), (lambda_S, _, clamped_S) = pairs.pop(layer.name)
        values = eigenvalues.pop(layer.name) if refit else lambda_S[:, :, None] * lambda_A[:, None]
        yield Block(layer, bases.pop(layer.name), values, lambda_A, lambda_S, clamped_A + clamped_S)
