"""Rows of a language model taken apart into their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unlearn.data.as_rows import as_rows
from unlearn.data.rows import Rows
from unlearn.errors import InputError
from unlearn.inputs import Inputs

IGNORED = -100


class _Again:
    """The inputs of other rows, each as often as it is asked for."""

    def __init__(self, rows: Rows, places: Tensor) -> None:
        self.rows, self.places = rows, places

    def inputs(self, positions: Tensor) -> Inputs:
        return self.rows.batch(self.places[positions])[0]


def token_rows(data: Any, ids: Sequence[str] | None = None) -> Rows:
    """Return a row for each token that counts in the loss of a language model: the whole sequence, that label alone.

    Its loss is that of the token in its context, so every score of rows is one of tokens. The gradient of a sequence is
    the mean of those of its tokens. A score takes as many passes as there are tokens: choose few sequences.

    Args:
        data: rows of a language model, labels (n, positions) with -100 where none counts.
        ids: which rows; all if None.

    Returns:
        Rows with the ids ``<row>@<position>``, the position being that whose output predicts the token.

    Raises:
        InputError: labels that are not one for each position.
        RowNotFoundError: an id that is not there.

    >>> rows = as_rows(({"input_ids": torch.tensor([[3, 4, 0]])}, torch.tensor([[4, 5, -100]])))
    >>> found = token_rows(rows)
    >>> found.ids, found.labels.tolist()
    (('0@0', '0@1'), [[4, -100, -100], [-100, 5, -100]])
    """
    rows = as_rows(data) if ids is None else as_rows(data).only(ids)
    if rows.labels.ndim != 2 or rows.labels.is_floating_point():
        raise InputError(
            f"labels of {rows.name} have shape {tuple(rows.labels.shape)} and type {rows.labels.dtype}; tokens need "
            "one integer for each position"
        )
    places, positions = (rows.labels != IGNORED).nonzero(as_tuple=True)
    labels = torch.full((len(places), rows.labels.shape[1]), IGNORED)
    labels[torch.arange(len(places)), positions] = rows.labels[places, positions]
    names = [f"{rows.ids[k]}@{t}" for k, t in zip(places.tolist(), positions.tolist(), strict=True)]
    return Rows.from_source(_Again(rows, places), labels, length=len(places), ids=names, name=f"tokens of {rows.name}")
