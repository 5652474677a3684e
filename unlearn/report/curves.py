"""Where the marks of a found-versus-checked curve and of a cost against distance plot go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearn.report.axes import WIDTH, Tick, apart, linear, rounded, ticks
from unlearn.report.wording import finite, number

_TOP, _BOTTOM, _LEFT = 24.0, 184.0, 40.0
_LABEL = 13.0


@dataclass(frozen=True)
class Curve:
    """How many mislabelled rows one score has found.

    Attributes:
        method: the score.
        deciding: whether it decided.
        points: of the line, as SVG takes them.
        label: height of its name, right of the line.
    """

    method: str
    deciding: bool
    points: str
    label: float


@dataclass(frozen=True)
class FoundChart:
    """Places of the curves; ``best`` finds a mislabelled row at every check, ``chance`` is a random order."""

    height: float
    left: float
    right: float
    top: float
    bottom: float
    curves: list[Curve]
    best: str
    chance: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    cutoff: float | None


@dataclass(frozen=True)
class Mark:
    """One model: its cost and distance.

    Attributes:
        model: its name.
        kind: ``edited``, ``retrain`` or ``other``.
        x: place of its cost.
        y: place of its distance.
        label: height of its name.
        before: whether its name stands left of it.
    """

    model: Any
    kind: str
    x: float
    y: float
    label: float
    before: bool


@dataclass(frozen=True)
class CostChart:
    """Places of the models of one group of rows, and of the floor."""

    height: float
    left: float
    right: float
    top: float
    bottom: float
    marks: list[Mark]
    floor: float | None
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def found_chart(found: Mapping[str, Any], rows: Any, deciding: Any, count: Any) -> FoundChart | None:
    """Place the curves; None where the counts do not fit each other.

    Args:
        found: ``checked``, ``mislabelled`` and ``curves``, a count of found rows for each number checked, by score.
        rows: number of rows, for the line of a random order.
        deciding: the score that decided.
        count: rows beyond the cut-off.

    >>> found = {"checked": [0, 10, 20], "mislabelled": 8, "curves": {"loss": [0, 6, 8]}}
    >>> found_chart(found, 40, "loss", 10).curves[0].points
    '40.0,184.0 148.0,64.0 256.0,24.0'
    """
    checked = [finite(x) for x in found.get("checked") or []]
    all_found, all_rows = finite(found.get("mislabelled")), finite(rows)
    curves = {
        str(name): [finite(y) for y in values or []]
        for name, values in (found.get("curves") or {}).items()
        if len(values or []) == len(checked)
    }
    xs = [x for x in checked if x is not None]
    if len(xs) < 2 or len(xs) != len(checked) or not curves or not all_found or not all_rows or xs[-1] <= xs[0]:
        return None
    right = WIDTH - 124.0
    x_of, y_of = linear(0, xs[-1], _LEFT, right), linear(0, all_found, _BOTTOM, _TOP)

    def line(*points: tuple[float, float]) -> str:
        return " ".join(f"{rounded(x_of(x))},{rounded(y_of(y))}" for x, y in points)

    drawn = {name: [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None] for name, ys in curves.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    labels = apart([y_of(points[-1][1]) + 4 for points in drawn.values()], _LABEL)
    cut = finite(count)
    return FoundChart(
        _BOTTOM + 40,
        _LEFT,
        right,
        _TOP,
        _BOTTOM,
        [
            Curve(name, name == deciding, line(*points), rounded(label))
            for (name, points), label in zip(drawn.items(), labels, strict=True)
        ],
        line((0, 0), (min(all_found, xs[-1]), min(all_found, xs[-1])), *([(xs[-1], all_found)] * (all_found < xs[-1]))),
        line((0, 0), (xs[-1], xs[-1] * all_found / max(all_rows, xs[-1]))),
        [Tick(rounded(x_of(x)), number(x, trim=True)) for x in ticks(0, xs[-1], 4)],
        [Tick(rounded(y_of(y)), number(y, trim=True)) for y in ticks(0, all_found, 4)],
        rounded(x_of(cut)) if cut is not None and 0 < cut <= xs[-1] else None,
    )


def cost_chart(costs: Mapping[str, Any], distances: Mapping[Any, Any], floor: Any) -> CostChart | None:
    """Place models by cost and distance to the retrain; None where fewer than two have both.

    Args:
        costs: training epochs by model; ``retrained`` stands at the floor.
        distances: by model.
        floor: distance between retrains.

    >>> chart = cost_chart({"edited": 4, "retrained": 16}, {"edited": 0.3}, 0.1)
    >>> [(mark.model, mark.kind, mark.x, mark.before) for mark in chart.marks]
    [('retrained', 'retrain', 335.0, True), ('edited', 'edited', 125.0, False)]
    """
    ground = finite(floor)
    places = {model: (finite(costs.get(model)), finite(distance)) for model, distance in distances.items()}
    places["retrained"] = (finite(costs.get("retrained")), ground)
    known = {model: (x, y) for model, (x, y) in places.items() if x is not None and y is not None}
    most_x, most_y = max((x for x, _ in known.values()), default=0), max((y for _, y in known.values()), default=0)
    if len(known) < 2 or most_x <= 0 or most_y <= 0:
        return None
    left, right = 55.0, WIDTH - 45.0
    x_of, y_of = linear(0, most_x, left, right), linear(0, most_y, _BOTTOM, _TOP + 10)
    order = sorted(known, key=lambda model: -known[model][1])
    before = {model: x_of(known[model][0]) > (left + right) / 2 for model in order}
    heights = {model: y_of(known[model][1]) + 4 for model in order}
    for side in (False, True):
        there = [model for model in order if before[model] is side]
        heights |= dict(zip(there, apart([heights[model] for model in there], _LABEL), strict=True))
    if "retrained" in heights:
        heights["retrained"] -= 9  # above the line of the floor
    order.sort(key="edited".__eq__)
    kinds = {"edited": "edited", "retrained": "retrain"}
    return CostChart(
        _BOTTOM + 60,
        left,
        right,
        _TOP,
        _BOTTOM,
        [
            Mark(
                model,
                kinds.get(model, "other"),
                rounded(x_of(known[model][0])),
                rounded(y_of(known[model][1])),
                rounded(heights[model]),
                before[model],
            )
            for model in order
        ],
        None if ground is None else rounded(y_of(ground)),
        [Tick(rounded(x_of(x)), number(x, trim=True)) for x in ticks(0, most_x, 5)],
        [Tick(rounded(y_of(y)), number(y, trim=True)) for y in ticks(0, most_y, 4)],
    )
