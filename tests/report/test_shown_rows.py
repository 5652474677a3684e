import re
from pathlib import Path

import pytest
from report_cases import REPORT, Page, changed_row, top_row, with_leaf

from unlearn.atomic import read_json
from unlearn.pipeline import Run
from unlearn.predict import predict
from unlearn.repair import Changes
from unlearn.report import listed_rows, render_report
from unlearn.report.shown_rows import SHOWN, complete_rows
from unlearn.report.wording import MINUS

ATTACK = "\"><script>alert('x')</script><img src=x onerror=alert(1)>"


def section(page):
    return page[page.index('<section id="rows"') : page.index('<section id="scores"')]


def test_rows_of_a_run_say_what_the_models_said(tiny_run: Path):
    run, facts = Run.open(tiny_run), read_json(tiny_run / "report.json")
    changes, listed = Changes.load(tiny_run / "decisions.csv"), facts["changed"]["listed"]
    top = {row["id"] for row in facts["detection"]["top"]}
    assert facts["changed"]["rows"] == len(changes.ids)
    assert [row["id"] for row in listed] == [row for row in changes.ids if row not in top][:SHOWN]
    assert [row["becomes"] for row in listed] == [changes.relabelled[row["id"]] for row in listed]
    rows = run.data.only([row["id"] for row in listed])
    assert [row["given"] for row in listed] == rows.labels.tolist()
    for key, model in (("predicted_before", run.original[0]), ("predicted_after", run.edit().model)):
        assert [row[key] for row in listed] == predict(model, rows).argmax(1).tolist()


def test_the_rows_that_the_verdict_names_are_shown(tiny_run: Path):
    run = Run.open(tiny_run)
    edit, row = run.edit(), run.edit().changes.ids[3]
    said = {
        "group": "changed",
        "id": row,
        "label": 1,
        "phi_unedited": 2.0,
        "phi_edited": 1.0,
        "phi_retrained": -3.0,
        "z": 4.5,
    }
    report = {"detection": None, "verdict": {"remembered": [said]}}
    complete_rows(report, run.data, {row: "7"}, run.original[0], edit)
    (shown,) = report["remembered"]["listed"]
    assert (shown["id"], shown["z"], shown["phi_retrained"], shown["suggested"]) == (row, 4.5, -3.0, 7)
    assert shown["becomes"] == edit.changes.relabelled[row]
    nothing = {"detection": None, "verdict": None}
    complete_rows(nothing, run.data, {}, run.original[0], None)
    assert (nothing["changed"], nothing["remembered"]) == ({"rows": 0, "listed": []}, None)


def test_each_row_is_listed_once():
    report = with_leaf(REPORT, ("changed", "listed"), [changed_row(1), changed_row(9)])
    assert listed_rows(report) == [f"mnist5k-000{k}" for k in (1, 2, 9, 5, 6)]
    assert listed_rows({"format": 1}) == []


def test_flagged_changed_and_remembered_rows_have_their_grids():
    text = re.sub(r"\s+", " ", Page(section(render_report(REPORT))).text)
    assert text.index("Flagged") < text.index("Changed") < text.index("Still remembered") < text.index("z 5.08")
    assert "3given; removed" in text
    assert f"phi 2.71 → 1.93; retrained {MINUS}4.12" in text
    assert "17 of the changed rows are still remembered; these 2 stand out most." in text


@pytest.mark.parametrize(
    ("remembered", "told"),
    [({"rows": 0, "listed": []}, "No changed row stands out"), (None, "not held against retrained models one by one")],
)
def test_nothing_remembered_and_not_measured_are_two_things(remembered, told):
    assert told in section(render_report({**REPORT, "remembered": remembered}))


def test_rows_without_pictures_show_their_text_and_html_in_it_as_text():
    ids = listed_rows(REPORT)
    page = section(render_report(REPORT, None, dict.fromkeys(ids, f"width +2.0 {ATTACK}")))
    assert page.count('<p class="text">') == len(ids)
    assert 'class="cards texts"' in page
    assert "<script" not in page
    assert Page(page).text.count(f"width +2.0 {ATTACK}") == len(ids)
    assert top_row(1)["id"] in page
