"""``unlearn verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from unlearn.cli.evidence import print_evidence
from unlearn.cli.shared import device_option, json_option, parse_option, print_json
from unlearn.cli.verdict import print_verdict

if TYPE_CHECKING:
    from unlearn.verification import Verdict


@click.command()
@click.argument("models", metavar="RUN | FILE --against FILE...", nargs=-1, required=True, type=click.Path())
@click.option("--references", type=click.IntRange(min=0), help="Independent retrains; the recipe's if not given.")
@click.option(
    "--retrained",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="A model of your own, retrained on the changed data; give several. Nothing is trained then.",
)
@click.option("--processes", default="auto", metavar="N|auto", help="Processes to retrain in. [default: auto]")
@click.option("--groups", type=click.Path(), metavar="CSV", help="Groups to measure apart: columns id, group.")
@click.option("--against", multiple=True, type=click.Path(), metavar="FILE", help="Models to hold FILE against.")
@click.option("--data", metavar="NAME", help="With --against: data by name, or your own as module:function.")
@click.option("--split", type=click.Choice(["train", "test", "all"]), default="test", show_default=True)
@click.option("--rows", type=click.Path(), metavar="CSV", help="With --against: only these rows (column id).")
@click.option("--model", metavar="NAME", help="With --against: the model of files that do not say it.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Option of --model; VALUE may be JSON.")
@click.option("--tolerance", type=float, help="With --against: tolerance of the verdict. [default: 1.5]")
@click.option("--table", type=click.Path(), metavar="CSV", help="With --against: write every row to this file.")
@device_option
@json_option
def verify(
    models: tuple[str, ...],
    references: int | None,
    retrained: tuple[str, ...],
    processes: str,
    groups: str | None,
    against: tuple[str, ...],
    data: str | None,
    split: str,
    rows: str | None,
    model: str | None,
    options: tuple[str, ...],
    tolerance: float | None,
    table: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Hold a run's edit against retraining, or any model against others.

    Exits with 0 for a pass, 1 for a fail, 3 for undecided. The verdict compares
    the edit's distance to independent retrains with their distance to each
    other. What the retrains will cost is told first. Finished ones are kept in
    the run folder. With 0 references nothing is retrained but the original
    itself, and evidence is given, never a verdict.

    With --against, models of one architecture are compared on any data. With
    one there are distances; with two or more there is a floor, and a verdict
    that takes them to be independent retrains.

    \b
    Example: unlearn verify runs/digits --references 5
             unlearn verify edited.safetensors --data digits \\
               --against b.safetensors c.safetensors d.safetensors
    """
    if against:
        if references is not None or retrained:
            raise click.UsageError("--against gives the models to compare with; leave out --references and --retrained")
        if data is None:
            raise click.UsageError("--against needs --data: a name such as mnist5k, or your own as module:function")
        verdict = _against(
            models[0], [*against, *models[1:]], data, split, rows, model, options, groups, tolerance, device
        )
        if table is not None:
            verdict.rows["given"].save(table)
        _show(verdict, as_json)
        return
    alone = {"--data": data, "--rows": rows, "--model": model, "--tolerance": tolerance, "--table": table}
    given = [name for name, value in alone.items() if value is not None]
    if len(models) > 1 or given or options:
        raise click.UsageError(
            f"{' '.join(given) or 'several models'}: only with --against FILE; a run needs its folder only"
        )
    if retrained and references is not None:
        raise click.UsageError("--references trains and --retrained gives trained models; pass one of them")
    from unlearn.pipeline import Run, report_stage, verify_stage
    from unlearn.pipeline.evidence import read_evidence

    run = Run.open(models[0], device=device)
    verdict = verify_stage(
        run,
        retrained or references,
        groups=groups,
        processes=_processes(processes),
        tell=lambda price: click.echo(f"references: {price}", err=True),
    )
    report_stage(run)
    _show(verdict, as_json, None if verdict.table else read_evidence(run), run.folder / "report.html")


def _show(verdict: Verdict, as_json: bool, evidence: dict[str, Any] | None = None, report: Path | None = None) -> None:
    """Print a verdict, and the evidence where there can be none; exit with its code."""
    if as_json:
        print_json(verdict.to_dict() | ({} if evidence is None else {"evidence": evidence}))
    else:
        print_verdict(verdict.to_dict())
        if evidence is not None:
            print_evidence(evidence)
        if report is not None:
            click.echo(f"report: {report}")
    click.get_current_context().exit(verdict.exit_code)


def _against(
    file: str,
    others: list[str],
    data: str,
    split: str,
    rows: str | None,
    model: str | None,
    options: tuple[str, ...],
    groups: str | None,
    tolerance: float | None,
    device: str | None,
) -> Verdict:
    from unlearn.data import load_data
    from unlearn.models import build_model
    from unlearn.verification import TOLERANCE, compare_models, read_ids

    found = load_data(data, split)  # type: ignore[arg-type]
    architecture = None if model is None else build_model(model, **dict(map(parse_option, options)))
    return compare_models(
        file,
        others,
        found if rows is None else found.only(read_ids(rows)),
        architecture=architecture,
        groups=groups,
        tolerance=TOLERANCE if tolerance is None else tolerance,
        device=device,
    )


def _processes(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise click.UsageError(f"--processes {text!r} is neither a number nor 'auto'")
    return int(text)
