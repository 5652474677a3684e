"""``unlearn benchmark``: measure the tool's scores and repairs where the truth is known."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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
    """Measure scores and repairs on recipes whose wrong rows are known."""


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


@benchmark.command()
@click.argument("recipe")
@click.option("--seeds", default="0,1,2", show_default=True, metavar="A,B", help="Shifts of the recipe's seeds.")
@click.option("--rows", type=int, help="Act on so many mislabelled rows; on those detected if not given.")
@click.option(
    "--out", type=click.Path(), help="Folder for the trainings, repair.json and repair.html; none is kept else."
)
@device_option
@json_option
def repair(recipe: str, seeds: str, rows: int | None, out: str | None, device: str | None, as_json: bool) -> None:
    """Print how near repairs and their rivals come to retraining, and at what cost.

    Our edits at budgets from 0 to 5 epochs; fine-tuning, a compressed retrain,
    plain replay, gradient ascent, random labels, NegGrad+, SSD and an EK-FAC
    influence step at every setting of their grids that the cost allows. The
    first table of a cost has each rival at the setting that did best on the
    other seeds; the second at the best of each column, chosen with the answer
    at hand, which no user could do. Costs are in training epochs, apart from
    what all requests share.

    \b
    Example: unlearn benchmark repair digits-quick
             unlearn benchmark repair mnist5k-remove --rows 20 --out bench
    """
    from unlearn.errors import InputError
    from unlearn.recipe import load_recipe

    words = seeds.replace(" ", "").split(",")
    if not all(word.isdecimal() for word in words):
        raise InputError(f"--seeds is {seeds!r}; give whole numbers with commas, such as 0,1,2")
    chosen = load_recipe(recipe)
    from unlearn.atomic import write_atomically
    from unlearn.pipeline.frontier import benchmark_repair
    from unlearn.report import render_frontier

    with nullcontext(out) if out is not None else tempfile.TemporaryDirectory() as folder:
        facts = benchmark_repair(chosen, folder, seeds=[int(word) for word in words], rows=rows, device=device)
        if out is not None:
            write_atomically(Path(folder) / "repair.json", json.dumps(facts, indent=1, allow_nan=False).encode())
            write_atomically(Path(folder) / "repair.html", render_frontier(facts).encode())
    if as_json:
        print_json(facts)
        return
    _print_frontier(facts)
    if out is not None:
        click.echo(f"plot: {Path(out) / 'repair.html'}")


MEASURES = {"phi error / spread": "phi error", "KL": "KL x1000", "cosine changed": "changed", "cosine test": "test"}


def _print_frontier(facts: Mapping[str, Any]) -> None:
    counts = ", ".join(map(str, facts["changed"]))
    print_wrapped(f"{facts['recipe']}: {facts['action']} {counts} of {facts['rows']} rows, {facts['which']}.\n")
    several = len(facts["seeds"]) > 1
    lines, hows = [], []
    for row in [facts["unedited"], *facts["ours"]]:
        name = f"{row['method']}, {row['settings'][0]}" if row["settings"][0] not in ("", "budget 0") else row["method"]
        lines.append([name, f"{row['cost']:.2f}+{row['whole_cost'] - row['cost']:.2f}", *_measures(row, several)])
        hows += [f"{name}: {row['how']}"] if row["how"] else []
    columns = ["", "cost", *MEASURES.values()]
    print_table("Our edits, cost without and with what requests share", columns, lines)
    for how in hows:
        print_wrapped(how)
    for level in facts["levels"]:
        for kind, how in (
            ("chosen", "settings chosen on other seeds"),
            ("oracle", "the best of each column, an oracle"),
        ):
            table = [
                [row["method"], "" if row["cost"] is None else f"{row['cost']:.2f}", *_measures(row, several)]
                for row in level[kind]
            ]
            if table:
                print_table(f"\nCost at most {level['cost']:g} epochs: {how}", columns, table)
    print_wrapped(
        ("Mean over seeds / worst seed. " if several else "One seed: there is none to choose settings on. ")
        + "phi error: on changed rows, in spreads between retrains. KL: to the retrain on test rows; between retrains "
        f"{1000 * sum(f['floor'] for f in facts['floors']) / len(facts['floors']):.1f}. changed, test: cosine of the "
        f"logit change. cost: training epochs; the original took {facts['epochs']}."
    )
    for name, count in facts["failed"].items():
        print_wrapped(f"{name}: {count} runs diverged and count as nothing.")


def _measures(row: Mapping[str, Any], several: bool) -> list[str]:
    found = []
    for name in MEASURES:
        scale = 1000 if name == "KL" else 1
        mean, worst = (_short(scale * row[name][key]) for key in ("mean", "worst"))
        found.append(f"{mean}/{worst}" if several else mean)
    return found


def _short(x: float) -> str:
    """Return a number in at most five characters and a sign.

    >>> [_short(x) for x in (0.1234, -0.5, 1.0, 12.34, 1234.5, 1234567.0)]
    ['.12', '-.50', '1.00', '12.3', '1234', '1e+06']
    """
    size = abs(x)
    text = (
        f"{size:.2f}" if size < 10 else f"{size:.1f}" if size < 100 else f"{size:.0f}" if size < 1e5 else f"{size:.0e}"
    )
    return "-" * (x < 0) + (text[1:] if text.startswith("0.") else text)
