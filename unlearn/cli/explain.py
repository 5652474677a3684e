"""``unlearn explain``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from unlearn.cli.shared import cell, device_option, json_option, print_json, print_table, print_wrapped, run_argument


@click.command()
@run_argument
@click.option("--query", "queries", metavar="ID", required=True, multiple=True, help="Row to explain; repeatable.")
@click.option("--top", default=8, show_default=True, type=click.IntRange(min=1), help="Rows in each list.")
@click.option(
    "--label",
    type=click.Choice(["given", "predicted"]),
    default="given",
    show_default=True,
    help="Explain the loss at the row's own label (why right or wrong), or at the class predicted (why that).",
)
@click.option("--out", type=click.Path(), help="Page to write; explain.html in the run folder if not given.")
@device_option
@json_option
def explain(
    run_folder: str, queries: tuple[str, ...], top: int, label: str, out: str | None, device: str | None, as_json: bool
) -> None:
    """Show the training rows that helped and harmed a prediction most.

    Queries are test rows or training rows. The model is the run's original;
    nothing is trained. The page shows the rows as pictures, or as text.

    \b
    Example: unlearn explain runs/digits --query mnist5k-0007
             unlearn explain runs/digits --query mnist5k-0007 --top 12 --json
    """
    from pathlib import Path

    from unlearn.atomic import write_atomically
    from unlearn.pipeline import Run
    from unlearn.pipeline.explain import explain_run
    from unlearn.report.explanation import render_explanations

    run = Run.open(run_folder, device=device)
    facts, images = explain_run(run, queries, top=top, label=label)
    page = run.folder / "explain.html" if out is None else Path(out)
    write_atomically(page, render_explanations(facts, images).encode())
    if as_json:
        print_json({**facts, "page": str(page)})
        return
    for one in facts["explanations"]:
        _print(one, facts)
    click.echo(f"page: {page}")


def _print(one: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Print one explanation."""
    truth = facts["truth_known"]
    sure = "" if one["probability"] is None else f" with probability {cell(one['probability'])}"
    print_wrapped(
        f"{one['query']} ({one['place']} row): labelled {_label(one['given'])}, predicted "
        f"{_label(one['predicted'])}{sure}; loss {cell(one['loss'])} at label {_label(one['label'])}"
    )
    if "text" in one:
        print_wrapped(f"{one['text']} ({facts['text_shows']})")
    click.echo()
    columns = ["rank", "id", "given", "suggested", *(["true"] if truth else []), "influence", "loss change"]
    for name in ("helpful", "harmful"):
        rows = [[k, *_cells(row, truth)] for k, row in enumerate(one[name], 1)]
        if rows:
            print_table(f"most {name} training rows", columns, rows)
        else:
            click.echo(f"no {name} training rows\n")
    if one["itself"] is not None:
        print_wrapped(
            f"The row itself is a training row, in neither list: suggested label {cell(one['itself']['suggested'])}, "
            f"influence {cell(one['itself']['influence'])}, loss change {one['itself']['loss_change']:+.2g}."
        )
    print_wrapped(
        "Positive influence is harmful: if the row were removed, the loss would change by about -influence / "
        f"{one['rows']}, the last column. An estimate of first order: nothing was retrained."
    )
    click.echo()


def _cells(row: Mapping[str, Any], truth: bool) -> list[object]:
    true = [_label(row["truth"])] if truth else []
    return [row["id"], _label(row["given"]), row["suggested"], *true, row["influence"], f"{row['loss_change']:+.2g}"]


def _label(label: Any) -> str:
    return ", ".join(cell(part) for part in label) if isinstance(label, (list, tuple)) else cell(label)
