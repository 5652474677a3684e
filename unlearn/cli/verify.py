"""``unlearn verify``."""

from __future__ import annotations

import click

from unlearn.cli.shared import device_option, json_option, print_json, print_verdict, run_argument


@click.command()
@run_argument
@click.option("--references", type=click.IntRange(min=0), help="Independent retrains; the recipe's if not given.")
@device_option
@json_option
def verify(run_folder: str, references: int | None, device: str | None, as_json: bool) -> None:
    """Hold a run's edit against retraining, and give a verdict.

    Exits with 0 for a pass, 1 for a fail, 3 for undecided. The verdict compares
    the edit's distance to independent retrains with their distance to each
    other. Finished retrains are kept in the run folder.

    \b
    Example: unlearn verify runs/digits --references 5
    """
    from unlearn.pipeline import Run, verify_stage

    run = Run.open(run_folder, device=device)
    verdict = verify_stage(run, references)
    if as_json:
        print_json(verdict.to_dict())
    else:
        print_verdict(verdict.to_dict())
    click.get_current_context().exit(verdict.exit_code)
