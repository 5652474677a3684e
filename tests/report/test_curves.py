import math
from itertools import pairwise

import pytest
from report_cases import REPORT, with_leaf

from unlearn.report import render_report
from unlearn.report.axes import WIDTH, apart
from unlearn.report.curves import cost_chart, found_chart

FOUND = {"checked": [0, 50, 100, 300], "mislabelled": 100, "curves": {"a": [0, 50, 90, 100], "b": [0, 10, 20, 95]}}
COSTS = {"unedited": 0.0, "edited": 4.0, "fine-tuned": 4.0, "retrained": 16.0}


def points(text):
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


def test_found_rows_are_as_high_as_their_counts():
    chart = found_chart(FOUND, 1000, "a", 100)
    first, second = chart.curves
    assert (first.deciding, second.deciding) == (True, False)
    xs, ys = zip(*points(first.points), strict=True)
    assert [(x - chart.left) / (chart.right - chart.left) for x in xs] == pytest.approx([0, 1 / 6, 1 / 3, 1], abs=1e-3)
    assert [(chart.bottom - y) / (chart.bottom - chart.top) for y in ys] == pytest.approx([0, 0.5, 0.9, 1], abs=1e-3)
    assert chart.cutoff == pytest.approx(xs[2])


def test_no_score_is_above_the_best_and_chance_is_the_share():
    chart = found_chart(FOUND, 1000, "a", None)
    assert points(chart.best)[1] == (*points(chart.curves[0].points)[2][:1], chart.top)
    end = points(chart.chance)[-1]
    assert (chart.bottom - end[1]) / (chart.bottom - chart.top) == pytest.approx(0.3, abs=1e-3)
    assert chart.cutoff is None


@pytest.mark.parametrize(
    "found",
    [
        {},
        {**FOUND, "mislabelled": 0},
        {**FOUND, "checked": [0]},
        {**FOUND, "checked": [0, 1, None, 3]},
        {**FOUND, "curves": {}},
    ],
)
def test_curves_that_do_not_fit_are_not_drawn(found):
    assert found_chart(found, 1000, "a", 100) is None


def test_labels_do_not_overlap():
    assert apart([10.0, 10.0, 2.0, 50.0], 13.0) == [15.0, 28.0, 2.0, 50.0]
    chart = cost_chart(COSTS, {"unedited": 3.0, "edited": 1.0, "fine-tuned": 1.01}, 0.9)
    left = sorted(mark.label for mark in chart.marks if not mark.before)
    assert all(b - a >= 13 for a, b in pairwise(left))


def test_cost_is_to_the_right_distance_upwards_and_the_retrain_on_the_floor():
    chart = cost_chart(COSTS, {"unedited": 3.0, "edited": 1.0, "fine-tuned": 2.0}, 0.5)
    marks = {mark.model: mark for mark in chart.marks}
    assert marks["unedited"].x == chart.left < marks["edited"].x == marks["fine-tuned"].x < marks["retrained"].x
    assert marks["unedited"].y < marks["fine-tuned"].y < marks["edited"].y < marks["retrained"].y == chart.floor
    assert marks["edited"].x - chart.left == pytest.approx((chart.right - chart.left) / 4, abs=0.1)
    assert (chart.bottom - marks["edited"].y) * 3 == pytest.approx(chart.bottom - marks["unedited"].y, abs=0.3)
    assert chart.marks[-1].model == "edited"
    assert chart.right <= WIDTH


@pytest.mark.parametrize(
    ("costs", "distances", "floor"),
    [
        ({}, {"edited": 1.0}, 1.0),
        (COSTS, {}, None),
        (COSTS, {"edited": math.nan}, 0.5),
        (COSTS, {"edited": 0.0, "unedited": 0.0}, None),
    ],
)
def test_nothing_to_compare_is_not_drawn(costs, distances, floor):
    assert cost_chart(costs, distances, floor) is None


def test_the_page_has_every_chart_with_a_table_behind():
    page = render_report(REPORT)
    for title in ("found-title", "cost-title-1", "cost-title-2", "histogram-title", "intervals-title"):
        assert page.count(f'<title id="{title}">') == 1
    assert page.count("Numbers of this picture") == 3
    assert "Numbers of these pictures" in page
    bare = render_report(with_leaf(with_leaf(REPORT, ("detection", "found"), None), ("verification", "costs"), None))
    assert "found-title" not in bare
    assert "cost-title-1" not in bare
    assert "can only be counted where the true labels are known" in bare
