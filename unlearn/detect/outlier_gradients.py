"""Outlier gradients: rows whose last-layer gradient lies far from those of the others (arXiv 2405.03869).

Axes: g group, b row, t position, i inputs, o outputs, f features of the forest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from sklearn.ensemble import IsolationForest
from sklearn.random_projection import SparseRandomProjection
from torch import Tensor, nn

from unlearn.curvature import Basis, Layer, find_layers, layer_gradients
from unlearn.curvature.layers import last_called
from unlearn.data import DEFAULT_BATCH, Rows, as_rows, draws
from unlearn.detect.gradient_norms import absolute_sums, squared_norms
from unlearn.detect.scores import Scores
from unlearn.errors import InputError, did_you_mean
from unlearn.precision import precision_option
from unlearn.tasks import Task, get_task

OutlierDetector = Literal["isolation-forest", "l1", "l2"]
Features = npt.NDArray[np.float32]

POOL_ROWS = 4096
_TREE_ROWS = 256
_FORWARD = 1 / 3  # of a training epoch: forward 1, backward 2; the gradient is not pulled back below the last layer


def outlier_gradients(
    model: nn.Module,
    data: Any,
    *,
    detector: OutlierDetector = "isolation-forest",
    max_features: int = 10_000,
    trees: int = 100,
    seed: int = 0,
    skip: str | Iterable[str] = (),
    task: str | Task = "classification",
    batch_size: int = DEFAULT_BATCH,
) -> Scores:
    """Return how far each row's last-layer gradient, at its given label, is an outlier (arXiv 2405.03869, algorithm 1).

    The paper ranks one gradient a row by one of three detectors and removes the first k. Here the ranking is the
    result, and the number to act on is another decision. Departures, as against the authors' code:

    - the gradient of the bias belongs to the last layer too (the code takes the weight's alone);
    - the forest is grown on at most 4,096 rows, drawn by seed and id: each of its trees sees 256 of them anyway. So
      memory does not grow with the data;
    - gradients are divided by the largest entry in those rows, since scikit-learn takes a feature with a range below
      1e-7 for constant; a forest is indifferent to a common scale;
    - gradients with more than ``max_features`` entries are projected to so many by a seeded sparse random projection
      (the code does so for CIFAR-100's 51,200, to a number that depends on the data).

    Args:
        model: left as found; run in evaluation mode. Its last layer is the one called last in a forward pass.
        data: the rows, with the labels to be judged. See :func:`unlearn.data.as_rows`.
        detector: ``isolation-forest``: the anomaly score of an isolation forest, from 0 to 1; ``l1``: the sum of the
            gradient's absolute values; ``l2``: its Euclidean norm.
        max_features: entries of a gradient that the forest takes as they are.
        trees: of the forest.
        seed: of the forest and the projection.
        skip: patterns of module or parameter names to leave out; the last layer is chosen among the others.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time; changes time and memory, not the result.

    Returns:
        Scores whose options hold ``detector``, ``layer``, ``features`` (entries of a gradient), ``cost_epochs`` (in
        training epochs) and for the forest ``trees``, ``seed``, ``pool_rows`` and ``projected_to`` (None: not).

    Raises:
        UnsupportedLayerError: a trained parameter belongs to no covered layer and was not skipped.
        InputError: an unknown detector, a number below 1, or a label outside the model's classes.

    >>> model, inputs = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> _ = nn.init.eye_(model.weight)
    >>> scores = outlier_gradients(model, (inputs, torch.tensor([0, 1, 1])), detector="l2")  # row 1 is wrong
    >>> scores.top(1)[0][0], scores.options["layer"], scores.options["features"]
    ('1', '', 4)
    """
    if detector not in get_args(OutlierDetector):
        raise InputError(f"unknown detector {detector!r}; {did_you_mean(detector, get_args(OutlierDetector))}")
    for name, value in (("max_features", max_features), ("trees", trees), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} is {value}; give at least 1")
    rows, the_task = as_rows(data), get_task(task)
    layer = last_called(find_layers(model, rows, skip).layers)
    g, o, i = layer.shape
    options: dict[str, object] = {
        "detector": detector,
        "layer": layer.name,
        "features": g * o * i,
        **precision_option(),
    }
    if detector == "isolation-forest":
        forest = _Forest(model, rows, the_task, layer, batch_size, max_features, trees, seed)
        values = forest.scores()
        options |= {
            "trees": trees,
            "seed": seed,
            "pool_rows": len(forest.pool),
            "projected_to": max_features if forest.projection is not None else None,
            "cost_epochs": _FORWARD * (1 + len(forest.pool) / len(rows)),
        }
    else:
        found = torch.zeros(len(rows), dtype=torch.float64)
        for positions, gradients in layer_gradients(model, rows, the_task, [layer], batch_size):
            a, d = gradients[layer.name]
            found[positions] = (absolute_sums(a, d) if detector == "l1" else squared_norms(a, d).sqrt()).cpu()
        values = found.numpy()
        options["cost_epochs"] = _FORWARD
    return Scores(rows.ids, values, f"outlier-gradients-{detector}", options)


class _Forest:
    """An isolation forest over last-layer gradients, grown on a pool of rows."""

    def __init__(
        self,
        model: nn.Module,
        rows: Rows,
        task: Task,
        layer: Layer,
        batch_size: int,
        max_features: int,
        trees: int,
        seed: int,
    ) -> None:
        self._model, self._rows, self._task, self._layer, self._batch_size = model, rows, task, layer, batch_size
        g, o, i = layer.shape
        self.projection: SparseRandomProjection | None = None
        if g * o * i > max_features:
            self.projection = SparseRandomProjection(
                n_components=max_features, random_state=_small_seed(seed, "projection")
            )
            self.projection.fit(np.zeros((1, g * o * i), dtype=np.float32))
        drawn = rows.sample(POOL_ROWS, seed, "isolation-forest-pool")
        self.pool = drawn.only(sorted(drawn.ids))  # the forest draws by position, so these are in the order of ids
        features = np.concatenate([part for _, part in self._features(self.pool)])
        self._scale = float(np.abs(features).max()) or 1.0
        features /= self._scale
        self._forest = IsolationForest(
            n_estimators=trees,
            max_samples=min(_TREE_ROWS, len(self.pool)),
            random_state=_small_seed(seed, "isolation-forest"),
        ).fit(features)

    def scores(self) -> npt.NDArray[np.float64]:
        """Anomaly score of each row, from 0 to 1 (larger: isolated by fewer splits)."""
        values = np.zeros(len(self._rows))
        for positions, features in self._features(self._rows):
            values[positions.numpy()] = -self._forest.score_samples(features / self._scale)
        return values

    def _features(self, rows: Rows) -> Iterator[tuple[Tensor, Features]]:
        """Yield positions and gradients (b, f), batch by batch."""
        for positions, gradients in layer_gradients(self._model, rows, self._task, [self._layer], self._batch_size):
            a, d = gradients[self._layer.name]
            parts = [part.transpose(0, 1).flatten(1).float().cpu().numpy() for part in Basis().gradients(a, d)]
            if self.projection is not None:
                parts = [np.asarray(self.projection.transform(part), dtype=np.float32) for part in parts]
            yield positions, np.concatenate(parts)


def _small_seed(seed: int, stream: str) -> int:
    """Return a seed that scikit-learn takes."""
    return draws.derived_seed(seed, stream) % 2**32
