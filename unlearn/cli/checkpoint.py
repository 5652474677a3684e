"""``unlearn checkpoint``: what is in a checkpoint, whether it is whole, and the way back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from unlearn.cli.shared import parse_option

_WIDTH = 80
_LONGEST_ENTRY = 26
_FILE = click.Path(path_type=Path)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group(name="checkpoint")
def checkpoint() -> None:
    """Show, compare, verify, roll back and import checkpoints.

    A checkpoint is a safetensors file that any safetensors reader loads; its
    metadata says which parent, recipe, rows and method its weights come from.

    \b
    Example:
      unlearn checkpoint show checkpoints/mnist5k/edited.safetensors
    """


@checkpoint.command()
@click.argument("path", type=_FILE)
@_as_json
def show(path: Path, as_json: bool) -> None:
    """Show where the weights of a checkpoint come from, and its tensors.

    Reads the header only; `unlearn checkpoint verify` also reads the weights.
    Long digests are cut short; --json prints them whole.

    \b
    Example:
      unlearn checkpoint show edited.safetensors
      unlearn checkpoint show edited.safetensors --json
    """
    from unlearn.checkpoint import read_header, read_metadata

    header = read_header(path)
    metadata = None if header.text is None else read_metadata(path)
    if as_json:
        tensors = {name: {"dtype": kind, "shape": list(shape)} for name, (kind, shape) in header.layout.items()}
        _print_json({"path": str(path), "bytes": header.size, "metadata": metadata, "tensors": tensors})
        return
    _print_table("", ("", ""), [("file", str(path)), ("bytes", f"{header.size:,}"), *_summary(metadata)])
    rows = [(name, kind, " x ".join(map(str, shape)) or "-") for name, (kind, shape) in header.layout.items()]
    _print_table("Tensors", ("name", "type", "shape"), rows)


@checkpoint.command()
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@_as_json
def diff(first: Path, second: Path, as_json: bool) -> None:
    """Compare the weights and the metadata of two checkpoints.

    \b
    Example:
      unlearn checkpoint diff original.safetensors edited.safetensors
    """
    from unlearn.checkpoint import diff_checkpoints

    found = diff_checkpoints(first, second)
    if as_json:
        _print_json({**asdict(found), "same_weights": found.same_weights})
        return
    rows = [
        (change.name, "yes" if change.equal else "no", change.note or _number(change.largest), _number(change.relative))
        for change in found.tensors
    ]
    rows += [(name, "no", f"only in {first.name}", "-") for name in found.only_first]
    rows += [(name, "no", f"only in {second.name}", "-") for name in found.only_second]
    _print_table("Tensors", ("name", "equal", "largest change", "relative"), rows)
    if found.metadata:
        entries = [(name, _short(a), _short(b)) for name, (a, b) in found.metadata.items()]
        _print_table("Metadata", ("entry", "first", "second"), entries)
    click.echo("The weights are the same bit for bit." if found.same_weights else "The weights differ.")


@checkpoint.command()
@click.argument("path", type=_FILE)
@_as_json
@click.pass_context
def verify(context: click.Context, path: Path, as_json: bool) -> None:
    """Check a checkpoint and its parent; exit code 1 when a check says no.

    The checks are header, metadata, tensors, finite, recipe and parent. They
    find damage and careless changes; they are no signature.

    \b
    Example:
      unlearn checkpoint verify edited.safetensors
    """
    from unlearn.checkpoint import verify_checkpoint

    checks = verify_checkpoint(path)
    holds = all(check.ok is not False for check in checks)
    if as_json:
        _print_json({"path": str(path), "ok": holds, "checks": [asdict(check) for check in checks]})
    else:
        words = {True: "ok", False: "NO", None: "-"}
        _print_table("", ("check", "holds", "detail"), [(c.name, words[c.ok], c.detail) for c in checks])
        click.echo("Nothing speaks against this checkpoint." if holds else "This checkpoint is damaged or altered.")
    if not holds:
        context.exit(1)


@checkpoint.command()
@click.argument("path", type=_FILE)
@click.option("--out", type=_FILE, help="Write the parent to this new file and leave PATH as it is.")
@click.option("--parent", type=_FILE, help="Where the parent lies now. [default: beside PATH, under its recorded name]")
@_as_json
def rollback(path: Path, out: Path | None, parent: Path | None, as_json: bool) -> None:
    """Put the parent's bytes in the place of an edited checkpoint.

    The parent is checked against its recorded sha256 first. The edited file is
    kept beside it as <name>.rolled-back.safetensors.

    \b
    Example:
      unlearn checkpoint rollback edited.safetensors
      unlearn checkpoint rollback edited.safetensors --out original.safetensors
    """
    from unlearn.checkpoint import rollback as roll_back

    done = roll_back(path, out, parent=parent)
    if as_json:
        _print_json({key: None if value is None else str(value) for key, value in asdict(done).items()})
        return
    click.echo(f"{done.restored} now has the bytes of {done.parent} (sha256 {done.sha256[:12]}...).")
    if done.kept is not None:
        click.echo(f"The edited checkpoint is kept as {done.kept}.")


@checkpoint.command(name="import")
@click.argument("path", type=_FILE)
@click.argument("out", type=_FILE)
@click.option("--model", help="Name of the model, written down so that the file can be loaded without one.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Option of the model; VALUE may be JSON.")
@_as_json
def import_(path: Path, out: Path, model: str | None, options: Sequence[str], as_json: bool) -> None:
    """Write the tensors of a PyTorch state dictionary (.pt) to a checkpoint.

    Only tensors are read: a file with pickled modules is refused.

    \b
    Example:
      unlearn checkpoint import model.pt original.safetensors \\
        --model mlp --option inputs=64 --option widths=[32]
    """
    if options and model is None:
        raise click.UsageError("--option describes a model; name it with --model")
    spec = None if model is None else {"name": model, "options": dict(map(parse_option, options))}
    from unlearn.checkpoint import import_state_dict

    digest = import_state_dict(path, out, spec=spec)
    if as_json:
        _print_json({"path": str(out), "digest": digest})
    else:
        click.echo(f"{out} has the tensors of {path} (digest {digest[:12]}...).")


def _summary(metadata: dict[str, Any] | None) -> list[tuple[str, str]]:
    if metadata is None:
        return [("kind", "foreign: no unlearn metadata")]
    lines = [("kind", str(metadata["kind"])), ("digest", _short(metadata["digest"]))]
    if parent := metadata.get("parent"):
        lines += [("parent", f"{parent['name']} (sha256 {parent['sha256'][:12]}...)")]
    if source := metadata.get("source"):
        lines += [("imported from", str(source.get("name")))]
    if edit := metadata.get("edit"):
        actions = Counter(str(row.get("action")) for row in edit.get("rows", []))
        lines += [("method", str(edit.get("method") or "-"))]
        lines += [("rows", ", ".join(f"{count} {action}" for action, count in sorted(actions.items())) or "none")]
    if recipe := metadata.get("recipe"):
        lines += [("recipe", f"{recipe['name'] or 'unnamed'} (sha256 {recipe['sha256'][:12]}...)")]
    if model := metadata.get("model"):
        lines += [("model", f"{model['name']} {json.dumps(model['options'], sort_keys=True)}")]
    lines += [("record", "yes" if metadata.get("record") else "no")]
    return [*lines, ("versions", ", ".join(f"{name} {v}" for name, v in sorted(metadata["versions"].items())))]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else "-" if value is None else json.dumps(value, sort_keys=True)
    return text if len(text) <= _LONGEST_ENTRY else text[: _LONGEST_ENTRY - 3] + "..."


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2, sort_keys=True))


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE, show_header=any(columns), pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=min(_WIDTH, Console().width)).print(table)
