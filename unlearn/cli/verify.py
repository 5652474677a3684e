"""``unlearn verify``."""

from __future__ import annotations

from typing import Literal

import click

from unlearn.cli.evidence import print_evidence
from unlearn.cli.shared import device_option, json_option, print_json, print_verdict, run_argument


@click.command()
@run_argument
@click.option("--references", type=click.IntRange(min=0), help="Independent retrains; the recipe's if not given.")
@click.option(
    "--retrained",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="A model of your own, retrained on the changed data; give several. Nothing is trained then.",
)
@click.option("--processes", default="auto", metavar="N|auto", help="Processes to retrain in. [default: auto]")
@device_option
@json_option
def verify(
    run_folder: str,
    references: int | None,
    retrained: tuple[str, ...],
    processes: str,
    device: str | None,
    as_json: bool,
) -> None:
    """Hold a run's edit against retraining, and give a verdict.

    Exits with 0 for a pass, 1 for a fail, 3 for undecided. The verdict compares
    the edit's distance to independent retrains with their distance to each
    other. What the retrains will cost is told first. Finished ones are kept in
    the run folder. With 0 references nothing is retrained but the original
    itself, and evidence is given, never a verdict.

    \b
    Example: unlearn verify runs/digits --references 5
    """
    if retrained and references is not None:
        raise click.UsageError("--references trains and --retrained gives trained models; pass one of them")
    from unlearn.pipeline import Run, verify_stage
    from unlearn.pipeline.evidence import gather_evidence

    run = Run.open(run_folder, device=device)
    verdict = verify_stage(
        run,
        retrained or references,
        processes=_processes(processes),
        tell=lambda price: click.echo(f"references: {price}", err=True),
    )
    found = None if verdict.table else gather_evidence(run)
    if as_json:
        print_json(verdict.to_dict() | ({} if found is None else {"evidence": found.to_dict()}))
    else:
        print_verdict(verdict.to_dict())
        if found is not None:
            print_evidence(found.to_dict())
    click.get_current_context().exit(verdict.exit_code)


def _processes(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise click.UsageError(f"--processes {text!r} is neither a number nor 'auto'")
    return int(text)
