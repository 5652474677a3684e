import math

import pytest
from report_cases import REPORT, bounds

from unlearn.report import render_report
from unlearn.report.charts import WIDTH, histogram_chart, interval_chart

HISTOGRAM = {"edges": [-4.0, -2.0, 0.0, 2.0, 4.0], "counts": [100, 50, 0, 25]}


def test_r_is_placed_by_its_logarithm():
    chart = interval_chart([bounds("test", 1.0, 0.5, 2.0)], 4.0)
    ((_, _, edited, _),) = chart.groups
    assert edited.x == chart.retrain
    assert edited.right - edited.x == pytest.approx(edited.x - edited.left, abs=0.11)
    assert chart.tolerance - edited.x == pytest.approx(2 * (edited.right - edited.x), abs=0.21)


@pytest.mark.parametrize(
    ("r", "lower", "upper"), [(0.7, 0.6, 0.8), (30.0, 2.0, 500.0), (1.0, 1e-9, 3.0), (0.0, 0.0, 2)]
)
def test_every_interval_is_inside_the_chart(r, lower, upper):
    chart = interval_chart([bounds("test", r, lower, upper)], 1.5)
    for line in chart.groups[0][2:]:
        assert chart.left <= line.left <= line.x <= line.right <= chart.right
    assert 2 <= len(chart.ticks) <= 7
    assert all(chart.left <= tick.at <= chart.right for tick in chart.ticks)


def test_a_missing_bound_is_an_arrow_and_a_missing_r_is_told():
    table = [bounds("a", 1.0, 0.5, None), bounds("b", None, None, None), bounds("c", 1.0, 0.5, math.nan)]
    chart = interval_chart(table, 1.5)
    (_, _, a, _), (_, _, b, _), (_, _, c, _) = chart.groups
    assert (a.open_right, a.right, b.x, c.open_right) == (True, chart.right, None, True)
    page = render_report({**REPORT, "verdict": {**REPORT["verdict"], "table": table}})
    assert page.count("edited: not measured") == 1


@pytest.mark.parametrize("table", [[], [{"group": "x"}], [bounds("x", None, None, None) | {"unedited_r": "<b>"}]])
def test_nothing_to_draw(table):
    table = [{k: v for k, v in row.items() if k in ("group", "r")} for row in table]
    assert interval_chart(table, 1.5) is None
    assert '<svg viewBox="0 0 380' not in render_report({"format": 1, "verdict": {"table": table, "tolerance": 1.5}})


def test_bars_are_as_high_as_their_counts():
    chart = histogram_chart(HISTOGRAM, 1.0)
    heights = [bar.height / (chart.bottom - chart.top) for bar in chart.bars]
    assert heights == pytest.approx([1, 0.5, 0.25])
    assert all(bar.y + bar.height == pytest.approx(chart.bottom) for bar in chart.bars)


@pytest.mark.parametrize(
    ("threshold", "beyond"),
    [(1.0, [False, False, True]), (-3.0, [False, True, True, True]), (-4.0, [True] * 3), (9.0, [False] * 3)],
)
def test_bars_beyond_the_cutoff(threshold, beyond):
    assert [bar.beyond for bar in histogram_chart(HISTOGRAM, threshold).bars] == beyond


@pytest.mark.parametrize("threshold", [None, math.inf, math.nan, 9.0])
def test_a_cutoff_outside_the_scores_has_no_line(threshold):
    chart = histogram_chart(HISTOGRAM, threshold)
    assert chart.cutoff is None
    report = {"format": 1, "detection": {"histogram": HISTOGRAM, "cutoff": {"threshold": threshold}}}
    assert 'class="cutoff"' not in render_report(report)


@pytest.mark.parametrize(
    "histogram",
    [
        {},
        {"edges": [0, 1], "counts": [1, 2]},
        {"edges": [0, 1, 1], "counts": [1, 2]},
        {"edges": [0, 1, None], "counts": [1, 2]},
        {"edges": [0, 1, 2], "counts": [0, 0]},
    ],
)
def test_a_histogram_that_does_not_fit_is_not_drawn(histogram):
    assert histogram_chart(histogram, 0.5) is None


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e7])
def test_ticks_are_few_and_inside(scale):
    edges = [x * scale for x in (-3.3, 0.1, 4.7)]
    chart = histogram_chart({"edges": edges, "counts": [7, 12345]}, None)
    for ticks, low, high in ((chart.x_ticks, chart.left, chart.right), (chart.y_ticks, chart.top, chart.bottom)):
        assert 2 <= len(ticks) <= 7
        assert all(low <= tick.at <= high for tick in ticks)
    assert chart.right <= WIDTH
