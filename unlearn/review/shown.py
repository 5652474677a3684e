"""What the page shows of a review, as JSON-able data: pictures or texts, labels, neighbours, decisions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from unlearn.data import Rows
from unlearn.pipeline.appearance import Appearance
from unlearn.report import picture
from unlearn.review.review import BEFORE, DECISIONS, Decision, Review

PAGE_ROWS = 32


@dataclass(frozen=True)
class Shown:
    """A review as the page sees it.

    Attributes:
        review: the decisions.
        data: the training rows.
        appearance: how they are shown.
        name: of the run.
        command: what to do when the review is written.
        note: why no neighbours are shown, or None.
    """

    review: Review
    data: Rows
    appearance: Appearance
    name: str
    command: str
    note: str | None = None

    def state(self) -> dict[str, Any]:
        """Return what is the same for all rows, and how far the review is."""
        return {
            "name": self.name,
            "classes": self.review.classes,
            "page_rows": PAGE_ROWS,
            "text_shows": None if self.appearance.pictured else self.appearance.text_shows,
            "neighbours_note": self.note,
            **self.progress(-1),
        }

    def progress(self, at: int) -> dict[str, Any]:
        """Return how far the review is, and the place of the next row without a decision after this one."""
        written = self.review.written
        return {
            "counts": self.review.counts,
            "next": self.review.next_open(at),
            "written": DECISIONS if written else None,
            "command": self.command if written else None,
            "before": BEFORE if (self.review.folder / BEFORE).exists() else None,
        }

    def following(self, at: int) -> dict[str, Any]:
        """Return the place of the next row without a decision."""
        return {"next": self.review.next_open(at)}

    def row(self, at: int) -> dict[str, Any]:
        """Return one row with its neighbours."""
        row = self.review.rows[at]
        beside = [*row.alike, *row.against]
        looks = self._looks({row.id, *(one["id"] for one in beside)})
        return {
            "at": at,
            "id": row.id,
            "score": row.score,
            "given": row.given,
            "suggested": list(row.suggested),
            "predicted": row.predicted,
            "probability": row.probability,
            "decision": _plain(self.review.decisions.get(row.id)),
            **looks[row.id],
            "alike": [{**one, **looks[one["id"]]} for one in row.alike],
            "against": [{**one, **looks[one["id"]]} for one in row.against],
        }

    def page(self, start: int) -> dict[str, Any]:
        """Return some rows in short, for the list."""
        rows = self.review.rows[start : start + PAGE_ROWS]
        looks, decisions = self._looks(row.id for row in rows), self.review.decisions
        return {
            "from": start,
            "rows": [
                {"at": at, "id": row.id, "given": row.given, "decision": _plain(decisions.get(row.id)), **looks[row.id]}
                for at, row in enumerate(rows, start)
            ],
        }

    def _looks(self, ids: Iterable[str]) -> dict[str, dict[str, str]]:
        rows = self.data.only(sorted(ids))
        if self.appearance.pictured:
            return {row: {"picture": picture(array)} for row, array in self.appearance.pictures(rows).items()}
        return {row: {"text": text} for row, text in self.appearance.texts(rows).items()}


def _plain(decision: Decision | None) -> dict[str, Any] | None:
    return None if decision is None else {"action": decision.action, "label": decision.label}
