"""Contrast of every text colour on the grounds it is put on (WCAG 2.1: 4.5 for text, 3 for marks)."""

import re
from importlib.resources import files

import pytest

STYLE = files("unlearn.report").joinpath("templates/style.css").read_text()
LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
)
PALETTES = {"light": LIGHT, "dark": {**LIGHT, **DARK}}
TEXT = [
    *((text, ground) for text in ("ink", "soft", "edited", "fail") for ground in ("paper", "panel", "wash")),
    *((tone, f"{tone}-wash") for tone in ("pass", "fail", "undecided", "none", "edited")),
    *(("ink", f"{tone}-wash") for tone in ("pass", "fail", "undecided", "none", "edited")),
]
MARKS = [("other", "paper"), ("beyond", "paper"), ("other", "fail-wash"), ("edited", "fail-wash"), ("focus", "paper")]


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_on_white():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize(("text", "ground"), TEXT)
def test_text_contrast(palette, text, ground):
    assert contrast(PALETTES[palette][text], PALETTES[palette][ground]) >= 4.5


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize(("mark", "ground"), MARKS)
def test_mark_contrast(palette, mark, ground):
    assert contrast(PALETTES[palette][mark], PALETTES[palette][ground]) >= 3


def test_both_palettes_name_the_same_colours():
    assert set(LIGHT) == set(DARK)


def test_paper_and_focus_are_cared_for():
    assert "@media print" in STYLE
    assert "@media screen and (prefers-color-scheme: dark)" in STYLE  # paper stays light
    assert ":focus-visible { outline: 3px" in STYLE
