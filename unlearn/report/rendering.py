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
from unlearn.report.curves import CostChart, cost_chart, found_chart
from unlearn.report.membership import attack_tables
from unlearn.report.pictures import picture
from unlearn.report.shown_rows import listed_rows
from unlearn.report.wording import MISSING, number, plain, words

FORMAT = 1
DISTANCE = "phi_error"


def render_report(
    report: Mapping[str, Any],
    images: Mapping[str, npt.NDArray[Any]] | None = None,
    texts: Mapping[str, str] | None = None,
) -> str:
    """Return the report of a run as one self-contained HTML page.

    Args:
        report: the contents of ``report.json``. A section that is missing or null is named as missing on the page.
        images: arrays for :func:`unlearn.report.picture` by row id.
        texts: a line by row id, for rows that are no pictures.

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
    listed, found = listed_rows(report), images or {}
    tables = _tables(report)
    costs = _section(report, "verification").get("costs") or {}
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
            found=found_chart(
                detection.get("found") or {},
                _section(report, "data").get("rows"),
                detection.get("method"),
                (detection.get("cutoff") or {}).get("count"),
            ),
            costs=[(table.group, chart) for table in tables if (chart := _cost_chart(costs, table)) is not None],
            attacks=attack_tables(_section(report, "audit")),
            attack_lines=[
                (one.get("model"), one.get("table") or []) for one in _section(report, "audit").get("beside") or []
            ],
            pictures={row: picture(found[row]) for row in listed if row in found},
            texts=texts or {},
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


def _cost_chart(costs: Mapping[str, Any], table: GroupTable) -> CostChart | None:
    """Return the plot of cost against the phi error of one group of rows."""
    if DISTANCE not in table.measures:
        return None
    column = table.measures.index(DISTANCE)
    return cost_chart(costs, {model: cells[column].value for model, cells in table.models}, table.floors[column])


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
