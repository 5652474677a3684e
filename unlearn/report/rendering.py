"""The report of a run as one HTML file: no request, no script, nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy.typing as npt
from jinja2 import ChainableUndefined, Environment, PackageLoader

from unlearn.errors import InputError
from unlearn.report.charts import histogram_chart, interval_chart
from unlearn.report.comparison import GroupTable, group_tables
from unlearn.report.pictures import picture
from unlearn.report.wording import MISSING, number, plain, words

FORMAT = 1


def render_report(report: Mapping[str, Any], images: Mapping[str, npt.NDArray[Any]] | None = None) -> str:
    """Return the report of a run as one self-contained HTML page.

    Args:
        report: the contents of ``report.json``. A section that is missing or null is named as missing on the page.
        images: arrays for :func:`unlearn.report.picture` by row id; rows without one are shown as text.

    Raises:
        InputError: a report of another format, or an array that is not a picture.

    >>> page = render_report({"format": 1, "verdict": {"outcome": "fail", "reason": "r is at least 2"}})
    >>> "r is at least 2" in page, "<script" in page
    (True, False)
    """
    if report.get("format") != FORMAT:
        raise InputError(
            f"report has format {report.get('format')!r}; this version reads {FORMAT}: run `unlearn recipe run` again"
        )
    verdict, detection = _section(report, "verdict"), _section(report, "detection")
    top = detection.get("top") or []
    found = images or {}
    tables = _tables(report)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            tables=tables,
            test_accuracy=_test_accuracy(tables),
            intervals=interval_chart(verdict.get("table") or [], verdict.get("tolerance")),
            histogram=histogram_chart(
                detection.get("histogram") or {}, (detection.get("cutoff") or {}).get("threshold")
            ),
            pictures={row["id"]: picture(found[row["id"]]) for row in top if row.get("id") in found},
        )
    )


@cache
def environment() -> Environment:
    """Return the templates, with their filters."""
    made = Environment(
        loader=PackageLoader("unlearn.report", "templates"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: MISSING if value is None else value,
    )
    made.filters.update(number=number, words=words, plain=plain)
    return made


def _section(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return report.get(name) or {}


def _tables(report: Mapping[str, Any]) -> list[GroupTable]:
    measured = _section(report, "verification").get("table") or _section(report, "verdict").get("measures")
    return group_tables(measured or [])


def _test_accuracy(tables: list[GroupTable]) -> dict[Any, Any]:
    """Return the accuracy of every model on test rows."""
    for table in tables:
        if table.group == "test" and "accuracy" in table.measures:
            column = table.measures.index("accuracy")
            return {model: cells[column].value for model, cells in [*table.models, *table.retrains]}
    return {}
