"""A score layer by layer: a table whose sum over layers is the score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from unlearn.detect.scores import Scores
from unlearn.errors import InputError, RowNotFoundError, did_you_mean, some


@dataclass(frozen=True)
class LayerScores:
    """What each layer adds to the score of each row; all values are finite.

    Attributes:
        ids: row ids, (n,).
        layers: names of the layers, in the order of the model.
        values: float64, (n, layers).
        method: name of the score that they sum to.
        options: what it was computed with.

    >>> table = LayerScores(("a", "b"), ("0", "2"), np.array([[1.0, 3.0], [0.5, 0.0]]), "harm")
    >>> table.total().top(1), table.of_layers(["a"])
    ([('a', 4.0)], {'0': 1.0, '2': 3.0})
    """

    ids: Sequence[str]
    layers: tuple[str, ...]
    values: npt.NDArray[np.float64]
    method: str
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.ids), len(self.layers)):
            raise InputError(
                f"{len(self.ids)} ids, {len(self.layers)} layers and values of shape {self.values.shape}; give one "
                "value for each row and layer"
            )
        bad = np.argwhere(~np.isfinite(self.values))
        if len(bad):
            row, layer = bad[0]
            raise InputError(
                f"score {self.method!r} of row {self.ids[row]!r} in layer {self.layers[layer]!r} is "
                f"{self.values[row, layer]}; check its input"
            )

    def total(self) -> Scores:
        """Return the score: the sum over layers."""
        values = np.zeros(len(self.ids))
        for column in self.values.T:
            values += column
        return Scores(self.ids, values, self.method, self.options)

    def layer(self, name: str) -> Scores:
        """Return the part of one layer as a score.

        Raises:
            InputError: no such layer.
        """
        if name not in self.layers:
            raise InputError(f"no layer {name!r} in the table; {did_you_mean(name, self.layers)}")
        part = self.values[:, self.layers.index(name)]
        return Scores(self.ids, part, f"{self.method}-layer", {**self.options, "layer": name})

    def of_layers(self, rows: Iterable[str] | None = None) -> dict[str, float]:
        """Return what each layer adds to the score of these rows together (all if None).

        Raises:
            RowNotFoundError: an id that the table does not have.
        """
        chosen = list(self.ids) if rows is None else list(rows)
        where = {row: i for i, row in enumerate(self.ids)}
        missing = [row for row in chosen if row not in where]
        if missing:
            raise RowNotFoundError(
                f"no rows {some(map(repr, missing))} in the table; its ids look like {self.ids[0]!r}"
            )
        sums = self.values[[where[row] for row in chosen]].sum(0)
        return dict(zip(self.layers, sums.tolist(), strict=True))
