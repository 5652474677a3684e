"""Rows to estimate a curvature on, drawn so that their mean stands for the mean over all rows.

A factor or a product with G is a mean over rows, and G belongs to the mean loss. So every method here gives each row
the same chance, count / n: over seeds the mean over the drawn rows is the mean over all rows, and what a method can win
is variance. It wins where rows of a stratum are alike in what they add to G, since the share of each stratum is held
to within one row (Cochran, Sampling Techniques, 3rd ed., sections 5.3 and 8.4).
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from unlearn.curvature.layers import find_layers, last_called
from unlearn.curvature.taps import Taps, rows_at_once
from unlearn.data import DEFAULT_BATCH, Rows, as_rows, draws
from unlearn.errors import InputError, did_you_mean
from unlearn.predict import predict
from unlearn.progress import track
from unlearn.tasks import Task, get_task

SamplingMethod = Literal["random", "stratified", "features", "logits"]
Positions = npt.NDArray[np.int64]

CLUSTERS = 32
LEVELS = 8

_NEEDS_CLASSES = ("stratified", "logits")
_STREAM = "curvature-rows"


def curvature_rows(
    model: nn.Module,
    data: Any,
    count: int,
    *,
    method: SamplingMethod = "random",
    seed: int = 0,
    task: str | Task = "classification",
    batch_size: int = DEFAULT_BATCH,
) -> Rows:
    """Return the view of ``count`` rows to fit a curvature on, or to take products with G over, in their order.

    ``features`` and ``logits`` take their names and their aim from arXiv 2510.26776, which replaces a random subset in
    the estimate of the Hessian by a small representative one, chosen by the distribution of features or of logits.
    What was at hand is its abstract, not its algorithms: strata, their numbers and the draw inside them are choices
    made here. In particular no row is preferred for lying near a centre or for being uncertain: that would bias G,
    which has no weights to make up for it.

    Args:
        model: left as found; run in evaluation mode by ``features`` and ``logits``, and not at all by the others.
        data: the rows. See :func:`unlearn.data.as_rows`.
        count: rows to draw, without replacement.
        method: ``random``: any; ``stratified``: each class, by given label, has its share; ``features``: each of 32
            clusters (k-means) of the inputs of the last covered layer, averaged over positions, has its share;
            ``logits``: so has each of 8 levels of uncertainty in each predicted class. Uncertainty is the trace of the
            output Fisher, the part of a row's Gauss-Newton matrix that its logits decide (1 - sum_c p_c^2).
            ``random`` and ``stratified`` cost nothing; ``features`` and ``logits`` a forward pass over all rows, a
            third of a training epoch. ``features`` holds the features of all rows.
        seed: of the draws and of k-means. Draws go by (seed, row id): the rows drawn do not depend on the order of the
            rows, and not on the batch size but for the rounding of features and logits at the border of strata.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time.

    Raises:
        InputError: an unknown method, one that needs classes where there are none, a count that is not from 1 to the
            number of rows, or outputs that are not finite.
        UnsupportedLayerError: ``features`` of a model without a covered matrix layer.

    >>> data = torch.zeros(6, 2), torch.tensor([0, 0, 0, 0, 1, 1])
    >>> curvature_rows(nn.Linear(2, 2), data, 3, method="stratified").labels.tolist()
    [0, 0, 1]
    """
    rows, loss = as_rows(data), get_task(task)
    if method not in get_args(SamplingMethod):
        raise InputError(f"unknown method {method!r}; {did_you_mean(method, get_args(SamplingMethod))}")
    if not 1 <= count <= len(rows):
        raise InputError(f"count is {count} and {rows.name} has {len(rows)} rows; give a count from 1 to {len(rows)}")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")
    if method in _NEEDS_CLASSES and rows.classes is None:
        raise InputError(f"method {method!r} needs class labels and {rows.name} has none; use 'random' or 'features'")
    if method == "random":
        return rows.sample(count, seed, _STREAM)
    ordered = rows.only(sorted(rows.ids))
    if method == "stratified":
        strata = ordered.labels.numpy()
    elif method == "features":
        strata = _feature_clusters(model, ordered, loss, min(CLUSTERS, count), seed, batch_size)
    else:
        strata = _uncertainty_levels(model, ordered, loss, batch_size)
    start = draws.derived_seed(seed, _STREAM, method) % len(rows)
    drawn = systematic_sample(strata, draws.uniform(seed, ordered.ids, _STREAM), count, start)
    return rows.at(rows.positions([ordered.ids[i] for i in drawn]).sort().values)


def systematic_sample(strata: Positions, draw: npt.NDArray[np.float64], count: int, start: int) -> Positions:
    """Return positions at equal distances along the rows sorted by stratum and, inside a stratum, by draw.

    Over the n starts each row is drawn exactly ``count`` times; with any start a stratum of m rows has count m / n of
    them, rounded up or down.

    Args:
        strata: number of each row's stratum, shape (n,).
        draw: a random number of each row, shape (n,).
        count: rows to draw, from 1 to n.
        start: from 0 to n - 1; random, for a random sample.

    >>> [systematic_sample(np.array([1, 0, 1, 0]), np.array([0.4, 0.3, 0.2, 0.1]), 2, k).tolist() for k in range(4)]
    [[3, 2], [3, 2], [1, 0], [1, 0]]
    """
    n = len(strata)
    found: Positions = np.lexsort((draw, strata))[(np.arange(count) * n + start) // count]
    return found


def _feature_clusters(model: nn.Module, rows: Rows, task: Task, clusters: int, seed: int, batch_size: int) -> Positions:
    """Return the cluster of each row's features, of the layer that is called last."""
    last = last_called(find_layers(model, rows).layers)
    device = next(model.parameters()).device
    size = rows_at_once([last], batch_size)
    features = []
    for _, inputs, labels in track(rows.batches(size, device), "features", math.ceil(len(rows) / size)):
        taps = Taps(model, [last])
        task.check(taps.run(inputs).detach(), labels)
        features.append(taps.inputs(last).mean(2).transpose(0, 1).flatten(1).cpu())
    means = KMeans(clusters, n_init=1, random_state=draws.derived_seed(seed, _STREAM, "k-means") % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct features than clusters: fewer strata
        found: Positions = means.fit_predict(torch.cat(features).numpy()).astype(np.int64)
    return found


def _uncertainty_levels(model: nn.Module, rows: Rows, task: Task, batch_size: int) -> Positions:
    """Return a number for each predicted class and level of the output Fisher's trace in it."""
    outputs = predict(model, rows, batch_size=batch_size).double()
    task.check(outputs, rows.labels)
    pairs = zip(torch.split(outputs, batch_size), torch.split(rows.labels, batch_size), strict=True)
    trace = torch.cat([_fisher_trace(task, *pair) for pair in pairs]).numpy()
    flat = outputs.reshape(len(outputs), -1)
    predicted = (flat.argmax(1) if flat.shape[1] > 1 else flat[:, 0] > 0).long().numpy()
    order = np.lexsort((trace, predicted))
    classes, first, size = np.unique(predicted[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, size)
    strata = np.empty(len(order), dtype=np.int64)
    strata[order] = np.repeat(classes, size) * LEVELS + rank * LEVELS // np.repeat(size, size)
    return strata


def _fisher_trace(task: Task, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the trace of each row's output Fisher, shape (b,); one column at a time, for many outputs."""
    trace, size = outputs.new_zeros(len(outputs)), outputs[0].numel()
    for k in range(size):
        unit = torch.zeros_like(outputs)
        unit.reshape(len(outputs), size)[:, k] = 1
        trace += task.fisher_product(outputs, labels, unit).reshape(len(outputs), size)[:, k]
    return trace
