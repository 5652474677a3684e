"""The page of a repair benchmark: marks where they belong, every method in letters and tables, nothing that runs."""

from __future__ import annotations

import math

import pytest

from unlearn.errors import InputError
from unlearn.report import render_frontier
from unlearn.report.charts import frontier_chart

NAMES = ("phi error / spread", "KL", "cosine changed", "cosine test")


def row(method: str, cost: float | None, mean: float, settings: tuple[str, ...] = ("a", "b")) -> dict[str, object]:
    return {"method": method, "cost": cost, "settings": settings, **{n: {"mean": mean, "worst": mean} for n in NAMES}}


FACTS = {
    "format": 1,
    "recipe": "mnist5k-<remove>",
    "action": "remove",
    "which": "as detected",
    "seeds": [0, 1],
    "rows": 4000,
    "changed": [20, 21],
    "floors": [{"spread": 1.0, "floor": 0.1}] * 2,
    "unedited": row("unedited", 0.0, 0.9),
    "ours": [
        {**row("ours", 1.1, 0.2), "how": "rewind-newton-replay"},
        {**row("ours, final only", 0.4, 0.5), "how": "n"},
    ],
    "levels": [
        {"cost": 1.0, "chosen": [row("replay", 1.0, 0.4)], "oracle": [row("replay", None, 0.3)]},
        {
            "cost": 2.0,
            "chosen": [row("replay", 1.0, 0.4), row("random labels", 2.0, 0.7)],
            "oracle": [row("replay", None, 0.25), row("random labels", None, 0.6)],
        },
    ],
}


def test_every_method_has_its_letter_and_its_rows_and_names_are_escaped() -> None:
    page = render_frontier(FACTS)
    assert "<b>R</b> replay, <b>A</b> random labels" in page
    assert page.count(">R</text>") == len(NAMES)  # the same point at two costs is one mark
    assert page.count(">A</text>") == len(NAMES)
    assert "mnist5k-&lt;remove&gt;" in page
    assert "<script" not in page
    assert "Each rival is at the setting that did best on the other seeds." in page
    alone = render_frontier({**FACTS, "seeds": [0], "levels": [{**level, "chosen": []} for level in FACTS["levels"]]})
    assert "known only with the retrain at hand" in alone
    assert alone.count(">R</text>") == 2 * len(NAMES)
    with pytest.raises(InputError, match="format 2; this version reads 1"):
        render_frontier({**FACTS, "format": 2})


def test_costs_and_distances_are_placed_by_their_logarithm_and_cosines_by_their_value() -> None:
    marks = [("rival", "F", cost, value) for cost, value in ((0.5, 4.0), (1.0, 2.0), (2.0, 1.0))]
    chart = frontier_chart(marks, 8.0, 1.0, distance=True)
    assert chart is not None
    a, b, c = chart.marks
    assert (b.x - a.x, b.y - a.y) == pytest.approx((c.x - b.x, c.y - b.y), abs=0.11)
    assert a.y < b.y < c.y == chart.retrain
    assert chart.unedited is not None
    assert chart.top <= chart.unedited < a.y
    cosines = frontier_chart([("ours", "", 1.0, 0.5), ("ours", "", 1.0, 0.75)], 0.0, None, distance=False)
    assert cosines is not None
    low, high = cosines.marks
    assert cosines.unedited is not None
    assert cosines.unedited - low.y == pytest.approx(2 * (low.y - high.y), abs=0.2)
    assert cosines.retrain is None


def test_what_can_not_be_placed_is_left_out_and_a_cost_of_nothing_stands_at_the_edge() -> None:
    marks = [("rival", "F", 1.0, math.nan), ("rival", "G", 1.0, 0.0), ("ours", "", 0.0, 2.0), ("rival", "R", 3.0, 1.0)]
    chart = frontier_chart(marks, math.inf, 1.0, distance=True)
    assert chart is not None
    assert [mark.letter for mark in chart.marks] == ["R", ""]
    assert all(chart.left <= mark.x <= chart.right for mark in chart.marks)
    assert chart.unedited is None
    assert frontier_chart([("rival", "F", 1.0, None)], 1.0, 1.0, distance=True) is None
