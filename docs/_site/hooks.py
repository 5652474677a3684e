"""What the site has beyond the pages of docs/: benchmark outputs, the Python and command line references, formulas.

MkDocs calls the functions by name (https://www.mkdocs.org/user-guide/configuration/#hooks).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from unlearn.cli.main import cli

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
ROOMS = (
    "data", "models", "tasks", "training", "curvature", "detect", "repair", "verification", "checkpoint", "report",
    "review", "requests", "pipeline", "precision",
)  # fmt: skip
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
_UNESCAPED = {"&lt;": "<", "&gt;": ">", "&amp;": "&"}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and the benchmarks' outputs as they are committed."""
    pages = {"cli.md": command_line(), **{f"api/{room}.md": room_page(room) for room in ROOMS}}
    pages |= {f"results/{path.name}": result_page(path) for path in RESULTS.glob("*.md")}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Point links to the outputs, which lie outside docs/, at the pages made of them."""
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"\]\((?:\.\./)+benchmarks/results/(\w+\.md)", rf"]({up}results/\1", markdown)


def on_page_content(html: str, page: Page, config: Any, files: Files) -> str:
    """Set formulas as MathML, which browsers show by themselves."""
    return _FORMULA.sub(_mathml, html)


def _mathml(found: re.Match[str]) -> str:
    formula = found[2]
    for escaped, plain in _UNESCAPED.items():
        formula = formula.replace(escaped, plain)
    if found[1] == "span":
        return convert(formula)
    return f'<div class="formula">{convert(formula, display="block")}</div>'


def result_page(path: Path) -> str:
    """Return a committed output; its first line is the command that prints it."""
    command, rest = path.read_text().split("\n", 1)
    return f"# {path.stem.replace('_', ' ')}\n\n`{command.removeprefix('# ')}` printed this page.\n{rest}"


def room_page(room: str) -> str:
    """Return the Python reference of a room: each of its public names, taken from where it is defined."""
    folder = ROOT / "unlearn" / room
    module = ast.parse((folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")).read_text())
    homes, names = {}, []
    for node in module.body:
        if isinstance(node, ast.ImportFrom):
            homes |= {alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    entries = "\n\n".join(f"::: {homes.get(name, f'unlearn.{room}')}.{name}" for name in names)
    return f"# unlearn.{room}\n\n{ast.get_docstring(module)}\n\n{entries}\n"


def command_line() -> str:
    """Return every command with its help, word for word as the terminal shows it."""
    parts = [f"{'#' * min(depth + 2, 4)} {path}\n\n```text\n{text}\n```" for depth, path, text in helps(cli, "unlearn")]
    start = "Every command as `--help` shows it, generated from the program when this site is built."
    return f"# Command line\n\n{start}\n\n" + "\n\n".join(parts) + "\n"


def helps(command: click.Command, path: str, depth: int = 0) -> Iterator[tuple[int, str, str]]:
    """Yield (depth, words, help) of a command and all below it."""
    context = click.Context(command, info_name=path, **command.context_settings)
    yield depth, path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            yield from helps(command.commands[name], f"{path} {name}", depth + 1)
