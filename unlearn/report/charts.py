"""Where the marks of a verdict and of a histogram go; ``templates/charts.html.j2`` draws them as inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from unlearn.report.axes import WIDTH, Tick, linear, log_ticks, logarithmic, rounded, ticks
from unlearn.report.wording import finite, number

_RIGHT = WIDTH - 10
_LEAST_COST = 0.02


@dataclass(frozen=True)
class Interval:
    """One model's r with its bounds.

    Attributes:
        y: height of the line.
        x: place of r; None if it was not measured.
        left: end of the line; the edge where the bound is 0.
        right: end of the line; the edge where there is no bound.
        open_left: whether the line goes on beyond the left edge.
        open_right: whether it goes on beyond the right edge.
    """

    y: float
    x: float | None = None
    left: float = 0.0
    right: float = 0.0
    open_left: bool = False
    open_right: bool = False


@dataclass(frozen=True)
class IntervalChart:
    """Places of the intervals of r of every group, on a logarithmic axis."""

    height: float
    left: float
    right: float
    top: float
    bottom: float
    ticks: list[Tick]
    tolerance: float
    retrain: float
    groups: list[tuple[Any, float, Interval, Interval]]


@dataclass(frozen=True)
class Bar:
    """One bar, or the part of it on one side of the cut-off."""

    x: float
    y: float
    width: float
    height: float
    beyond: bool


@dataclass(frozen=True)
class HistogramChart:
    """Places of the bars and of the cut-off, which is None where nothing is beyond it."""

    height: float
    left: float
    right: float
    top: float
    bottom: float
    bars: list[Bar]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    cutoff: float | None


@dataclass(frozen=True)
class Mark:
    """One method at one cost; ``kind`` is ours, final (ours without snapshots) or rival."""

    x: float
    y: float
    letter: str
    kind: str


@dataclass(frozen=True)
class FrontierChart:
    """Places of all methods by cost, on a logarithmic axis, and one measure.

    Attributes:
        marks: all of them, ours last.
        unedited: height of the unedited model; None where it can not be drawn.
        retrain: height of the distance between retrains; None where the measure has none.
    """

    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Mark]
    unedited: float | None
    retrain: float | None


def interval_chart(table: Sequence[Mapping[str, Any]], tolerance: Any) -> IntervalChart | None:
    """Place the table of a verdict; None where there is nothing to draw.

    >>> row = {"group": "test", "r": 1.0, "lower": 0.8, "upper": 1.3, "unedited_r": 2.0}
    >>> chart = interval_chart([row], 1.5)
    >>> group, y, edited, unedited = chart.groups[0]
    >>> edited.left < chart.retrain == edited.x < edited.right < chart.tolerance < unedited.x
    True
    """
    limit = finite(tolerance)
    keys = ("r", "lower", "upper", "unedited_r", "unedited_lower", "unedited_upper")
    known = [x for row in table for x in (finite(row.get(key)) for key in keys) if x is not None and x > 0]
    if limit is None or limit <= 0 or not known:
        return None
    low, high = min(*known, 0.5, limit) / 1.15, max(*known, 2.0, limit) * 1.15
    left, top, step = 70.0, 24.0, 44.0
    bottom = top + step * len(table)
    scale = logarithmic(low, high, left, _RIGHT)
    groups = []
    for i, row in enumerate(table):
        middle = top + step * (i + 0.5)
        edited, unedited = (
            _interval(row, prefix, y, scale, (left, _RIGHT))
            for prefix, y in (("", middle - 8), ("unedited_", middle + 8))
        )
        groups.append((row.get("group"), middle, edited, unedited))
    ticks = [Tick(rounded(scale(x)), number(x, trim=True)) for x in log_ticks(low, high)]
    return IntervalChart(
        bottom + 40, left, _RIGHT, top, bottom, ticks, rounded(scale(limit)), rounded(scale(1.0)), groups
    )


def histogram_chart(histogram: Mapping[str, Any], threshold: Any) -> HistogramChart | None:
    """Place the bars of a histogram; None where its edges and counts do not fit each other.

    The bar that the cut-off falls in is drawn in two parts of the same height.

    >>> chart = histogram_chart({"edges": [0, 1, 2], "counts": [4, 2]}, 1.5)
    >>> [(bar.height, bar.beyond) for bar in chart.bars]
    [(150.0, False), (75.0, False), (75.0, True)]
    """
    edges = [finite(x) for x in histogram.get("edges") or []]
    counts = [finite(x) for x in histogram.get("counts") or []]
    places, heights = [x for x in edges if x is not None], [x for x in counts if x is not None]
    whole = len(places) == len(edges) and len(heights) == len(counts) == len(edges) - 1
    if not whole or not heights or max(heights) <= 0 or any(a >= b for a, b in pairwise(places)):
        return None
    left, top, bottom = 40.0, 24.0, 174.0
    most = max(heights)
    x_of = linear(places[0], places[-1], left, _RIGHT)
    cut = finite(threshold)
    bars = []
    for (start, end), count in zip(pairwise(places), heights, strict=True):
        height = rounded(count / most * (bottom - top))
        inside = cut is not None and start < cut < end
        for a, b in [(start, cut), (cut, end)] if inside else [(start, end)]:
            if a is not None and b is not None and height > 0:
                x = rounded(x_of(a))
                beyond = cut is not None and a >= cut
                bars.append(Bar(x, rounded(bottom - height), rounded(x_of(b) - x_of(a)), height, beyond))
    y_of = linear(0, most, bottom, top)
    shown = cut is not None and places[0] <= cut <= places[-1]
    return HistogramChart(
        bottom + 40,
        left,
        _RIGHT,
        top,
        bottom,
        bars,
        [Tick(rounded(x_of(x)), number(x, trim=True)) for x in ticks(places[0], places[-1], 6)],
        [Tick(rounded(y_of(y)), number(y, trim=True)) for y in ticks(0, most, 4)],
        rounded(x_of(cut)) if shown and cut is not None else None,
    )


def frontier_chart(
    points: Sequence[tuple[str, str, Any, Any]], unedited: Any, retrain: Any, *, distance: bool
) -> FrontierChart | None:
    """Place methods by cost and a measure; None where there is nothing to draw.

    Args:
        points: (kind, letter, cost, value) of each mark; one that can not be placed is left out.
        unedited: value of the unedited model.
        retrain: value between independent retrains.
        distance: whether the measure is a distance, on a logarithmic axis, or a cosine, on one that ends at 1.

    >>> chart = frontier_chart([("ours", "", 1.0, 0.5), ("rival", "F", 2.0, 3.0)], 4.0, 1.0, distance=True)
    >>> ours, rival = chart.marks[1], chart.marks[0]
    >>> ours.x < rival.x, ours.y > chart.retrain > rival.y > chart.unedited
    (True, True)
    """
    placed = [(kind, letter, finite(cost), finite(value)) for kind, letter, cost, value in points]
    known = [(k, n, c, v) for k, n, c, v in placed if c is not None and v is not None and (v > 0 or not distance)]
    if not known:
        return None
    left, top, bottom = 52.0, 14.0, 250.0
    lines = [x for x in (finite(unedited), finite(retrain)) if x is not None and (x > 0 or not distance)]
    values = [value for *_, value in known] + lines
    if distance:
        low, high = min(values) / 1.2, max(values) * 1.2
        y_of, y_ticks = logarithmic(low, high, bottom, top), log_ticks(low, high)
    else:
        low, high = min(*values, 0.9) - 0.02, 1.0
        y_of, y_ticks = linear(low, high, bottom, top), ticks(low, high, 6)
    costs = [cost for _, _, cost, _ in known]
    first, last = max(min(costs) / 1.15, _LEAST_COST), max(*costs, 5.0) * 1.15
    x_of = logarithmic(first, last, left + 8, _RIGHT)
    marks = [
        Mark(rounded(x_of(max(cost, first))), rounded(y_of(value)), letter, kind) for kind, letter, cost, value in known
    ]

    def line(value: Any) -> float | None:
        x = finite(value)
        return None if x is None or (distance and x <= 0) else rounded(y_of(x))

    return FrontierChart(
        bottom + 40,
        left,
        _RIGHT,
        top,
        bottom,
        [Tick(rounded(x_of(x)), number(x, trim=True)) for x in log_ticks(first, last)],
        [Tick(rounded(y_of(y)), number(y, trim=True)) for y in y_ticks],
        sorted(marks, key=lambda mark: mark.kind != "rival"),
        line(unedited),
        line(retrain),
    )


def _interval(
    row: Mapping[str, Any], prefix: str, y: float, scale: Callable[[float], float], edges: tuple[float, float]
) -> Interval:
    r, lower, upper = (finite(row.get(prefix + key)) for key in ("r", "lower", "upper"))
    if r is None:
        return Interval(y)

    def place(x: float) -> float:
        return rounded(scale(x)) if x > 0 else edges[0]

    return Interval(
        y,
        place(r),
        left=place(lower or 0.0),
        right=edges[1] if upper is None else place(upper),
        open_left=not lower,
        open_right=upper is None,
    )
