"""``unlearn plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from unlearn.cli.shared import device_option, json_option, print_json, print_table, print_wrapped

if TYPE_CHECKING:
    from unlearn.pipeline.plan import RunPlan


@click.command()
@click.argument("recipe")
@click.option("--out", default="runs", type=click.Path(), help="Where the run would go; its disk is looked at.")
@click.option("--no-measure", is_flag=True, help="Count only; train no batches for an estimate of time.")
@device_option
@json_option
def plan(recipe: str, out: str, no_measure: bool, device: str | None, as_json: bool) -> None:
    """Tell what a recipe will cost on this machine before it is run.

    Epochs, memory and disk are counted; time is estimated from a few batches of
    training. Exits with 1 where the run does not fit. Nothing is written.

    \b
    Example: unlearn plan mnist5k-relabel
             unlearn plan mine.toml --out /data/runs --json
    """
    from unlearn.recipe import load_recipe

    chosen = load_recipe(recipe)
    from unlearn.pipeline import check_has_stages, plan_run

    check_has_stages(chosen)
    found = plan_run(chosen, out, measure=not no_measure, device=device)
    if as_json:
        print_json(found.to_dict())
    else:
        print_plan(found)
    if found.advice:
        raise click.exceptions.Exit(1)


def print_plan(found: RunPlan) -> None:
    """Print layers, stages and what does not fit."""
    from unlearn.pipeline.plan import size

    click.echo(f"{found.recipe}: {found.rows} rows, {found.parameters} parameters, factors {size(found.factors)}")
    shapes = [(x["name"], x["kind"], x["form"], "x".join(map(str, x["shape"])), size(x["bytes"])) for x in found.layers]
    print_table("Curvature", ("layer", "kind", "block", "groups x out x in", "factors"), shapes)
    for name, why in found.uncovered.items():
        click.echo(f"not covered: {name} ({why})")
    rows = [(s.name, s.epochs, _time(s.seconds), size(s.memory), size(s.disk)) for s in found.stages]
    print_table("Stages", ("stage", "epochs", "time", "memory", "disk"), rows)
    for stage in found.stages:
        print_wrapped(f"{stage.name}: {stage.why}")
    if found.epoch_seconds is not None:
        click.echo(f"one training epoch: about {_time(found.epoch_seconds)} here, by a few batches")
    print_wrapped("Memory is beside data and activations. A dash: it depends on what the run finds.")
    for line in found.advice:
        print_wrapped(f"does not fit: {line}")


def _time(seconds: float | None) -> str:
    """Return seconds for people.

    >>> _time(None), _time(0.25), _time(90), _time(7200)
    ('-', '0.25 s', '1.5 min', '2 h')
    """
    if seconds is None:
        return "-"
    for most, unit, length in ((60, "s", 1), (3600, "min", 60)):
        if seconds < most:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds / 3600:.3g} h"
