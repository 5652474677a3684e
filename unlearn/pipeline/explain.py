"""Predictions of a run's original explained by its training rows, with what a page needs to show these rows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unlearn.data import Rows
from unlearn.data.columns import column_names
from unlearn.detect import margin_trajectory
from unlearn.detect.explain import DEFAULT_TOP, Explanation, explain
from unlearn.errors import InputError, RowNotFoundError
from unlearn.inputs import one_tensor
from unlearn.pipeline.run import FORMAT, Run
from unlearn.pipeline.stages import suggestions_of
from unlearn.predict import predict
from unlearn.tasks import margins
from unlearn.training import TrainingRecord

SHOWN_COLUMNS = 4
SHOWN_NUMBERS = 12
_NEAR = 3


def explain_run(
    run: Run, queries: Sequence[str], *, top: int = DEFAULT_TOP, label: str = "given"
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Explain predictions of a run's original; nothing is trained.

    The curvature is read from the run folder, or fitted and kept there. It is damped as for an edit, by the training
    horizon, where the record gives one: with less, the changes of the loss come out several times too large.

    Args:
        run: with a trained original.
        queries: ids of test rows or training rows.
        top: helpful and harmful rows to list for each.
        label: ``given`` or ``predicted``, see :func:`unlearn.detect.explain.explain`.

    Returns:
        The explanations as JSON-able data in the order of ``queries``, and arrays for :func:`unlearn.report.picture`
        by row id; where inputs are no pictures, rows carry a text instead.

    Raises:
        RowNotFoundError: an id is neither a test row nor a training row.
        InputError: no query, one named twice, or a bad option.
        FolderError: the original is not trained.
    """
    places = {row: "test" if row in run.test else "training" for row in queries}
    if not queries or len(places) != len(queries):
        raise InputError(f"queries are {', '.join(queries) or 'none'}; name at least one row, and each once")
    for row in queries:
        if row not in run.test and row not in run.data:
            raise RowNotFoundError(_not_found(row, run))
    model, record = run.original
    curvature, suspects = run.curvature(), _suspects(run)
    found: dict[str, Explanation] = {}
    for place, rows in (("test", run.test), ("training", run.data)):
        asked = [row for row in queries if places[row] == place]
        if asked:
            explained = explain(
                model,
                run.data,
                rows.only(asked),
                top=top,
                label=label,
                suggestions=suspects,
                curvature=curvature,
                damping=horizon_damping(record),
                weight_decay=record.weight_decay,
                task=record.task,
            )
            found |= {one.query: one for one in explained}
    facts = [{"place": places[row], **asdict(found[row])} for row in queries]
    shown = _shown(facts)
    parts = [
        run.data.only(row for row in shown if row in run.data),
        run.test.only(row for row in shown if row in run.test),
    ]
    images = _pictures(parts)
    about = {
        "format": FORMAT,
        "recipe": run.recipe.name,
        "data": run.data.name,
        "label": label,
        "truth_known": run.data.truth is not None,
    }
    if not images:
        about["text_shows"], texts = _texts(run.data, parts, column_names(run.recipe.data.source))
        for one in facts:
            one["text"] = texts[one["query"]]
            for row in [*one["helpful"], *one["harmful"]]:
                row["text"] = texts[row["id"]]
    return {**about, "explanations": facts}, images


def horizon_damping(record: TrainingRecord) -> float | None:
    """Return 2 / T (:meth:`unlearn.TrainingRecord.damping`); None for Adam, whose damping is no number.

    >>> horizon_damping(TrainingRecord("sgd", 0.1, 200)), horizon_damping(TrainingRecord("adam", 0.1, 200))
    (0.1, None)
    """
    return None if record.optimizer == "adam" else record.damping()


def _not_found(row: str, run: Run) -> str:
    ids = [*run.test.ids, *run.data.ids]
    near = difflib.get_close_matches(row, ids, n=_NEAR, cutoff=0.6)
    hint = f"near: {', '.join(near)}" if near else f"its ids look like {ids[0]!r}"
    return f"{row!r} is neither a test row nor a training row of {run.data.name}; {hint}"


def _suspects(run: Run) -> dict[str, int]:
    """Return suggested labels of the rows whose given label lost: on average in training, or now if not recorded."""
    if run.trajectory is not None:
        margin = -torch.from_numpy(margin_trajectory(run.trajectory, run.data).values)
    else:
        margin = margins(predict(run.original[0], run.data), run.data.labels)
    lost = {row for row, value in zip(run.data.ids, margin.tolist(), strict=True) if value < 0}
    return {row: suggested for row, suggested in suggestions_of(run).items() if row in lost}


def _shown(facts: Iterable[dict[str, Any]]) -> list[str]:
    """Return the ids of all rows that are shown, each once."""
    ids = [row for one in facts for row in (one["query"], *(r["id"] for r in (*one["helpful"], *one["harmful"])))]
    return list(dict.fromkeys(ids))


def _inputs(rows: Rows) -> Tensor:
    return one_tensor(rows.batch(torch.arange(len(rows)))[0], "an explanation")


def _pictures(parts: Sequence[Rows]) -> dict[str, npt.NDArray[Any]]:
    """Return the inputs by id where they are grey or coloured pictures, else nothing."""
    found: dict[str, npt.NDArray[Any]] = {}
    for rows in parts:
        inputs = _inputs(rows).numpy() if len(rows) else np.zeros((0, 1, 1, 1))
        if inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
            return {}
        found |= dict(zip(rows.ids, inputs, strict=True))
    return found


def _texts(data: Rows, parts: Sequence[Rows], names: Sequence[str] | None) -> tuple[str, dict[str, str]]:
    """Return a line for each row, and what the lines show: of a table the most extreme columns, else first numbers."""
    train = _inputs(data)
    lines = {row: values for rows in parts if len(rows) for row, values in zip(rows.ids, _inputs(rows), strict=True)}
    if train.ndim != 2 or not train.is_floating_point():
        return "the first numbers", {row: _numbers(values) for row, values in lines.items()}
    mean, deviation = train.double().mean(0), train.double().std(0, correction=0)
    scale = torch.where(deviation > 0, deviation, float("inf"))
    extremes = {row: _extremes((values.double() - mean) / scale, names) for row, values in lines.items()}
    return "the most extreme columns, in standard deviations from the training mean", extremes


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
