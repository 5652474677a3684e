"""Explanations of predictions as one HTML file: no request, no script, nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from unlearn.errors import InputError
from unlearn.report.pictures import picture
from unlearn.report.rendering import FORMAT, environment


def render_explanations(facts: Mapping[str, Any], images: Mapping[str, npt.NDArray[Any]] | None = None) -> str:
    """Return explanations as one self-contained HTML page, in the style of the report.

    Rows are shown as a grid of pictures where the query has one, else as tables.

    Args:
        facts: what :func:`unlearn.pipeline.explain.explain_run` returns first.
        images: arrays for :func:`unlearn.report.picture` by row id.

    Raises:
        InputError: facts of another format, or an array that is not a picture.

    >>> query = {"query": "test-7", "given": 4, "predicted": 9, "label": 4, "rows": 3, "helpful": [], "harmful": []}
    >>> page = render_explanations({"format": 1, "explanations": [query]})
    >>> "test-7: labelled 4, predicted 9" in page, "<script" in page
    (True, False)
    """
    if facts.get("format") != FORMAT:
        raise InputError(
            f"the explanations have format {facts.get('format')!r}; this version reads {FORMAT}: explain again"
        )
    pictures = {row: picture(array) for row, array in (images or {}).items()}
    return environment().get_template("explanation.html.j2").render(facts=facts, pictures=pictures)
