"""Gradient sketches: each row's loss gradient in a few thousand numbers, to find the rows nearest to a query.

DMin (arXiv 2412.08637) compresses normalised per-sample gradients and ranks training rows by inner products with the
query's. Checked in its abstract and in the authors' code (``DMIN/dim_reducer.py``, ``DMIN/engine.py``); departures:

- a sketch is divided by its own norm, the code divides the gradient by its norm before it is compressed. The two agree
  as the size grows; here a row has similarity 1 with itself, so an exact copy of a query is always found first;
- the search is exact, where the paper offers an HNSW index (inner product) as the fast way;
- sketches can be of preconditioned gradients, so that inner products estimate influence.

Axes: g group, b row, o outputs, i inputs, k numbers of a sketch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.curvature import Basis, Curvature, Layer, find_layers, layer_gradients, weights_digest
from unlearn.data import DEFAULT_BATCH, as_rows
from unlearn.detect.damped_curvature import damped_curvature
from unlearn.detect.signed_group_sums import SignedGroupSums
from unlearn.detect.sketch_index import Sketches
from unlearn.errors import InputError
from unlearn.precision import precision_option
from unlearn.tasks import Task, get_task


def gradient_sketches(
    model: nn.Module,
    data: Any,
    *,
    size: int = 4096,
    seed: int = 0,
    skip: str | Iterable[str] = (),
    curvature: Curvature | None = None,
    damping: float | None = None,
    weight_decay: float = 0.0,
    task: str | Task = "classification",
    batch_size: int = DEFAULT_BATCH,
) -> Sketches:
    """Return the compressed gradient of each row's loss, of unit length.

    The gradients of all covered layers are one vector with D entries; see
    :class:`unlearn.detect.signed_group_sums.SignedGroupSums` for the compression and its error: a similarity differs
    from the cosine of the gradients by about 1 / sqrt(size). No more than a few gradients exist at a time. The cost is
    one training epoch of the rows (and that of the curvature's fit where one is given).

    Args:
        model: left as found; run in evaluation mode.
        data: the rows, or the queries, with labels. See :func:`unlearn.data.as_rows`. For a diffusion model these are
            the images at one noise level (:func:`unlearn.models.noised_rows`); see :func:`join_sketches`.
        size: k, numbers of a sketch (4 bytes each).
        seed: of the compression: the same for rows and queries.
        skip: patterns of module or parameter names to leave out, where there is no curvature.
        curvature: G of this model: sketches are then of (G + w + d)^-1/2 g, whose inner products are minus the
            influence (before they are divided by the norms). None: of the gradients g themselves, as in DMin.
        damping: d; a tenth of the curvature's mean eigenvalue if None.
        weight_decay: w of the training objective, where there is a curvature.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time; changes time and memory, not the result.

    Returns:
        Sketches that may be compared with others of the same weights and options.

    Raises:
        StaleCurvatureError: the curvature belongs to other weights or another task.
        InputError: size or batch size below 1, a damping or weight decay or ``skip`` that would be without effect, or a
            row whose gradient is not finite.

    >>> model = nn.Linear(2, 2)
    >>> rows = (torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1, 0]))
    >>> sketches = gradient_sketches(model, rows, size=64)
    >>> [near[0][0] for near in sketches.nearest(sketches, k=1)]
    ['0', '1', '2']
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")
    rows, the_task = as_rows(data), get_task(task)
    roots: Mapping[str, tuple[Basis, Tensor | None]]
    preconditioner: dict[str, Any] | None = None
    if curvature is None:
        if damping is not None or weight_decay:
            raise InputError("damping and weight_decay have no meaning for plain gradients; pass curvature= as well")
        layers = find_layers(model, rows, skip).layers
        roots = {layer.name: (Basis(), None) for layer in layers}
    else:
        if skip:
            raise InputError(f"skip={skip!r} has no meaning beside a curvature; leave it out: the curvature's is used")
        damped = damped_curvature(
            model,
            rows,
            curvature=curvature,
            damping=damping,
            weight_decay=weight_decay,
            task=the_task,
            batch_size=batch_size,
        )
        layers = curvature.layers
        roots = curvature.per_layer(lambda block: (block.basis, (block.eigenvalues + damped.added).rsqrt()))
        preconditioner = curvature.options | {
            "data_fingerprint": curvature.data_fingerprint,
            "damping": damped.damping,
            "weight_decay": damped.weight_decay,
        }
    sums = SignedGroupSums.drawn(sum(_entries(layer) for layer in layers), size, seed)
    options = {
        "size": size,
        "seed": seed,
        "task": the_task.name,
        "weights_digest": weights_digest(model),
        "layers": {layer.name: list(layer.shape) for layer in layers},
        "compression": sums.digest,
        "preconditioner": preconditioner,
        **precision_option(),
    }
    values = torch.zeros(len(rows), size)
    for positions, gradients in layer_gradients(model, rows, the_task, layers, batch_size):
        sketch = _compressed(gradients, layers, roots, sums).double()
        norms = sketch.norm(dim=1, keepdim=True)
        values[positions] = (sketch / norms.where(norms != 0, 1)).float().cpu()
    return Sketches(tuple(rows.ids), values, options)


def _entries(layer: Layer) -> int:
    g, o, i = layer.shape
    return g * o * i


def _compressed(
    gradients: Mapping[str, tuple[Tensor, Tensor]],
    layers: list[Layer],
    roots: Mapping[str, tuple[Basis, Tensor | None]],
    sums: SignedGroupSums,
) -> Tensor:
    """Return P g of a batch of rows, shape (b, k), in the type of the gradients."""
    first = gradients[layers[0].name][1]
    out = first.new_zeros(first.shape[1], sums.size)
    sums = sums.to(first.device)
    start = 0
    for layer in layers:
        basis, root = roots[layer.name]
        a, d = gradients[layer.name]
        if root is not None:
            a, d = a.to(root), d.to(root)
        done = 0
        for part in basis.gradients(a, d):
            scaled = part if root is None else part * root[:, None]
            flat = scaled.transpose(0, 1).flatten(1).to(out)
            sums.add_to(out[done : done + len(flat)], flat, start)
            done += len(flat)
        start += _entries(layer)
    return out
