"""How a verdict is printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unlearn.cli.shared import cell, print_table, print_wrapped

_SHOWN = 5
_COLUMNS = {
    "accuracy": "accuracy",
    "kl": "KL",
    "phi_error": "phi error",
    "change_cosine": "cosine",
    "agreement": "agree",
    "calibration": "ECE",
}


def print_verdict(facts: Mapping[str, Any]) -> None:
    """Print a verdict: the measures, who pays, what is remembered, the bounds, and the outcome last.

    The other measures (loss, phi, Jensen-Shannon, CKA), spreads and all groups are in the JSON.
    """
    for group in dict.fromkeys(row["group"] for row in facts["measures"]):
        _print_measures(group, [row for row in facts["measures"] if row["group"] == group])
    _print_worse(facts.get("subgroups", ()))
    _print_remembered(facts)
    if facts["table"]:
        print_table(
            f"r = distance to retrains / distance between them (tolerance {facts['tolerance']:g})",
            ["group", "r", "95 % bounds", "unedited r", "rows", "references"],
            [
                [
                    row["group"],
                    row["r"],
                    None if row["r"] is None else f"{cell(row['lower'])} to {cell(row['upper'])}",
                    row["unedited_r"],
                    row["rows"],
                    row["references"],
                ]
                for row in facts["table"]
            ],
        )
    for row in facts.get("weights", ()):
        if row["model"] == "edited":
            floor = "" if row["floor"] is None else f"; between retrains {cell(row['floor'])}"
            print_wrapped(f"weights: {cell(row['value'])} from the {row['reference']} retrain{floor}.")
    cost = facts.get("cost") or {}
    if cost.get("ratio") is not None:
        print_wrapped(
            f"cost: {cell(cost['edit'])} training epochs, {cell(cost['ratio'])} of a retrain's {cell(cost['retrain'])}."
        )
    for note in facts.get("notes", ()):
        print_wrapped(f"note: {note}.")
    print_wrapped(f"verdict: {facts['outcome'].upper()}. {facts['reason']}")


def _print_measures(group: str, rows: Iterable[Mapping[str, Any]]) -> None:
    found = {(row["model"], row["measure"]): row for row in rows}
    wanted = [name for name in _COLUMNS if any(measure == name for _, measure in found)]
    floors = {name: next((r["floor"] for (_, m), r in found.items() if m == name), None) for name in wanted}
    lines = [
        [model, *(found.get((model, name), {}).get("value") for name in wanted)]
        for model in dict.fromkeys(model for model, _ in found)
    ]
    lines.append(["floor", *(floors[name] for name in wanted)])
    print_table(f"{group} rows (floor: between retrains)", ["", *(_COLUMNS[name] for name in wanted)], lines)


def _print_worse(subgroups: Iterable[Mapping[str, Any]]) -> None:
    parts = list(subgroups)
    worse = sorted((row for row in parts if row["worse"]), key=lambda row: row["change"])
    if worse:
        print_table(
            f"made worse: accuracy below what one more retrain would have ({len(worse)} of {len(parts)} parts)",
            ["rows", "part", "n", "before", "edited", "retrained", "change"],
            [
                [
                    row["group"],
                    _short(row["part"] if row["kind"] == "named" else f"class {row['part']}"),
                    row["rows"],
                    row["unedited"],
                    row["edited"],
                    row["independent"],
                    row["change"],
                ]
                for row in worse[:_SHOWN]
            ],
        )
    elif any(row["worse"] is not None for row in parts):
        print_wrapped(f"No class or named group of {len(parts)} is below what one more retrain would have.")


def _print_remembered(facts: Mapping[str, Any]) -> None:
    rows = facts.get("remembered", ())
    if rows:
        print_table(
            f"{rows[0]['group']} rows still remembered: {len(rows)} with z above 2 (of rows never seen, 1 in 40)",
            ["id", "label", "phi before", "edited", "retrained", "spread", "z"],
            [
                [
                    _short(row["id"]),
                    row["label"],
                    *(row[name] for name in ("phi_unedited", "phi_edited", "phi_retrained", "spread", "z")),
                ]
                for row in rows[:_SHOWN]
            ],
        )


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
