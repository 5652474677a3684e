"""``unlearn benchmark``: measure the tool's scores where the truth is known."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path

import click

from unlearn.cli.shared import device_option, json_option, print_json, print_table, print_wrapped

COLUMNS = {
    "auroc": "AUROC",
    "average_precision": "avg precision",
    "found": "found",
    "cost_epochs": "cost",
}


@click.group()
def benchmark() -> None:
    """Measure scores on recipes whose wrong rows are known."""


@benchmark.command()
@click.argument("recipe")
@click.option("--methods", metavar="A,B", help="Scores to measure, with commas; all if not given.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(min=1), help="Trainings, each on new noise.")
@click.option("--out", type=click.Path(), help="Folder to keep the trainings in, one run each; none if not given.")
@device_option
@json_option
def detect(recipe: str, methods: str | None, seeds: int, out: str | None, device: str | None, as_json: bool) -> None:
    """Train a recipe's original and print how well every score finds its wrong rows.

    AUROC and average precision of the ranking; found, the share of the wrong
    rows that is seen when as many rows are checked as are wrong; cost, in
    training epochs beyond the original training. With several seeds the mean,
    and the worst seed in brackets. Nothing is repaired.

    \b
    Example: unlearn benchmark detect digits-quick
             unlearn benchmark detect mnist5k-relabel --methods loss,gif --seeds 3
    """
    from unlearn.errors import InputError, did_you_mean
    from unlearn.recipe import load_recipe

    chosen = load_recipe(recipe)
    from unlearn.pipeline import DETECTORS, Run, run_stages
    from unlearn.pipeline.detection_benchmark import count_wrong_rows, measure_detectors
    from unlearn.pipeline.reseeded import reseeded

    wanted = list(DETECTORS) if methods is None else list(dict.fromkeys(methods.replace(" ", "").split(",")))
    for method in wanted:
        if method not in DETECTORS:
            raise InputError(f"unknown method {method!r}; {did_you_mean(method, DETECTORS)}")
    found = []
    with nullcontext(out) if out is not None else tempfile.TemporaryDirectory() as folder:
        runs = [(Path(folder) / f"seed-{shift}", reseeded(chosen, shift)) for shift in range(seeds)]
        wrong = [count_wrong_rows(Run(path, own, device)) for path, own in runs]
        for path, own in runs:
            run = Run.create(path, own, resume=True, device=device)
            run_stages(run, until="train")
            found.append(measure_detectors(run, wanted))
    rows = len(run.data)
    if as_json:
        scores = [
            {"method": method, "seed": shift, **measured[method]}
            for shift, measured in enumerate(found)
            for method in wanted
        ]
        print_json({"recipe": chosen.name, "seeds": seeds, "rows": rows, "wrong": wrong, "scores": scores})
        return
    table = []
    for method in wanted:
        columns = {name: [measured[method][name] for measured in found] for name in COLUMNS}
        table.append([method, *(_mean_and_worst(values, name) for name, values in columns.items())])
    print_table(f"{chosen.name}: how well each score finds wrong rows", ["score", *COLUMNS.values()], table)
    counts = " + ".join(map(str, wrong))
    print_wrapped(
        f"{counts} of {rows} rows are wrong. cost: training epochs beyond the {chosen.train.epochs} of the original."
        + (f" Mean over {seeds} seeds, the worst in brackets." if seeds > 1 else "")
    )


def _mean_and_worst(values: list[float], column: str) -> object:
    """Return the value of one seed, or of a cost, as a number; of several as their mean with the worst in brackets."""
    mean = sum(values) / len(values)
    return mean if len(values) == 1 or column == "cost_epochs" else f"{mean:.3f} ({min(values):.3f})"
