"""Rows that the page shows: flagged, changed, and still remembered, with what the models say of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from unlearn.data import Rows
from unlearn.predict import predict
from unlearn.repair import Edit

SHOWN = 24
_PHI = ("z", "phi_unedited", "phi_edited", "phi_retrained")


def complete_rows(
    report: dict[str, Any], data: Rows, suggested: Mapping[str, str], original: nn.Module, edit: Edit | None
) -> None:
    """Say of the flagged rows what was done with them, and add ``changed`` and ``remembered`` to a report.

    Changed are rows that are not among the flagged ones listed. Remembered are those that the verdict names.

    Args:
        report: with ``detection`` and ``verdict``; changed.
        data: the training rows, with their labels before the edit.
        suggested: labels by row id, as a scores file has them.
        original: the model before the edit.
        edit: what was done, or None.
    """
    top = (report["detection"] or {}).get("top") or []
    changes = None if edit is None else edit.changes
    changed = () if changes is None else changes.ids
    acted = set((report["detection"] or {}).pop("acted", ())) if changes is None else set(changed)
    listed = {row["id"] for row in top}
    others = [row for row in changed if row not in listed]
    remembered = [dict(row) for row in (report["verdict"] or {}).get("remembered") or []]
    mine = [row for row in remembered if row["id"] in data]
    said = _predictions(data, original, edit, {*listed, *others[:SHOWN], *(row["id"] for row in mine[:SHOWN])})

    def about(row: str) -> dict[str, Any]:
        removed = changes is not None and row not in changes.relabelled
        return {
            "id": row,
            "given": int(data.labels[int(data.positions([row]))]),
            "suggested": int(suggested[row]) if row in suggested else None,
            "becomes": None if changes is None or removed else changes.relabelled[row],
            **said[row],
        }

    if report["detection"] is not None:
        report["detection"].pop("acted", None)
    for row in top:
        row |= {"acted": row["id"] in acted, **said[row["id"]]}
    report["changed"] = {"rows": len(changed), "listed": [about(row) for row in others[:SHOWN]]}
    report["remembered"] = None
    if report["verdict"] is not None and "remembered" in report["verdict"]:
        report["remembered"] = {
            "rows": len(remembered),
            "listed": [{**about(row["id"]), **{name: row.get(name) for name in _PHI}} for row in mine[:SHOWN]],
        }


def listed_rows(report: Mapping[str, Any]) -> list[str]:
    """Return the ids of all rows that a report lists, each once."""
    lists = [(report.get("detection") or {}).get("top") or []]
    lists += [(report.get(name) or {}).get("listed") or [] for name in ("changed", "remembered")]
    return list(dict.fromkeys(row["id"] for rows in lists for row in rows))


def _predictions(data: Rows, original: nn.Module, edit: Edit | None, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    wanted = sorted(ids)
    if not wanted:
        return {}
    rows = data.only(wanted)
    before = predict(original, rows).argmax(1).tolist()
    after = [None] * len(wanted) if edit is None else predict(edit.comparable, rows).argmax(1).tolist()
    return {
        row: {"predicted_before": old, "predicted_after": new}
        for row, old, new in zip(wanted, before, after, strict=True)
    }
