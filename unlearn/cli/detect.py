"""``unlearn detect``."""

from __future__ import annotations

import click

from unlearn.cli.shared import cell, device_option, json_option, print_json, print_table, run_argument


@click.command()
@run_argument
@click.option("--method", help="Score of the printed table; the recipe's if not given.")
@click.option("--top", default=20, show_default=True, type=click.IntRange(min=1), help="Rows to print.")
@device_option
@json_option
def detect(run_folder: str, method: str | None, top: int, device: str | None, as_json: bool) -> None:
    """Rank the training rows of a run; write scores-METHOD.csv.

    Suggested labels come from training trajectory and model, never from the
    truth. How many rows to act on is estimated, and written to decisions.csv.
    Scores of more than 65,536 rows are written in shards as they come; after
    a kill, the same command takes up at the shard that it was in.

    \b
    Example: unlearn detect runs/digits --top 10
             unlearn detect runs/digits --method self-influence
    """
    from unlearn.errors import InputError, did_you_mean
    from unlearn.pipeline import DETECTORS, Run, run_stages, suggestions_of, write_scores

    if method is not None and method not in DETECTORS:
        raise InputError(f"unknown method {method!r}; {did_you_mean(method, DETECTORS)}")
    run = Run.open(run_folder, device=device)
    run_stages(run, until="train")
    wanted = method or run.recipe.detect.method
    run_stages(run, until="decide")
    path = run.folder / f"scores-{wanted}.csv"
    if not path.exists():
        write_scores(run, wanted, suggestions_of(run))
    from unlearn.detect import Scores, read_column

    scores = Scores.load(path)
    given, suggested = read_column(path, "given"), read_column(path, "suggested")
    acted = set(run.read("detection.json", "detect")["acted"])
    rows = [
        [k, row, value, given[row], suggested[row], "yes" if row in acted else ""]
        for k, (row, value) in enumerate(scores.top(top), 1)
    ]
    if as_json:
        keys = ("rank", "id", "score", "given", "suggested", "acted")
        print_json({"method": wanted, "scores": str(path), "top": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    print_table(f"{wanted}: most suspicious rows", ["rank", "id", "score", "given", "suggested", "acted on"], rows)
    found = run.read("detection.json", "detect")
    cutoff = found["cutoff"]
    click.echo(
        f"{cutoff['count']} of {len(scores)} rows are decided on ({cutoff['how']} on {found['method']}, score >= "
        f"{cell(cutoff['threshold'])})."
    )
    click.echo(f"scores: {path}\ndecisions: {run.folder / 'decisions.csv'}")
