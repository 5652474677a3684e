"""The frontier of a repair benchmark as one HTML file: distance to retraining against cost, and its tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from string import ascii_uppercase
from typing import Any

from unlearn.errors import InputError
from unlearn.report.charts import frontier_chart
from unlearn.report.rendering import FORMAT, environment

TITLES = {
    "phi error / spread": "phi error on changed rows, in spreads between retrains",
    "KL": "KL to the retrain on test rows",
    "cosine changed": "cosine of the logit change on changed rows",
    "cosine test": "cosine of the logit change on test rows",
}
DISTANCES = ("phi error / spread", "KL")


def render_frontier(facts: Mapping[str, Any]) -> str:
    """Return a repair benchmark as one self-contained HTML page: a chart for each measure, then the tables.

    Args:
        facts: what :func:`unlearn.pipeline.frontier.benchmark_repair` returns.

    Raises:
        InputError: facts of another format.

    >>> facts = {"format": 1, "recipe": "digits-quick", "seeds": [0], "rows": 9, "changed": [2], "which": "as detected"}
    >>> none = {"method": "unedited", "cost": 0.0, **{name: {"mean": 1.0, "worst": 1.0} for name in TITLES}}
    >>> facts |= {"action": "remove", "levels": [], "floors": [{"floor": 0.1}], "unedited": none, "ours": []}
    >>> page = render_frontier(facts)
    >>> "digits-quick" in page, "<script" in page
    (True, False)
    """
    if facts.get("format") != FORMAT:
        raise InputError(f"the benchmark has format {facts.get('format')!r}; this version reads {FORMAT}: run it again")
    kind = "chosen" if len(facts["seeds"]) > 1 else "oracle"
    rivals = dict.fromkeys(row["method"] for level in facts["levels"] for row in level["oracle"])
    letters = _letters(rivals)
    floors = {"phi error / spread": 1.0, "KL": sum(f["floor"] for f in facts["floors"]) / len(facts["floors"])}
    charts = [
        (
            title,
            frontier_chart(
                list(_points(facts, measure, kind, letters)),
                facts["unedited"][measure]["mean"],
                floors.get(measure),
                distance=measure in DISTANCES,
            ),
        )
        for measure, title in TITLES.items()
    ]
    page = environment().get_template("frontier.html.j2")
    return page.render(facts=facts, charts=charts, letters=letters, titles=TITLES, oracle=kind == "oracle")


def _letters(names: Iterable[str]) -> dict[str, str]:
    """Return a letter for each name: the first of its own that is free.

    >>> _letters(["replay", "random labels"])
    {'replay': 'R', 'random labels': 'A'}
    """
    found: dict[str, str] = {}
    for name in names:
        own = (letter for letter in (name + ascii_uppercase).upper() if letter.isalpha())
        found[name] = next(letter for letter in own if letter not in found.values())
    return found


def _points(
    facts: Mapping[str, Any], measure: str, kind: str, letters: Mapping[str, str]
) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield each mark once: a rival's setting may be its best at several costs."""
    seen = set()
    for level in facts["levels"]:
        for row in level[kind]:
            cost = level["cost"] if row["cost"] is None else row["cost"]
            mark = ("rival", letters.get(row["method"], ""), cost, row[measure]["mean"])
            if row["method"] in letters and mark not in seen:
                seen.add(mark)
                yield mark
    for row in facts["ours"]:
        yield "ours" if row["method"] == "ours" else "final", "", row["cost"], row[measure]["mean"]
