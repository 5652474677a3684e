"""Predictions of a run's original explained by its training rows, with what a page needs to show these rows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy.typing as npt
import torch

from unlearn.detect import margin_trajectory
from unlearn.detect.explain import DEFAULT_TOP, Explanation, explain
from unlearn.errors import InputError, RowNotFoundError
from unlearn.pipeline.appearance import Appearance
from unlearn.pipeline.run import FORMAT, Run, horizon_damping
from unlearn.pipeline.stages import suggestions_of
from unlearn.predict import predict
from unlearn.tasks import margins

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
    shown, appearance = _shown(facts), Appearance.of(run)
    parts = [rows.only(row for row in shown if row in rows) for rows in (run.data, run.test)]
    images = {row: array for rows in parts for row, array in appearance.pictures(rows).items()}
    about = {
        "format": FORMAT,
        "recipe": run.recipe.name,
        "data": run.data.name,
        "label": label,
        "truth_known": run.data.truth is not None,
    }
    if not images:
        about["text_shows"] = appearance.text_shows
        texts = {row: text for rows in parts for row, text in appearance.texts(rows).items()}
        for one in facts:
            one["text"] = texts[one["query"]]
            for row in [*one["helpful"], *one["harmful"]]:
                row["text"] = texts[row["id"]]
    return {**about, "explanations": facts}, images


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
