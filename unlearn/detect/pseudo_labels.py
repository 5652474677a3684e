"""Pseudo-labels: labels that a model of few labelled rows gives to the rest, and their harm in head and features.

LayerMatch (arXiv 2406.14207, abstract) argues that pseudo-labels with errors hurt the linear classification layer while
they still help the feature layers to cluster. Its Grad-ReLU removes their detrimental gradients from that layer during
training. Here the harm of each pseudo-labelled row is measured after training (:func:`unlearn.detect.layer_harm`) and
split into the same two parts; ``layers=`` of :func:`unlearn.repair.apply_changes` edits one part alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from unlearn.data import DEFAULT_BATCH, Rows, as_rows
from unlearn.detect.layer_scores import LayerScores
from unlearn.detect.scores import Scores
from unlearn.errors import InputError, RowNotFoundError, some
from unlearn.predict import predict
from unlearn.training import TrainSettings, train


@dataclass(frozen=True)
class PseudoLabelled:
    """Rows of which some carry a model's labels.

    Attributes:
        rows: all rows: the labelled with their given labels, the others with predicted ones; the given labels are
            their truth where no other truth was known.
        ids: the pseudo-labelled rows, in the order of ``rows``.
        labeller: the model that gave the labels.
        doubt: 1 - p of each of these labels, p the labeller's own probability.
    """

    rows: Rows
    ids: tuple[str, ...]
    labeller: nn.Module
    doubt: Scores

    def expected_wrong(self, trusted: Any) -> int:
        """Return how many of the pseudo-labels are wrong if the labeller errs on them as on the trusted rows.

        The rows must be drawn like the pseudo-labelled ones, with right labels, and not be rows it was trained on.

        Raises:
            InputError: rows without classes.
        """
        rows = as_rows(trusted)
        _check_classes(rows)
        wrong = (predict(self.labeller, rows).argmax(1) != rows.labels).double().mean()
        return round(float(wrong) * len(self.ids))


def pseudo_label(
    model: nn.Module,
    data: Any,
    settings: TrainSettings,
    *,
    labelled: int,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
) -> PseudoLabelled:
    """Train a model on a few of the rows and let it label all others.

    Args:
        model: initial weights; not changed.
        data: rows with classes; the labels of those that are not drawn are kept as truth and not used.
        settings: of the training on the labelled rows.
        labelled: how many rows keep their given label, drawn by seed and row id.
        seed: of the draw, the row order and random layers.
        batch_size: rows at a time in prediction; changes time and memory, not the result.

    Raises:
        InputError: rows without classes, a number of rows that leaves none with or none without a label, or one class
            only among the rows drawn.

    >>> import torch
    >>> rows = Rows.from_tensors(torch.eye(2).repeat(10, 1), torch.tensor([0, 1] * 10))
    >>> made = pseudo_label(nn.Linear(2, 2), rows, TrainSettings(lr=0.5, batch_size=4), labelled=6)
    >>> len(made.ids), int((made.rows.labels != made.rows.truth).sum()), made.expected_wrong(rows)
    (14, 0, 0)
    """
    rows = as_rows(data)
    _check_classes(rows)
    if not 1 <= labelled < len(rows):
        raise InputError(f"labelled is {labelled}; give from 1 to {len(rows) - 1} of the {len(rows)} rows")
    few = rows.sample(labelled, seed, "labelled-rows")
    if len(set(few.labels.tolist())) < 2:
        raise InputError(f"the {labelled} labelled rows are all of one class; label more rows, or take another seed")
    labeller, _ = train(model, few, settings, seed=seed, description="training on the labelled rows")
    unlabelled = rows.without(few.ids)
    probabilities = predict(labeller, unlabelled, batch_size=batch_size).double().softmax(1)
    sure, labels = probabilities.max(1)
    known = rows if rows.truth is not None else rows.with_truth(rows.labels)
    return PseudoLabelled(
        rows=known.relabelled(dict(zip(unlabelled.ids, labels.tolist(), strict=True))),
        ids=tuple(unlabelled.ids),
        labeller=labeller,
        doubt=Scores(unlabelled.ids, (1 - sure).numpy(), "labeller-doubt", {"labelled": labelled, "seed": seed}),
    )


def head_and_features(
    table: LayerScores, *, rows: Iterable[str] | None = None, head: str | None = None
) -> dict[str, Scores]:
    """Return the ``total`` of a layer-wise score, the part of the ``head``, and that of the ``features``: the rest.

    Args:
        table: of :func:`unlearn.detect.layer_harm` or :func:`unlearn.detect.layer_self_influence`.
        rows: the rows wanted, such as the pseudo-labelled; all if None.
        head: name of the classification layer; the last in the table if None.

    Raises:
        InputError: no such layer, or none beside it.
        RowNotFoundError: an id that the table does not have.

    >>> table = LayerScores(("a", "b"), ("0", "2", "4"), np.array([[1.0, 3.0, -2.0], [0.5, 0.0, 4.0]]), "harm")
    >>> {part: scores.values.tolist() for part, scores in head_and_features(table).items()}
    {'total': [2.0, 4.5], 'head': [-2.0, 4.0], 'features': [4.0, 0.5]}
    """
    name = table.layers[-1] if head is None else head
    table.layer(name)
    if len(table.layers) == 1:
        raise InputError(f"the table has no layer beside {name!r}; a model without feature layers can not be split")
    wanted = table.ids if rows is None else tuple(rows)
    known = {row: i for i, row in enumerate(table.ids)}
    missing = [row for row in wanted if row not in known]
    if missing:
        raise RowNotFoundError(f"no rows {some(map(repr, missing))} in the table; its ids look like {table.ids[0]!r}")
    values = table.values[[known[row] for row in wanted]]
    at = table.layers.index(name)
    parts = {"total": values.sum(1), "head": values[:, at], "features": np.delete(values, at, axis=1).sum(1)}
    options = {**table.options, "head": name}
    return {
        part: Scores(wanted, found, table.method if part == "total" else f"{table.method}-{part}", options)
        for part, found in parts.items()
    }


def _check_classes(rows: Rows) -> None:
    if rows.classes is None:
        raise InputError(f"{rows.name} has labels without classes; pseudo-labels are of classes only")
