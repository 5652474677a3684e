import pytest
from report_cases import REPORT, measured

from unlearn.report import render_report
from unlearn.report.comparison import group_tables


def nearest(measure, values):
    (table,) = group_tables(measured("test", measure, values, 0.5))
    return [model for model, (cell,) in table.models if cell.nearest]


@pytest.mark.parametrize(
    ("measure", "values", "expected"),
    [
        ("kl", (2.0, 0.1, 0.3, 0.2), ["edited"]),
        ("kl", (2.0, 0.3, 0.1, 0.2), ["fine-tuned"]),
        ("phi error", (2.0, 0.3, 0.4, 0.2), ["replayed"]),
        ("agreement", (0.99, 0.9, 0.8, 0.7), ["unedited"]),
        ("cosine of the logit change", (0.0, 0.9, 0.95, 0.7), ["fine-tuned"]),
        ("kl", (2.0, 0.1001, 0.1002, 0.2), ["edited", "fine-tuned"]),  # both read 0.100
        ("kl", (None, float("nan"), 0.3, None), ["fine-tuned"]),
        ("kl", (None, None), []),
        ("accuracy", (0.99, 0.95, 0.9, 0.8, 0.94, 0.99), ["edited"]),  # nearest, not highest
        ("accuracy", (0.99, 0.95, 0.9, 0.8), []),  # no retrain
        ("our own measure", (0.1, 0.2), []),  # which way is nearer is not known
    ],
)
def test_nearest(measure, values, expected):
    assert nearest(measure, values) == expected


def test_accuracy_is_held_against_independent_retrains_where_there_is_no_coupled_one():
    rows = [row for row in measured("test", "accuracy", (0.99, 0.95, 0.9, 0.8, 0.0, 0.98)) if row["model"] != "coupled"]
    (table,) = group_tables(rows)
    assert table.nearest == [("unedited", 1)]
    assert [model for model, _ in table.retrains] == ["independent"]


def test_measures_models_and_groups_keep_their_order():
    rows = [*measured("test", "kl", (1, 2, 3)), *measured("changed", "kl", (1,)), *measured("test", "accuracy", (1, 2))]
    first, second = group_tables(reversed(rows))
    assert (first.group, second.group) == ("test", "changed")
    assert first.measures == ["accuracy", "kl"]
    assert [model for model, _ in first.models] == ["unedited", "edited", "fine-tuned"]


def test_a_rival_that_wins_is_shown_winning():
    page = render_report({"format": 1, "verification": {"table": [*measured("kept", "kl", (3.0, 2.0, 1.0), 0.5)]}})
    assert "Nearest to the retrain: fine-tuned by 1 of 1 measures." in page
    row = page[page.index('<th scope="row">fine-tuned</th>') :]
    assert row[: row.index("</tr>")].count('class="nearest"') == 1
    assert page.count('class="nearest"') == 1


def test_floors_are_in_the_table():
    tables = group_tables(REPORT["verification"]["table"])
    assert [table.floors for table in tables] == [[None, 1.22, 0.21, 0.0212], [1.5, 0.88]]
    assert [table.reference for table in tables] == ["coupled", "coupled"]
