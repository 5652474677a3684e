"""The report and the page of explanations in a browser: any width, both schemes, paper; no message, no request."""

import numpy as np
import pytest
from chromium import OUTSIDE
from report_cases import REPORT, top_row, with_leaf
from test_explanation import PAGE, TEXT_PAGE

from unlearn.report import render_report

WIDTHS = (390, 1280)


def full_report():
    report = with_leaf(REPORT, ("detection", "top"), [top_row(rank) for rank in range(1, 31)])
    report["edit"]["steps"][0].update({f"another_number_{k}": 0.5 for k in range(12)})
    report["recipe"]["text"] = "key = " + "long " * 100
    report["limits"].append("unbroken" * 40)
    images = {row["id"]: np.random.default_rng(row["rank"]).random((1, 28, 28)) for row in report["detection"]["top"]}
    return render_report(report, images)


PAGES = {"report": full_report(), "explanation": PAGE, "explanation of texts": TEXT_PAGE}


@pytest.fixture(params=PAGES)
def page(request, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(PAGES[request.param], encoding="utf-8")
    return path


def test_it_fits_every_screen_and_asks_for_nothing(browser, page):
    for width in WIDTHS:
        browser.screen(width)
        browser.open(page)
        assert browser.script(OUTSIDE) == []
        assert browser.script("return document.documentElement.scrollWidth") == width
        small = "return [...document.querySelectorAll('svg text')].filter((e) => e.getBoundingClientRect().height < 10)"
        assert browser.script(small) == []
        assert browser.requests() == [page.as_uri()]
        assert browser.messages() == []


def test_light_dark_and_paper(browser, page):
    ground = "return getComputedStyle(document.body).backgroundColor"
    browser.open(page)
    browser.screen(1280, dark=True)
    assert browser.script(ground) == "rgb(16, 22, 28)"
    browser.screen(1280, dark=True, medium="print")
    assert browser.script(ground) == "rgb(255, 255, 255)"
    assert browser.script("return getComputedStyle(document.querySelector('.skip')).display") == "none"
    browser.screen(1280)
    assert browser.script(ground) == "rgb(250, 251, 252)"


def test_the_fail_is_drawn_in_its_tone(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(PAGES["report"], encoding="utf-8")
    browser.open(path)
    assert browser.script("return document.title") == "mnist5k-relabel: fail"
    assert browser.script("return getComputedStyle(document.querySelector('.verdict h2')).color") == "rgb(163, 32, 32)"


def test_a_message_and_a_request_would_be_seen(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.error('seen')</script><img src='other.png'>", encoding="utf-8")
    browser.open(bad)
    assert any("seen" in message for message in browser.messages())
    assert (tmp_path / "other.png").as_uri() in browser.requests()
