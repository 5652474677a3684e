"""Options and tables that several commands share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

run_argument = click.argument("run_folder", metavar="RUN", type=click.Path())
device_option = click.option("--device", help="Where to compute, as torch names it; the CPU if not given.")
NO_BOUND = "no bound: this edit is measured against retraining, not certified"
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def print_json(facts: Mapping[str, Any]) -> None:
    """Print a result for machines."""
    click.echo(json.dumps(facts, indent=1, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table of at most 80 columns; numbers are right-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for k, name in enumerate(columns):
        numeric = all(isinstance(row[k], (int, float, type(None))) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    click.echo(title)
    Console(width=80).print(table)


def print_wrapped(text: str) -> None:
    """Print a sentence in lines of at most 80 characters."""
    click.echo(click.wrap_text(text, width=80))


def cell(value: object) -> str:
    """Return a value as text: three significant digits, a dash for what is not there.

    >>> cell(0.123456), cell(None), cell(12), cell(1234.5)
    ('0.123', '-', '12', '1234')
    """
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def print_verdict(facts: Mapping[str, Any]) -> None:
    """Print a verdict: the measures, the bounds, and the outcome last."""
    wanted = ("accuracy", "kl", "phi_error", "change_cosine", "agreement")
    models = list(dict.fromkeys(row["model"] for row in facts["measures"]))
    for group in dict.fromkeys(row["group"] for row in facts["measures"]):
        found = {(row["model"], row["measure"]): row for row in facts["measures"] if row["group"] == group}
        floors = {name: next((r["floor"] for (_, m), r in found.items() if m == name), None) for name in wanted}
        rows = [[model, *(found.get((model, name), {}).get("value") for name in wanted)] for model in models]
        rows.append(["floor (between retrains)", *(floors[name] for name in wanted)])
        print_table(f"{group} rows", ["", "accuracy", "KL", "phi error", "cosine", "agree"], rows)
    if facts["table"]:
        print_table(
            f"r = distance to retrains / distance between them (tolerance {facts['tolerance']:g})",
            ["group", "r", "95 % bounds", "unedited r", "rows", "references"],
            [
                [
                    row["group"],
                    row["r"],
                    f"{cell(row['lower'])} to {cell(row['upper'])}",
                    row["unedited_r"],
                    row["rows"],
                    row["references"],
                ]
                for row in facts["table"]
            ],
        )
    for note in facts.get("notes", ()):
        print_wrapped(f"note: {note}")
    print_wrapped(f"verdict: {facts['outcome'].upper()}. {facts['reason']}")
