"""``unlearn repair``: remove, relabel, remove-class, apply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from unlearn.cli.certified import print_certified_removal
from unlearn.cli.shared import NO_BOUND, device_option, json_option, print_json, run_argument
from unlearn.ranks import only_one_process

if TYPE_CHECKING:
    from unlearn.repair import Changes
    from unlearn.repair.method import Method
    from unlearn.repair.restricted_steps import EditMethod


@click.group()
def repair() -> None:
    """Edit the weights as if rows had been left out, or labelled otherwise.

    The edit goes to edited.safetensors in the run folder; the original stays.
    """


def _options(command: Any) -> Any:
    for option in (
        json_option,
        device_option,
        click.option("--replace", is_flag=True, help="Replace an edit that is there, with its verdict and report."),
        click.option("--allow-empty-class", is_flag=True, help="Let all rows of a class go."),
        click.option("--damping", type=float, help="Damping; from the training record if not given."),
        click.option("--budget", type=float, help="Training epochs to replay; the recipe's if not given."),
        click.option(
            "--layers",
            multiple=True,
            metavar="PATTERN",
            help="Edit only these layers, as '5' or 'head*'; may be given again. Needs a budget of 0.",
        ),
        click.option("--steps", type=int, help="With --method: most steps; 1 if neither this nor the recipe says."),
        click.option("--ratio", type=float, help="With --method: share of each layer's units that may change."),
        click.option(
            "--select",
            type=click.Choice(["outputs", "gradients"]),
            help="With --method: what units are selected by.",
        ),
        click.option(
            "--method",
            type=click.Choice(
                ["newton", "unrolled", "compressed", "descent", "gif", "frozen", "projected", "full", "second-order"]
            ),
            metavar="NAME",
            help="How to edit; chosen by what was recorded if left out: newton, unrolled, compressed (training taken "
            "up at an early snapshot), descent (at the final weights); or a step on Kronecker factors at the final "
            "weights: full, second-order, and gif, frozen or projected, which change a few units only.",
        ),
    ):
        command = option(command)
    return command


@repair.command()
@run_argument
@click.argument("ids", nargs=-1, required=True)
@_options
def remove(run_folder: str, ids: tuple[str, ...], **options: Any) -> None:
    """Edit the weights as if these rows had been left out.

    \b
    Example: unlearn repair remove runs/digits mnist5k-0123 mnist5k-0456
    """
    from unlearn.repair import Changes

    _repair(run_folder, Changes(removed=ids), **options)


@repair.command()
@run_argument
@click.argument("labels", nargs=-1, required=True, metavar="ID=LABEL...")
@_options
def relabel(run_folder: str, labels: tuple[str, ...], **options: Any) -> None:
    """Edit the weights as if these rows had carried other labels.

    \b
    Example: unlearn repair relabel runs/digits mnist5k-0123=7
    """
    from unlearn.errors import InputError
    from unlearn.repair import Changes

    chosen: dict[str, int] = {}
    for word in labels:
        row, _, label = word.rpartition("=")
        if not row or not label.removeprefix("-").isdecimal():
            raise InputError(f"{word!r} is not ID=LABEL with a whole number as label, such as mnist5k-0123=7")
        if row in chosen:
            raise InputError(f"row {row!r} is named twice; give it one label")
        chosen[row] = int(label)
    _repair(run_folder, Changes(relabelled=chosen), **options)


@repair.command("remove-class")
@run_argument
@click.argument("label", type=int)
@click.option(
    "--drop-output", is_flag=True, help="Also write edited-cut.safetensors, which lacks the output of the class."
)
@_options
def remove_class(run_folder: str, label: int, drop_output: bool, **options: Any) -> None:
    """Edit the weights as if no row of a class had been in the training.

    \b
    Example: unlearn repair remove-class runs/digits 3
    """
    from unlearn.repair import Changes

    _repair(run_folder, Changes(removed_classes=(label,)), drop_output=drop_output, **options)


@repair.command()
@run_argument
@click.argument("decisions", type=click.Path())
@_options
def apply(run_folder: str, decisions: str, **options: Any) -> None:
    """Edit the weights by a decisions file (columns id, action, label).

    Removals, new labels and classes to remove may stand in one file and are
    made in one edit.

    \b
    Example: unlearn repair apply runs/digits runs/digits/decisions.csv
    """
    from unlearn.repair import Changes

    _repair(run_folder, Changes.load(decisions), **options)


def _repair(
    run_folder: str,
    changes: Changes,
    *,
    budget: float | None,
    damping: float | None,
    layers: tuple[str, ...],
    method: EditMethod | Method | None,
    select: str | None,
    ratio: float | None,
    steps: int | None,
    allow_empty_class: bool,
    replace: bool,
    device: str | None,
    as_json: bool,
    drop_output: bool = False,
) -> None:
    from unlearn.errors import FolderError, InputError
    from unlearn.pipeline import Run, edit_units, remove_certified, write_edit
    from unlearn.repair import apply_changes, cut_outputs, drop_outputs

    run = Run.open(run_folder, device=device)
    if run.recipe.certified is not None:
        only_one_process("a certified removal")
        if any((layers, allow_empty_class, replace, drop_output)) or (budget, damping) != (None, None):
            raise InputError("a certified removal has no options but --json; each removal adds to the ones before")
        print_certified_removal(*remove_certified(run, changes), as_json)
        return
    if (run.folder / "edited.safetensors").exists() and not replace:
        raise FolderError(f"{run.folder} holds an edit already; pass --replace to replace it")
    model, record = run.original
    if drop_output:
        cut_outputs(model, run.data, changes.on(run.data).removed_classes)
    units = {"select": select, "ratio": ratio, "steps": steps}
    if (
        method is None
        or method == "auto"
        or method == "newton"
        or method == "unrolled"
        or method == "compressed"
        or method == "descent"
    ):
        if any(value is not None for value in units.values()):
            raise InputError("--select, --ratio and --steps belong to --method; name one, such as --method gif")
        edit = apply_changes(
            model,
            run.data,
            changes,
            record=record,
            budget=run.recipe.repair.budget if budget is None else budget,
            method=method or "auto",
            damping="horizon" if damping is None else damping,
            layers=layers or run.recipe.repair.layers,
            allow_empty_class=allow_empty_class,
        )
    elif budget:
        raise InputError(
            f"--method {method} edits the final weights, and --budget {budget:g} asks for a replay; leave it out"
        )
    else:
        options = {**units, "damping": damping, "layers": layers or None, "allow_empty_class": allow_empty_class}
        edit = edit_units(run, changes, method=method, **options)
    edit = drop_outputs(edit) if drop_output else edit
    write_edit(run, edit)
    if as_json:
        print_json({"checkpoint": str(run.folder / "edited.safetensors"), "bound": None, **edit.to_dict()})
        return
    click.echo(f"{edit.changes.action} of {len(edit.changes.ids)} rows by {edit.method}")
    click.echo(f"cost: {edit.cost.total:.2f} training epochs (replay {edit.cost.replay:.2f})")
    for name, before in edit.before.items():
        click.echo(f"{name.replace('_', ' '):15}{before:8.3f} -> {edit.after[name]:.3f}")
    for note in edit.notes:
        click.echo(f"note: {note}")
    click.echo(NO_BOUND)
    click.echo(f"checkpoint: {run.folder / 'edited.safetensors'}")
    if edit.cut is not None:
        click.echo(f"without the output: {run.folder / 'edited-cut.safetensors'}")
