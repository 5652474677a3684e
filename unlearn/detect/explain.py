"""The training rows that helped and harmed a prediction most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.curvature import Curvature
from unlearn.data import DEFAULT_BATCH, Rows, as_rows
from unlearn.detect.damped_curvature import damped_curvature
from unlearn.detect.influence import influence
from unlearn.errors import InputError, did_you_mean
from unlearn.predict import predict
from unlearn.tasks import Task, get_task

Label = int | float | tuple[float, ...]
LABELS = ("given", "predicted")
DEFAULT_TOP = 8


@dataclass(frozen=True)
class InfluentialRow:
    """A training row and what it does to a query.

    Attributes:
        id: row id.
        given: its label in training.
        influence: of the row on the query; positive is harmful.
        loss_change: of the query if the row is removed from training, to first order: minus the influence by the
            number of training rows.
        suggested: another label that was suggested for it, or None.
        truth: its true label where that is known, else None.
    """

    id: str
    given: Label
    influence: float
    loss_change: float
    suggested: int | None = None
    truth: Label | None = None


@dataclass(frozen=True)
class Explanation:
    """A query, and the training rows that helped and harmed it most.

    Attributes:
        query: row id.
        given: its label.
        predicted: the most likely class; for regression the model's outputs.
        probability: of the predicted class; None for regression.
        label: the label at which the loss is explained.
        loss: of the query at that label.
        rows: number of training rows, n.
        helpful: rows of negative influence, the most helpful first.
        harmful: rows of positive influence, the most harmful first.
        itself: the query's own row where it is a training row with the same input and label; it is in neither list.
        options: what the influence was computed with, such as the damping.
    """

    query: str
    given: Label
    predicted: Label
    probability: float | None
    label: Label
    loss: float
    rows: int
    helpful: tuple[InfluentialRow, ...]
    harmful: tuple[InfluentialRow, ...]
    itself: InfluentialRow | None
    options: Mapping[str, object]


def explain(
    model: nn.Module,
    data: Any,
    queries: Any,
    *,
    top: int = DEFAULT_TOP,
    label: str = "given",
    suggestions: Mapping[str, int] | None = None,
    curvature: Curvature | None = None,
    damping: float | None = None,
    weight_decay: float = 0.0,
    task: str | Task = "classification",
    batch_size: int = DEFAULT_BATCH,
) -> tuple[Explanation, ...]:
    """Return for each query the training rows of the largest influence on its loss (:func:`unlearn.influence`).

    Helpful rows lower the query's loss, harmful rows raise it. Rows without influence are in neither list, so that
    these may be shorter than ``top``.

    Args:
        model: left as found; run in evaluation mode.
        data: the training rows, with their given labels. See :func:`unlearn.data.as_rows`.
        queries: the rows whose predictions are explained; test rows or training rows.
        top: length of each list.
        label: ``given`` explains the loss at the query's label: what made the model right or wrong; ``predicted`` the
            loss at the class that the model predicts: what made it say so, and needs no label that is right.
        suggestions: labels suggested for training rows, by id (:func:`unlearn.suggest_labels`); shown beside the rows,
            without effect on the lists.
        curvature: of this model's weights; fitted on ``data`` if None.
        damping: a tenth of the curvature's mean eigenvalue if None.
        weight_decay: of the training objective.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time; changes time and memory, not the result.

    Raises:
        StaleCurvatureError: the curvature belongs to other weights or another task.
        InputError: ``top`` below 1, an unknown ``label``, or ``predicted`` where there are no classes.

    >>> model, x = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> data = (x, torch.tensor([0, 1, 1]))  # row 1 has a wrong label
    >>> (found,) = explain(model, data, (x[:1], torch.tensor([0])))
    >>> found.itself.id, [row.id for row in found.helpful], [row.id for row in found.harmful]
    ('0', [], ['1'])
    """
    rows, query_rows, the_task = as_rows(data), as_rows(queries), get_task(task)
    if top < 1:
        raise InputError(f"top is {top}; give a number of rows of at least 1")
    if label not in LABELS:
        raise InputError(f"unknown label {label!r}; {did_you_mean(label, LABELS)}")
    if label == "predicted" and query_rows.classes is None:
        raise InputError(f"{query_rows.name} has numbers for labels, no predicted class; pass label='given'")
    damped = damped_curvature(
        model,
        rows,
        curvature=curvature,
        damping=damping,
        weight_decay=weight_decay,
        task=the_task,
        batch_size=batch_size,
    )
    outputs = predict(model, query_rows, batch_size=batch_size)
    asked = query_rows if label == "given" else _at_predictions(query_rows, outputs)
    matrix = influence(
        model,
        rows,
        asked,
        curvature=damped.curvature,
        damping=damped.damping,
        weight_decay=weight_decay,
        task=the_task,
        batch_size=batch_size,
    )
    losses = the_task.loss(outputs, asked.labels).double()
    own = _own_positions(rows, query_rows)
    found = []
    for q, (values, at) in enumerate(zip(matrix.double(), own, strict=True)):
        others = values.clone()
        if at is not None:
            others[at] = 0.0
        helpful, harmful = _largest(-others, top), _largest(others, top)
        classes = query_rows.classes is not None
        found.append(
            Explanation(
                query=query_rows.ids[q],
                given=_plain(query_rows.labels[q]),
                predicted=int(outputs[q].argmax()) if classes else _plain(outputs[q]),
                probability=float(outputs[q].double().softmax(0).max()) if classes else None,
                label=_plain(asked.labels[q]),
                loss=float(losses[q]),
                rows=len(rows),
                helpful=tuple(_row(rows, i, values, suggestions) for i in helpful),
                harmful=tuple(_row(rows, i, values, suggestions) for i in harmful),
                itself=None if at is None else _row(rows, at, values, suggestions),
                options={"label": label, **damped.options},
            )
        )
    return tuple(found)


def _at_predictions(rows: Rows, outputs: Tensor) -> Rows:
    """Return the rows with the predicted classes for labels; these may be classes that no label among them names."""
    inputs, _ = rows.batch(torch.arange(len(rows)))
    return Rows.from_tensors(inputs, outputs.argmax(1), ids=rows.ids, classes=outputs.shape[1], name=rows.name)


def _own_positions(rows: Rows, queries: Rows) -> list[int | None]:
    """Return where each query is among the training rows; an id alone may be a row number, so input and label count."""
    shared = [row for row in queries.ids if row in rows]
    if not shared:
        return [None] * len(queries)
    here, there = rows.only(shared).digests, queries.only(shared).digests
    at = dict(zip(shared, rows.positions(shared).tolist(), strict=True))
    return [at[row] if row in at and here[row] == there[row] else None for row in queries.ids]


def _largest(values: Tensor, top: int) -> list[int]:
    """Return the positions of the largest positive values; equal values in the order of the rows."""
    order = values.argsort(descending=True, stable=True)[:top]
    return [i for i in order.tolist() if values[i] > 0]


def _row(rows: Rows, i: int, values: Tensor, suggestions: Mapping[str, int] | None) -> InfluentialRow:
    return InfluentialRow(
        id=rows.ids[i],
        given=_plain(rows.labels[i]),
        influence=float(values[i]),
        loss_change=-float(values[i]) / len(rows),
        suggested=(suggestions or {}).get(rows.ids[i]),
        truth=None if rows.truth is None else _plain(rows.truth[i]),
    )


def _plain(label: Tensor) -> Label:
    value: Any = label.tolist()
    return tuple(value) if isinstance(value, list) else value
