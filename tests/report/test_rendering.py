import copy
import re
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from report_cases import REPORT, Page, leaves, measured, top_row, with_leaf

from unlearn.errors import InputError
from unlearn.report import render_report
from unlearn.report.wording import number

IMAGES = {"mnist5k-0001": np.linspace(0, 1, 784).reshape(1, 28, 28)}
PAGE = render_report(REPORT, IMAGES)
SECTIONS = [key for key in REPORT if key != "format"]
ATTACK = "\"><script>alert('x')</script><img src=x onerror=alert(1)>{{ 7 * 7 }}{% raw %}&lt;"
STRINGS = [path for path, value in leaves(REPORT) if isinstance(value, str)]
NUMBERS = [
    path
    for path, value in leaves(REPORT)
    if type(value) in (int, float) and path[-1] != "floor" and path not in {("format",), ("verdict", "format")}
]


def shape(page):
    """Tags with their attributes, but for values that carry text of the report."""
    told = ("alt", "aria-label")
    return [(tag, {k: None if k in told else v for k, v in attributes.items()}) for tag, attributes in Page(page).tags]


@pytest.mark.parametrize("path", STRINGS, ids=lambda path: ".".join(map(str, path)))
def test_html_in_a_string_shows_as_text(path):
    plain, attacked = (render_report(with_leaf(REPORT, path, text), IMAGES) for text in ("harmless", ATTACK))
    assert shape(attacked) == shape(plain)
    assert "<script" not in attacked
    if path[-1] not in ("measure", "group", "reference") and path[:2] != (
        "verdict",
        "weights",
    ):  # words of our own or shortened
        told = " ".join([Page(attacked).text, *(a.get("alt", "") for a in Page(attacked).all("img"))])
        assert ATTACK in told


def test_html_in_a_name_shows_as_text():
    attacked = copy.deepcopy(REPORT)
    attacked["model"]["options"] = {ATTACK: 1}
    attacked["edit"]["cost"][ATTACK] = 1.0
    attacked["edit"]["steps"][0][ATTACK] = 1.0
    attacked["checkpoint"][ATTACK] = {"file": ATTACK, "digest": ATTACK}
    page = render_report(attacked)
    assert "<script" not in page
    assert not [a for a in Page(page).tags if "onerror" in a[1]]


def leaf(path):
    return reduce(lambda place, key: place[key], path, REPORT)


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_every_figure_is_shown(path):
    old = leaf(path)
    rare, shown = (70713, "70,713") if isinstance(old, int) else (0.07131, "0.0713")
    if "edges" in path:  # edges rise
        rare = old + 0.07
        shown = number(rare)
    assert shown not in PAGE
    assert shown in Page(render_report(with_leaf(REPORT, path, rare), IMAGES)).text


def test_every_floor_is_shown():
    text = Page(PAGE).text
    assert [floor in text for floor in ("0.210", "1.50", "0.880")] == [True] * 3


def test_digests_and_recipe_are_shown():
    for told in ("9f" * 32, "ab" * 32, "1c" * 32, "d4" * 32, "[data]\n", "2.5.1"):
        assert told in Page(PAGE).text


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("gone", ["null", "missing"])
def test_a_section_may_be_missing(section, gone):
    report = {**REPORT, section: None} if gone == "null" else {k: v for k, v in REPORT.items() if k != section}
    page = Page(render_report(report, IMAGES))
    if section not in ("recipe", "versions", "data", "model", "training", "verdict", "evidence"):
        assert any(a.get("class") == "missing" for a in page.all("p"))
    assert not re.search("None|Undefined", page.text)


def test_a_part_of_a_section_may_be_missing():
    for section in SECTIONS:
        if isinstance(REPORT[section], dict):
            for key in REPORT[section]:
                without = copy.deepcopy(REPORT)
                del without[section][key]
                for report in (without, with_leaf(REPORT, (section, key), None)):
                    assert "None" not in Page(render_report(report, IMAGES)).text, (section, key)


def test_an_empty_report_says_what_is_missing():
    page = Page(render_report({"format": 1}))
    assert "No verdict" in page.text
    assert sum(a.get("class") == "missing" for a in page.all("p")) > 10


@pytest.mark.parametrize("format_version", [None, 0, 2])
def test_another_format_is_refused_by_name(format_version):
    with pytest.raises(InputError, match=f"format {format_version!r}; this version reads 1"):
        render_report({**REPORT, "format": format_version})


def test_nan_is_never_shown():
    for path in NUMBERS:
        page = Page(render_report(with_leaf(REPORT, path, float("nan"))))
        drawn = [value for tag, attributes in page.tags for value in attributes.values() if value]
        assert not re.search(r"\bnan\b", " ".join([page.text, *drawn]), re.IGNORECASE), path


def test_the_page_asks_for_nothing():
    page = Page(PAGE)
    assert not re.search(r"https?:|@import|url\(", PAGE)
    assert not {"script", "iframe", "object", "embed", "form", "base", "video", "audio"} & {tag for tag, _ in page.tags}
    policy = next(a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    for tag, attributes in page.tags:
        for key in ("src", "href", "srcset", "xlink:href"):
            assert attributes.get(key, "#").startswith(("data:", "#")), (tag, attributes)
        assert not [key for key in attributes if key.startswith("on")]


def test_the_same_report_gives_the_same_page():
    assert render_report(copy.deepcopy(REPORT), dict(IMAGES)) == PAGE


def test_the_input_is_left_as_it_was():
    report = copy.deepcopy(REPORT)
    render_report(report, IMAGES)
    assert report == REPORT


@pytest.mark.parametrize(("outcome", "word"), [("pass", "Pass"), ("fail", "Fail"), ("undecided", "Undecided")])
def test_the_verdict_has_a_word_a_shape_and_a_colour(outcome, word):
    page = render_report(with_leaf(REPORT, ("verdict", "outcome"), outcome))
    others = [render_report(with_leaf(REPORT, ("verdict", "outcome"), o)) for o in ("pass", "fail", "undecided")]
    banners = [re.search(r'<div class="verdict.*?</div>', other, re.DOTALL).group() for other in others]
    assert len({re.search(r"<svg.*?</svg>", banner, re.DOTALL).group() for banner in banners}) == 3
    assert f'class="verdict {outcome}"' in page
    assert f"</span>{word}</h2>" in page
    assert page.index("</h2>") < page.index(REPORT["verdict"]["reason"]) < page.index("What was changed")


def test_headings_go_down_one_level_at_a_time():
    levels = [int(tag[1]) for tag, _ in Page(PAGE).tags if re.fullmatch(r"h[1-6]", tag)]
    assert [place for place, level in enumerate(levels) if level == 1] == [0]
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_order_of_the_page():
    titles = ["What was changed", "What this does not show", "Models compared with", "The verdict's rule"]
    titles += [
        "Evidence, never a verdict",
        "Membership audit",
        "The rows",
        "Scores and cut-off",
        "Detection quality",
        "The edit's steps",
        "Cost",
        "Provenance",
    ]
    places = [re.search(r"<h2 id=[^>]*>" + re.escape(title), PAGE).start() for title in titles]
    assert places == sorted(places)


def test_a_page_can_be_read_without_eyes_or_mouse():
    page = Page(PAGE)
    assert page.all("html") == [{"lang": "en"}]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a["href"][1:] in ids for a in page.all("a"))
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("aria-hidden") == "true" or a["aria-labelledby"] in ids for a in page.all("svg"))
    assert all(a["tabindex"] == "0" and a["aria-label"] for _, a in page.tags if a.get("class") == "scroll")
    assert page.tags.index(("a", {"class": "skip", "href": "#main"})) < [t for t, _ in page.tags].index("header")
    assert PAGE.count("<table") == PAGE.count('<div class="scroll"')


def test_rows_show_id_labels_predictions_and_what_was_done():
    cards = [Page(card) for card in re.findall(r"<figure class=\"card.*?</figure>", PAGE, re.DOTALL)]
    assert len(cards) == 6
    assert all(told in cards[0].text for told in ("mnist5k-0001", "3 → 8", "predicted 3 → 8", "relabelled", "6.10"))
    assert "left as it was" in cards[1].text
    assert [len(card.all("img")) for card in cards] == [1, 0, 0, 0, 0, 0]
    assert "mnist5k-0001" in cards[0].all("img")[0]["alt"]


def test_many_rows_are_folded():
    page = render_report(with_leaf(REPORT, ("detection", "top"), [top_row(rank) for rank in range(1, 49)]))
    assert page.count('<figure class="card"') == 48 + 4
    assert "24 more rows" in page


def test_a_removal_is_named_so():
    page = render_report(with_leaf(REPORT, ("edit", "action"), "remove"))
    assert "training rows of mnist5k were removed" in page
    assert "a higher accuracy here is a trace of the row" in page
    assert "a higher accuracy here is a trace of the row" not in PAGE


def test_a_run_without_an_audit_says_so():
    page = Page(render_report({**REPORT, "audit": None}))
    assert "No membership audit was run" in page.text
    assert "unlearn audit RUN" in page.text
    assert "No membership audit was run" not in Page(PAGE).text


def test_the_audit_shows_every_model_by_every_attack():
    table = re.search(r'aria-label="Attacks: All changed rows".*?</table>', PAGE, re.DOTALL).group()
    lines = [
        [Page(cell).text.strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", line)] for line in table.split("<tr")[1:]
    ]
    assert lines == [
        ["model", "audit", "lira", "less-confident", "remembered", "over-forgotten"],
        ["edited", "undecided", "37 %32 to 44AUC 0.873", "11 %6 to 17AUC 0.873", "48", "1"],
        ["unedited", "fail", "89 %84 to 95AUC 0.873", "", "133", "2"],
        ["learned the rows", "", "91 %86 to 97AUC 0.873", "", "", ""],
        ["false positives", "", "1 %", "1 %", "", ""],
    ]


def test_measures_of_the_verdict_stand_in_for_the_verification():
    table = [*measured("kept", "agreement", (0.1, 0.917), 0.95)]
    report = {**REPORT, "verification": None, "verdict": {**REPORT["verdict"], "measures": table}}
    assert "0.917" in Page(render_report(report)).text


def test_a_broken_picture_is_refused():
    with pytest.raises(InputError, match=r"shape \(30,\)"):
        render_report(REPORT, {"mnist5k-0001": np.zeros(30)})
