"""How rows look to a person: as pictures where they are some, as the text they are read from, else as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from unlearn.data import Rows
from unlearn.data.columns import column_names
from unlearn.errors import one_line
from unlearn.inputs import named_tensors
from unlearn.pipeline.run import Run

SHOWN_COLUMNS = 4
SHOWN_NUMBERS = 12
SHOWN_CHARACTERS = 160
EXTREMES = "the most extreme columns, in standard deviations from the training mean"


@dataclass(frozen=True)
class Appearance:
    """How the rows of one data set are shown.

    Attributes:
        data: the training rows; the text of a table's row tells how far it is from their mean.
        names: of a table's columns, or None.

    >>> rows = Rows.from_tensors(torch.tensor([[1.0, 2.0], [3.0, 8.0]]), torch.tensor([0, 1]))
    >>> Appearance(rows, ("width", "height")).texts(rows.only(["1"]))
    {'1': 'width +1.0, height +1.0'}
    """

    data: Rows
    names: Sequence[str] | None = None

    @classmethod
    def of(cls, run: Run) -> Appearance:
        """Return how the rows of a run are shown."""
        return cls(run.data, column_names(run.recipe.data.source))

    @cached_property
    def pictured(self) -> bool:
        """Whether the rows are grey or coloured pictures."""
        first = _inputs(self.data.only(self.data.ids[:1]))
        return first.ndim == 4 and first.shape[1] in (1, 3)

    @cached_property
    def text_shows(self) -> str:
        """What the texts show."""
        if self.data.texts(torch.arange(1)) is not None:
            return "the text"
        return "the first numbers" if self._scale is None else EXTREMES

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation of a table's columns; None for anything else."""
        train = _inputs(self.data)
        if train.ndim != 2 or not train.is_floating_point():
            return None
        deviation = train.double().std(0, correction=0)
        return train.double().mean(0), torch.where(deviation > 0, deviation, float("inf"))

    def pictures(self, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """Return the inputs by row id, for :func:`unlearn.report.picture`; nothing where they are no pictures."""
        if not self.pictured or not len(rows):
            return {}
        return dict(zip(rows.ids, _inputs(rows).numpy(), strict=True))

    def texts(self, rows: Rows) -> dict[str, str]:
        """Return a line for each row: its text, of a table the most extreme columns, else the first numbers."""
        if not len(rows):
            return {}
        written = rows.texts(torch.arange(len(rows)))
        if written is not None:
            return {row: one_line(text, SHOWN_CHARACTERS) for row, text in zip(rows.ids, written, strict=True)}
        lines = dict(zip(rows.ids, _inputs(rows), strict=True))
        if self._scale is None:
            return {row: _numbers(values) for row, values in lines.items()}
        mean, deviation = self._scale
        return {row: _extremes((values.double() - mean) / deviation, self.names) for row, values in lines.items()}


def _inputs(rows: Rows) -> Tensor:
    """Return the inputs; of several tensors the first."""
    return next(iter(named_tensors(rows.batch(torch.arange(len(rows)))[0]).values()))


def _extremes(z: Tensor, names: Sequence[str] | None) -> str:
    """Return the columns with the largest absolute values.

    >>> _extremes(torch.tensor([0.1, -3.0, 2.0]), ["width", "height", "age"])
    'height -3.0, age +2.0, width +0.1'
    """
    most = z.abs().argsort(descending=True, stable=True)[:SHOWN_COLUMNS].tolist()
    return ", ".join(f"{names[k] if names else f'column {k}'} {z[k]:+.1f}" for k in most)


def _numbers(values: Tensor) -> str:
    """Return the first numbers of an input.

    >>> _numbers(torch.arange(20))
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 8 more'
    """
    flat = values.flatten().tolist()
    rest = len(flat) - SHOWN_NUMBERS
    return ", ".join(f"{value:.3g}" for value in flat[:SHOWN_NUMBERS]) + (f" and {rest} more" if rest > 0 else "")
