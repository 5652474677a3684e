"""The page in a browser: a whole review by keyboard, a killed server, many rows, hostile names."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chromium import OUTSIDE, Browser
from review_cases import served

from unlearn.repair import Changes

ROWS = 20
READY = "return document.querySelector('#row') !== null && !document.querySelector('#row').hidden"
AT = "return document.querySelector('#row-title').textContent === arguments[0]"
COUNT = "return document.querySelector('#count').textContent.startsWith(arguments[0] + ' of ')"
NODES = "return document.querySelectorAll('*').length"
ATTACK = "<img src=x onerror=alert(1)>&lt;{}"


def open_page(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.until(READY)


def press(browser: Browser, key: str, decided: int) -> None:
    browser.press(key)
    browser.until(COUNT, decided)


@contextmanager
def command(run: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `unlearn review` and give its process and address."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it, and so
    try:  # would what it starts
        process = subprocess.Popen(
            [sys.executable, "-m", "unlearn", "review", str(run)], stdout=subprocess.PIPE, text=True, bufsize=1
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        yield process, next(line.split()[1] for line in lines if line.startswith("review: http"))
    finally:
        process.kill()
        process.wait()


def test_a_whole_review_by_keyboard_with_the_server_killed_in_the_middle(browser: Browser, run_copy: Path) -> None:
    """Rejects decisions that wait in memory: after SIGKILL and a restart each one stands, and the end is whole."""
    path = run_copy / "flagged.json"
    facts = json.loads(path.read_text())
    rows = facts["rows"] = facts["rows"][:ROWS]
    path.write_text(json.dumps(facts))
    keys = ["a", "k", "x", "s", "d"] * 4
    labels = [dict(zip("asd", row["suggested"], strict=True)).get(key) for row, key in zip(rows, keys, strict=True)]
    half = ROWS // 2
    browser.screen(1280)
    with command(run_copy) as (process, url):
        open_page(browser, url)
        for k in range(half):
            browser.until(AT, rows[k]["id"])
            press(browser, keys[k], k + 1)
        press(browser, "u", half - 1)
        browser.until(AT, rows[half - 1]["id"])
        press(browser, keys[half - 1], half)
        process.send_signal(signal.SIGKILL)
        process.wait()
        browser.press("k")
        browser.until("return !document.querySelector('#trouble').hidden")
        assert "was not saved" in browser.text("#trouble")
    with command(run_copy) as (process, url):
        open_page(browser, url)
        browser.until(COUNT, half)
        browser.until(AT, rows[half]["id"])
        for k in range(half, ROWS):
            browser.until(AT, rows[k]["id"])
            press(browser, keys[k], k + 1)
        browser.press("w")
        browser.until("return document.querySelector('#written').textContent.includes('is written')")
        assert f"unlearn repair apply {run_copy}" in browser.text("#written")
        assert browser.messages() == []
        assert {re.match(r"http://127\.0\.0\.1:\d+/[\w-]+/", asked)[0] for asked in browser.requests()} == {url}
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    ids = [row["id"] for row in rows]
    assert Changes.load(run_copy / "decisions.csv") == Changes(
        removed=tuple(row for row, key in zip(ids, keys, strict=True) if key == "x"),
        relabelled={row: label for row, label in zip(ids, labels, strict=True) if label is not None},
    )
    lines = (run_copy / "decisions.csv").read_text().splitlines()
    assert [line for line in lines if ",keep," in line] == [f"{ids[k]},keep," for k in range(ROWS) if keys[k] == "k"]


def test_every_key(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path, 80) as server:
        open_page(browser, server.url)
        review = server.shown.review
        for keys, place in (
            ("\ue014", 1),
            ("\ue014\ue014", 3),
            ("\ue012", 2),
            ("]", 32),
            ("]", 64),
            ("[", 32),
            ("n", 33),
        ):
            browser.press(keys)
            browser.until(AT, f"row-{place}")
        press(browser, "1", 1)  # row 33 is of class 0
        assert (review.decisions["row-33"].action, review.decisions["row-33"].label) == ("relabel", 1)
        press(browser, "1", 2)  # row 34 is of class 1
        assert review.decisions["row-34"].action == "keep"
        press(browser, "l1\ue007", 3)
        assert review.decisions["row-35"].label == 1
        browser.press("lx\ue00c9kk")  # no label; 9 is no class
        browser.until(COUNT, 5)
        assert {row: one.action for row, one in review.decisions.items() if one.action == "keep"} == dict.fromkeys(
            ("row-34", "row-36", "row-37"), "keep"
        )
        press(browser, "uuuuu", 0)
        browser.until(AT, "row-33")


def test_two_quick_keys_decide_on_two_rows_each_by_its_own_labels(browser: Browser, tmp_path: Path) -> None:
    """Rejects a second key that is lost, or takes the suggestion of the row before."""
    with served(tmp_path, 6) as server:
        open_page(browser, server.url)
        press(browser, "aaaaaa", 6)
        found = {row: one.label for row, one in server.shown.review.decisions.items()}
        assert found == {row.id: row.suggested[0] for row in server.shown.review.rows}
        assert "All rows are decided" in browser.text("#written")


def test_a_reload_comes_back_to_the_row_and_loses_no_decision(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path, 30) as server:
        open_page(browser, server.url)
        press(browser, "k", 1)
        browser.press("\ue014\ue014")
        browser.until(AT, "row-3")
        browser.driver.refresh()
        browser.until(READY)
        browser.until(COUNT, 1)
        assert browser.text("#row-title") == "row-3"
        assert browser.text("#count").startswith("1 of 30")
        assert {row: one.action for row, one in server.shown.review.decisions.items()} == {"row-0": "keep"}
        assert browser.script("return document.querySelector('[aria-current=true]').ariaLabel").startswith("Row row-3,")


def test_five_thousand_rows_keep_the_page_small(browser: Browser, tmp_path: Path) -> None:
    """Rejects a page that holds, or a start that sends, all rows at once."""
    with served(tmp_path, 40, beside=8) as server:
        open_page(browser, server.url)
        few = browser.script(NODES)
    (tmp_path / "many").mkdir()
    with served(tmp_path / "many", 5000, beside=8) as server:
        open_page(browser, server.url)
        assert browser.script(NODES) == few
        for k, (key, place) in enumerate([("k", 1), ("]", 32), ("a", 33), ("]", 64), ("x", 65)]):
            browser.press(key)
            browser.until(AT, f"row-{place}")
            assert browser.script(NODES) == few, k
        browser.driver.execute_script("location.hash = '#4999'; location.reload()")
        browser.until(READY)
        browser.until(AT, "row-4999")
        assert browser.script(NODES) <= few
        sent = browser.script(
            "return performance.getEntriesByType('resource').reduce((sum, one) => sum + one.decodedBodySize, 0)"
        )
        assert sent < 200_000
        assert browser.messages() == []


def test_html_in_a_name_shows_as_text(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path, 3, name=ATTACK) as server:
        object.__setattr__(server.shown, "name", ATTACK)
        open_page(browser, server.url)
        name = ATTACK.format(0)
        assert browser.text("#row-title") == name
        assert browser.text("#alike .id") == name
        press(browser, "a", 1)
        assert browser.text("#live").startswith(name)
        assert browser.script("return document.querySelectorAll('[onerror], [src=x]').length") == 0
        assert browser.messages() == []


@pytest.mark.parametrize("pictures", [True, False])
def test_nothing_is_wider_than_the_screen(browser: Browser, tmp_path: Path, pictures: bool) -> None:
    with served(tmp_path, 30, beside=4, pictures=pictures) as server:
        open_page(browser, server.url)
        press(browser, "k", 1)
        for width in (390, 1000, 1280):
            browser.screen(width)
            assert browser.script(OUTSIDE) == []
            assert browser.script("return document.documentElement.scrollWidth") == width
        browser.screen(1280)


def test_what_is_on_the_page_has_names(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path, 3) as server:
        open_page(browser, server.url)
        unnamed = browser.script(
            "return [...document.querySelectorAll('button, input, img, progress')].filter((e) => !(e.ariaLabel"
            " || e.alt || e.textContent.trim() || (e.labels || []).length || e.closest('button[aria-label]')))"
            ".map((e) => e.outerHTML)"
        )
        assert unnamed == []
        assert browser.script("return document.querySelectorAll('h1').length") == 1
        assert browser.script("return document.querySelector('[aria-current=true]').ariaLabel") == (
            "Row row-0, given 0, not decided"
        )
        press(browser, "x", 1)
        assert browser.text("#live") == "row-0: remove. 1 of 3 decided."


def test_the_command_refuses_what_it_can_not_review(unlearn, run_copy: Path) -> None:  # type: ignore[no-untyped-def]
    (run_copy / "detection.json").unlink()
    (run_copy / "flagged.json").unlink()
    code, _, err = unlearn("review", run_copy)
    assert (code, "run the stage 'detect' first" in err) == (2, True)
    shutil.rmtree(run_copy)
    code, _, err = unlearn("review", run_copy)
    assert (code, "holds no run" in err) == (2, True)
