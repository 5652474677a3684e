"""``unlearn audit``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from unlearn.cli.shared import cell, device_option, json_option, print_json, print_table, print_wrapped, run_argument


@click.command()
@run_argument
@click.option("--shadows", default=16, show_default=True, type=click.IntRange(min=6), help="With and without the rows.")
@click.option("--unlearned", type=click.IntRange(min=0), help="Models that learn and then unlearn; half of --shadows.")
@click.option("--top", default=8, show_default=True, type=click.IntRange(min=0), help="Flagged rows to list.")
@device_option
@json_option
def audit(run_folder: str, shadows: int, unlearned: int | None, top: int, device: str | None, as_json: bool) -> None:
    """Attack the changed rows: can they still be told from rows never seen?

    Shadow models are trained with the rows, without them, and with them and then
    edited as the run's model was. What this costs is told first; finished models
    are kept in the run folder, and what was stopped goes on there. Two-sided: a
    row that the model is too little sure of gives itself away as well. The
    unedited model and rivals at the edit's cost are attacked beside it, and the
    run's report shows it all.

    Exits with 0 for a pass, 1 for a fail, 3 for undecided.

    \b
    Example: unlearn audit runs/digits --shadows 32
    """
    from unlearn.pipeline import Run, report_stage
    from unlearn.pipeline.audit import audit_run

    run = Run.open(run_folder, device=device)
    found = audit_run(
        run,
        shadows,
        unlearned=unlearned,
        tell=lambda price: click.echo(f"shadow models: {price}", err=True),
    )
    report_stage(run)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found.to_dict(), top)
        click.echo(f"report: {run.folder / 'report.html'}")
    click.get_current_context().exit(found.exit_code)


def _print(facts: Mapping[str, Any], top: int) -> None:
    """Print the rates, epsilon, the flagged rows, and the outcome last."""
    for group in dict.fromkeys(line["group"] for line in facts["table"]):
        lines = [line for line in facts["table"] if line["group"] == group]
        print_table(
            f"{group} rows: true positive rate at {facts['fpr']:.0%} false positives",
            ["attack", "on models", "auc", "TPR", "95 % interval", "FPR", "scores"],
            [
                [
                    line["attack"],
                    line["models"],
                    round(line["auc"], 3),
                    f"{line['tpr']:.1%}",
                    f"{line['lower']:.1%} to {line['upper']:.1%}",
                    f"{line['fpr']:.1%}",
                    line["rows"],
                ]
                for line in lines
            ],
        )
    print_table(
        "models beside it: TPR on all rows; rows flagged as remembered, over-forgotten",
        ["model", "audit", "lira", "offline", "less-confident", "auc", "flagged"],
        [_model("edited", facts), *(_model(one["model"], one) for one in facts["beside"])],
    )
    for kind, one in facts["epsilon"].items():
        print_wrapped(
            f"epsilon of {kind} models: median {cell(one['median'])} ({cell(one['by_chance'])} by chance), "
            f"{one['at_cap']} of {len(facts['rows'])} rows at the cap {cell(one['cap'])}, the most that "
            f"N = {one['models'][0]} and {one['models'][1]} models can show; forgetting quality {cell(one['quality'])}"
        )
    flagged = sorted((row for row in facts["rows"] if row["flag"]), key=lambda row: row["p"])
    if flagged and top:
        print_table(
            f"flagged rows, {min(top, len(flagged))} of {len(flagged)}",
            ["id", "phi", "never seen", "learned", "p", ""],
            [
                [
                    row["id"],
                    f"{row['phi']:.1f}",
                    f"{row['never_mean']:.1f} +- {row['never_std']:.1f}",
                    f"{row['learned_mean']:.1f} +- {row['learned_std']:.1f}",
                    f"{row['p']:.1g}",
                    row["flag"],
                ]
                for row in flagged[:top]
            ],
        )
    for note in facts["notes"]:
        print_wrapped(f"note: {note}")
    print_wrapped(f"audit: {facts['outcome'].upper()}. {facts['reason']}")


def _model(name: str, facts: Mapping[str, Any]) -> list[object]:
    """Return a model's line of the table of models."""
    lines = {line["attack"]: line for line in facts["table"] if (line["group"], line["models"]) == ("all", "audited")}
    found = [f"{lines[attack]['tpr']:.0%}" for attack in ("lira", "lira-offline", "less-confident")]
    return [
        name,
        facts["outcome"],
        *found,
        f"{lines['lira']['auc']:.2f}",
        f"{facts['remembered']}, {facts['over_forgotten']}",
    ]
