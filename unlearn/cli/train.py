"""``unlearn train``."""

from __future__ import annotations

import click

from unlearn.cli.shared import device_option, json_option, print_json


@click.command()
@click.argument("recipe")
@click.option("--out", required=True, type=click.Path(), help="Run folder to make.")
@device_option
@json_option
def train(recipe: str, out: str, device: str | None, as_json: bool) -> None:
    """Train a recipe's original model, with its record and snapshots.

    \b
    Example: unlearn train mnist5k-relabel --out runs/digits
    """
    from unlearn.recipe import load_recipe

    chosen = load_recipe(recipe)
    from unlearn.pipeline import Run, check_has_stages, run_stages
    from unlearn.predict import predict

    check_has_stages(chosen)
    run = Run.create(out, chosen, device=device)
    run_stages(run, until="train")
    model, record = run.original
    accuracy = float((predict(model, run.test).argmax(1) == run.test.labels).double().mean())
    if as_json:
        print_json(
            {"checkpoint": str(run.folder / "original.safetensors"), "test_accuracy": accuracy, **record.to_dict()}
        )
        return
    click.echo(f"trained {record.steps} steps; test accuracy {accuracy:.4f}; {len(record.snapshots)} snapshots")
    click.echo(f"checkpoint: {run.folder / 'original.safetensors'}")
