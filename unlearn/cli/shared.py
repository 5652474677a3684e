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


def parse_option(text: str) -> tuple[str, Any]:
    """Return the key and the value of KEY=VALUE, the value read as JSON where it is.

    >>> parse_option("widths=[32]"), parse_option("name=a")
    (('widths', [32]), ('name', 'a'))
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"--option {text!r} is not KEY=VALUE; write for example --option inputs=64")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
