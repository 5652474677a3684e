import copy
import re
from itertools import pairwise

import numpy as np
import pytest
from report_cases import REPORT, Page, leaves, with_leaf

from unlearn.errors import InputError
from unlearn.report import render_report
from unlearn.report.explanation import render_explanations
from unlearn.report.wording import MINUS


def row(k, truth=4):
    sign = -1 if k < 50 else 1
    figures = {"influence": sign * (120.7 - k), "loss_change": -sign * (120.7 - k) / 4000}
    return {"id": f"mnist5k-{k:04d}", "given": 4, "suggested": None if truth == 4 else truth, "truth": truth, **figures}


def query(name, itself=None):
    return {
        "query": name,
        "place": "test",
        "given": 4,
        "predicted": 9,
        "probability": 0.831,
        "label": 4,
        "loss": 2.37,
        "rows": 4000,
        "helpful": [row(k) for k in range(1, 9)],
        "harmful": [row(51, truth=7), *(row(k) for k in range(52, 59))],
        "itself": itself,
        "options": {"kind": "ekfac", "damping": 0.00833, "weight_decay": 0.001},
    }


FACTS = {
    "format": 1,
    "recipe": "mnist5k-relabel",
    "data": "mnist5k",
    "label": "given",
    "truth_known": True,
    "explanations": [query("mnist5k-0900"), query("mnist5k-0901", itself=row(30, truth=8))],
}
IDS = [f"mnist5k-{k:04d}" for k in (*range(1, 9), *range(51, 59), 900, 901)]
IMAGES = {name: np.random.default_rng(k).random((1, 28, 28)) for k, name in enumerate(IDS)}
PAGE = render_explanations(FACTS, IMAGES)
TEXTS = copy.deepcopy({**FACTS, "text_shows": "the most extreme columns"})
for one in TEXTS["explanations"]:
    for place in (one, *one["helpful"], *one["harmful"]):
        place["text"] = "worst area +3.1, mean radius -2.0"
TEXT_PAGE = render_explanations(TEXTS)
ATTACK = "\"><script>alert('x')</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"


def cards(page, kind):
    """Cards of one list of the first query."""
    part = re.search(rf'<div class="{kind}">.*?</ol>', page, re.DOTALL).group()
    return [Page(card) for card in re.findall(r'<figure class="card.*?</figure>', part, re.DOTALL)]


def test_cards_show_id_labels_and_figures_in_order():
    helpful, harmful = cards(PAGE, "helpful"), cards(PAGE, "harmful")
    assert (len(helpful), len(harmful)) == (8, 8)
    for card, k in zip([*helpful, *harmful], [*range(1, 9), *range(51, 59)], strict=True):
        assert f"mnist5k-{k:04d}" in card.text
    assert f"influence {MINUS}120" in helpful[0].text
    assert "without it +0.0299" in helpful[0].text
    assert "influence 69.7" in harmful[0].text
    assert f"without it {MINUS}0.0174" in harmful[0].text


def test_a_mislabelled_row_is_named_so_in_words():
    marked = [card for card in cards(PAGE, "harmful") if "mislabelled: is 7" in card.text]
    assert len(marked) == 1
    assert "suggested 7" in marked[0].text
    assert marked[0].all("img")[0]["alt"] == "Picture of training row mnist5k-0051, labelled 4, truly 7"
    assert "mislabelled" not in "".join(card.text for card in cards(PAGE, "helpful"))
    unknown = render_explanations(with_leaf(FACTS, ("explanations", 0, "harmful", 0, "truth"), None), IMAGES)
    assert "mislabelled" not in "".join(card.text for card in cards(unknown, "harmful"))


def test_the_query_stands_before_its_rows():
    text = Page(PAGE).text
    places = [
        text.index(told)
        for told in ("mnist5k-0900, test row", "4 → 9", "0.831", "2.37", "Most helpful", "Most harmful")
    ]
    assert places == sorted(places)
    assert text.count("mislabelled: is 8") == text.count("suggested 8") == 1
    assert text.count(f"itself a training row: influence {MINUS}90.7, without it +0.0227") == 1


def test_without_pictures_rows_are_in_tables_that_scroll():
    page = Page(TEXT_PAGE)
    assert not page.all("img")
    assert TEXT_PAGE.count("<table") == TEXT_PAGE.count('<div class="scroll"') == 4
    assert page.text.count("worst area +3.1, mean radius -2.0") == 34
    assert "Inputs: the most extreme columns." in page.text
    assert f"{MINUS}120" in page.text
    assert "true" in page.text
    no_truth = render_explanations({**TEXTS, "truth_known": False})
    assert no_truth.count('<th scope="col">true</th>') == 0 < TEXT_PAGE.count('<th scope="col">true</th>')


def test_an_empty_list_is_said_to_be_empty():
    page = render_explanations(with_leaf(FACTS, ("explanations", 0, "harmful"), []), IMAGES)
    assert "No row is harmful here." in page


@pytest.mark.parametrize("facts", [FACTS, TEXTS], ids=["pictures", "texts"])
def test_html_in_a_string_shows_as_text(facts):
    images = IMAGES if facts is FACTS else None
    kept = render_explanations(facts, images)
    for path in [path for path, value in leaves(facts) if isinstance(value, str) and path[-1] not in ("data", "label")]:
        attacked = render_explanations(with_leaf(facts, path, ATTACK), images)
        assert "<script" not in attacked, path
        assert [tag for tag, _ in Page(attacked).tags if tag != "img"].count("section") == kept.count("<section")
        assert not [a for _, a in Page(attacked).tags if "onerror" in a], path


def test_the_page_asks_for_nothing_and_has_the_head_of_the_report():
    page = Page(PAGE)
    assert not re.search(r"https?:|@import|url\(", PAGE)
    for tag, attributes in page.tags:
        for key in ("src", "href", "srcset"):
            assert attributes.get(key, "#").startswith(("data:", "#")), (tag, attributes)
    for tag in ("html", "meta", "link"):
        assert page.all(tag) == Page(render_report(REPORT)).all(tag)


@pytest.mark.parametrize("shown", [PAGE, TEXT_PAGE], ids=["pictures", "texts"])
def test_the_page_can_be_read_without_eyes_or_mouse(shown):
    page = Page(shown)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a["href"][1:] in ids for a in page.all("a"))
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a["tabindex"] == "0" and a["aria-label"] for _, a in page.tags if a.get("class") == "scroll")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1 == levels[0]
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_the_same_facts_give_the_same_page_and_are_left_as_they_were():
    facts = copy.deepcopy(FACTS)
    assert render_explanations(facts, dict(IMAGES)) == PAGE
    assert facts == FACTS


@pytest.mark.parametrize("version", [None, 0, 2])
def test_another_format_is_refused_by_name(version):
    with pytest.raises(InputError, match=f"format {version!r}; this version reads 1: explain again"):
        render_explanations({**FACTS, "format": version})
