"""The certificate as a page: whole on a phone and on a desk, quiet, and with all text as text."""

from __future__ import annotations

import json

import pytest
from chromium import OUTSIDE

from unlearn.requests import Desk, approve, process, submit
from unlearn.requests.certificate import certificate_page

HOSTILE = "<img src=http://example.invalid/x onerror=document.title='taken'>\u202e"


@pytest.fixture
def certificate(desk: Desk):
    submit(desk, ids=desk.run.data.ids[:3], reason="x")
    if process(desk).held is not None:
        approve(desk, 1, reason="seen")
    return json.loads(next((desk.folder / "certificates").glob("*.json")).read_text())


def test_the_page_fits_asks_for_nothing_and_shows_text_as_text(certificate, browser, tmp_path):
    audited = {"outcome": "undecided", "reason": HOSTILE, "fpr": 0.01, "tolerance": 0.2, "rows": 3, "rows_flagged": 0}
    line = {"attack": HOSTILE, "models": "audited", "tpr": 0.5, "lower": 0.1, "upper": 0.9}
    audited |= {"models": {"never": 3, "learned": 3}, "table": [line] * 3}
    verdict = {**certificate["verdict"], "reason": HOSTILE * 20}
    hostile = {**certificate, "request": HOSTILE, "membership_audit": audited, "verdict": verdict}
    for name, facts in (("plain", certificate), ("hostile", hostile)):
        path = tmp_path / f"{name}.html"
        path.write_text(certificate_page(facts))
        browser.open(path)
        for width in (390, 1280):
            browser.screen(width)
            assert browser.script(OUTSIDE) == [], (name, width)
        assert [url for url in browser.requests() if not url.startswith("file:")] == []
        assert browser.messages() == []
    assert browser.script("return document.title") != "taken"
    assert browser.script("return document.querySelectorAll('img, script').length") == 0
    assert "\\u202e" in browser.text("h1")


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        ({"kind": "nothing", "drift": 0.0}, ["nothing"]),
        (
            {"kind": "retrain", "method": "retrain", "drift": 0.0, "rows_trained_on": 9, "cost": {"total": 3.0}},
            ["retrain", "9", "3 training epochs"],
        ),
    ],
)
def test_what_the_page_says_of_a_method(method, lines, certificate):
    page = certificate_page({**certificate, "method": method})
    for line in lines:
        assert f"<td>{line}</td>" in page
