"""``unlearn recipe``: list, show and run recipes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from unlearn.cli.certified import print_certified_run
from unlearn.cli.evidence import print_evidence
from unlearn.cli.plan import print_plan
from unlearn.cli.request_rehearsal import run_rehearsal
from unlearn.cli.shared import (
    NO_BOUND,
    cell,
    device_option,
    json_option,
    print_json,
    print_table,
    print_wrapped,
)
from unlearn.cli.verdict import print_verdict
from unlearn.ranks import only_one_process

if TYPE_CHECKING:
    from unlearn.pipeline import DryRun


@click.group()
def recipe() -> None:
    """List, show and run recipes."""


@recipe.command("list")
@json_option
def list_recipes(as_json: bool) -> None:
    """List the recipes that come with the package.

    \b
    Example: unlearn recipe list
    """
    from unlearn.recipe import load_recipe, shipped_recipes

    found = {name: load_recipe(name).description for name in shipped_recipes()}
    if as_json:
        print_json(found)
        return
    for name, description in found.items():
        click.echo(f"{name:26}{description}")


@recipe.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a recipe; save it, change it, and run your own.

    \b
    Example: unlearn recipe show mnist5k-relabel > mine.toml
             unlearn recipe run mine.toml --out runs/mine
    """
    from unlearn.recipe import load_recipe

    click.echo(load_recipe(name).text, nl=False)


@recipe.command()
@click.argument("name")
@click.option("--out", type=click.Path(), help="Run folder; runs/NAME if not given.")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped; finished stages are skipped.")
@click.option("--strict", is_flag=True, help="Exit with 1 for a fail and 3 for undecided.")
@click.option("--dry-run", "dry", is_flag=True, help="Check recipe, data and model, and say what would run.")
@device_option
@json_option
def run(name: str, out: str | None, resume: bool, strict: bool, dry: bool, device: str | None, as_json: bool) -> None:
    """Train, detect, repair, verify, report: all stages of a recipe.

    With --dry-run nothing is trained and nothing written: it says whether data
    and model are there and fit, which stages would run, and what they cost
    without measuring time. Exits with 2 where the recipe can not run.

    \b
    Example: unlearn recipe run mnist5k-relabel
             unlearn recipe run mine.toml --out runs/mine --resume
             unlearn recipe run food101 --dry-run
    """
    from unlearn.recipe import load_recipe

    chosen = load_recipe(name)
    folder = out or f"runs/{chosen.name}"
    if dry:
        from unlearn.pipeline import Run, dry_run

        found = dry_run(Run.planned(folder, chosen, resume=resume, device=device))
        print_json(found.to_dict()) if as_json else _print_dry_run(found)
        click.get_current_context().exit(2 if found.problems else 0)
    if chosen.certified is not None or chosen.requests.rehearsal is not None:
        only_one_process("a recipe of a certified head, or one that rehearses requests,")
    from unlearn.pipeline import Run, run_certified, run_stages

    the_run = Run.create(folder, chosen, resume=resume, device=device)
    if chosen.certified is not None:
        print_certified_run(run_certified(the_run), as_json)
        if strict:
            click.get_current_context().exit(3)
        return

    def tell(stage: str, seconds: float | None) -> None:
        if not as_json:
            click.echo(f"{stage:8}{'finished before' if seconds is None else f'{seconds:6.1f} s'}", err=True)

    if chosen.requests.rehearsal is not None:
        run_stages(the_run, until="train", tell=tell)
        click.get_current_context().exit(run_rehearsal(the_run, as_json))
    run_stages(the_run, tell=tell)
    report = json.loads((the_run.folder / "report.json").read_text())
    if as_json:
        print_json(report)
    else:
        _print_report(report)
        click.echo(f"report: {the_run.folder / 'report.html'}")
    outcome = (report["verdict"] or {}).get("outcome")
    if strict and outcome != "pass":
        click.get_current_context().exit(1 if outcome == "fail" else 3)


def _print_dry_run(found: DryRun) -> None:
    """Print what is there and what is not, then layers and costs."""
    counts = {"training rows": found.rows, "test rows": found.test_rows, "parameters": found.parameters}
    click.echo(f"{found.recipe}: the recipe is valid")
    for what, count in counts.items():
        click.echo(f"{what:14}{'could not be looked at' if count is None else count}")
    stages = [name + (" (finished before)" if done else "") for name, done in found.stages.items()]
    print_wrapped(f"stages        {', '.join(stages)}")
    if found.plan is not None:
        click.echo()
        print_plan(found.plan)
    for problem in found.problems:
        click.echo(f"problem: {problem}", err=True)
    click.echo("it can not run" if found.problems else "it can run; nothing was trained or written")


def _print_report(report: dict[str, Any]) -> None:
    """Print what was found, what was done and the verdict."""
    data, found, edit = (_section(report, name) for name in ("data", "detection", "edit"))
    if found:
        _print_detection(data, found)
    else:
        print_wrapped(f"{data['rows']} training rows; the recipe says what to change, so nothing was looked for.")
    if not edit:
        click.echo("No row was acted on, so there is nothing to repair or verify.")
        return
    cost = edit["cost"]
    print_wrapped(
        f"{edit['action']} of {edit['rows']} rows by {edit['method']}: cost {cost['total']:.2f} training epochs "
        f"(factors {cost['factors']:.2f}, solve {cost['solve']:.2f}, replay {cost['replay']:.2f})."
    )
    for note in edit["notes"]:
        print_wrapped(f"note: {note}")
    print_wrapped(NO_BOUND)
    click.echo()
    verification, verdict = _section(report, "verification"), _section(report, "verdict")
    print_verdict({**verdict, "measures": verification["table"]})
    if report["evidence"] and not verdict["table"]:
        print_evidence(report["evidence"])
    if report["audit"]:
        print_wrapped(f"audit: {report['audit']['outcome'].upper()}. {report['audit']['reason']}")


def _print_detection(data: dict[str, Any], found: dict[str, Any]) -> None:
    """Print what the detectors found."""
    quality = found.get("quality")
    print_wrapped(f"{data['rows']} training rows; {found['cutoff']['count']} found suspicious by {found['method']}.")
    if quality:
        print_wrapped(
            f"Known here: {quality['mislabelled']:.0f} are mislabelled; precision {cell(quality['precision'])}, recall "
            f"{cell(quality['recall'])}, right labels suggested {cell(quality['suggestions_right'])}."
        )
    keys = ("method", "auroc", "average_precision", "cost_epochs")
    click.echo()
    print_table(
        "detectors (cost in training epochs, with the curvature's fit)",
        ["score", "AUROC", "average precision", "cost"],
        [[row.get(key) for key in keys] for row in found["scores"]],
    )


def _section(report: dict[str, Any], name: str) -> dict[str, Any]:
    return report[name] or {}
