"""The docs are true: their examples run; their links, commands, recipes, names and paths exist."""

from __future__ import annotations

import ast
import doctest
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch

import unlearn
from unlearn.cli.main import cli
from unlearn.recipe import DataSection, load_recipe, shipped_recipes, tomllib
from unlearn.source_options import SOURCE_OPTIONS, TableOptions, check_options

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("checkpoints/*.md"), *ROOT.glob("benchmarks/**/*.md")]
)
FOLDERS = ("unlearn", "tests", "docs", "recipes", "benchmarks", ".ci")
MOST_LINES = 40

_FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.M | re.S)
_TITLED = re.compile(r'^```(\w+)(?: title="([\w.-]+)")?\n(.*?)^```', re.M | re.S)
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
_CODE = re.compile(r"`([^`\n]+)`")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in _FENCE.findall(page.read_text()) if language in languages]


def prose(page: Path) -> str:
    return _COMMENT.sub("", _FENCE.sub("", page.read_text()))


def inline_code(page: Path) -> list[str]:
    return _CODE.findall(prose(page))


def command_lines(text: str) -> Iterator[list[str]]:
    """Every ``unlearn ...`` of a shell block as words; outputs and other programs are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\||;", line.strip().removeprefix("$ ")):
            if part.strip().startswith("unlearn "):
                words = shlex.split(part, comments=True)[1:]
                yield words[: words.index(">")] if ">" in words else words


def shell_commands(page: Path) -> list[list[str]]:
    return [words for text in blocks(page, "", "console", "sh", "bash", "shell") for words in command_lines(text)]


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command of a command line, and the words left for it."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            raise click.UsageError(f"{command.name} has no command {words[0]!r}")
        command, words = command.commands[words[0]], words[1:]
    return command, words


def parse(words: list[str]) -> None:
    """Parse a command line as click would, without running it."""
    command, rest = find_command(words)
    if "--help" not in rest and not (isinstance(command, click.Group) and rest):
        command.make_context("unlearn", list(rest))
    if words[:2] in (["recipe", "run"], ["recipe", "show"]) or words[:1] == ["train"]:
        recipe = next(word for word in rest if not word.startswith("-"))
        assert recipe.endswith(".toml") or recipe in shipped_recipes(), f"no recipe {recipe!r}"


def execute(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """Run the one Python block of a page in a folder; return its text and what it defined."""
    (code,) = blocks(ROOT / "docs" / page, "python")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "example"}
    with torch.random.fork_rng(devices=[]):
        exec(compile(code, page, "exec"), names)
    return code, names


def test_own_model_runs_in_forty_lines(tmp_path, monkeypatch, capsys):
    code, found = execute("own-model.md", tmp_path, monkeypatch)
    assert len(code.splitlines()) <= MOST_LINES
    edit, verdict, data, bad = found["edit"], found["verdict"], found["data"], found["bad"]

    wrong = {row for row, given, true in zip(data.ids, data.labels, data.truth, strict=True) if given != true}
    assert len(wrong & set(bad)) > 0.8 * len(wrong)  # it finds them
    assert len(wrong & set(bad)) > 0.6 * len(bad)  # and not everything
    assert set(found["by_influence"].ids) == set(data.ids)

    assert edit.method == "rewind-compressed-replay"  # many labels that were learnt late
    assert edit.changes.removed == tuple(bad)
    assert edit.after["changed_loss"] > edit.before["changed_loss"] + 1  # the labels are no longer learnt
    assert edit.after["kept_accuracy"] > 0.95
    assert 0 < edit.cost.replay <= 3

    assert verdict.outcome in ("pass", "fail", "undecided")
    assert {(row["group"], row["references"]) for row in verdict.table} == {
        ("changed", 3),
        ("kept", 3),
        ("test", 3),
    }
    assert verdict.outcome in capsys.readouterr().out

    model, _ = unlearn.load_checkpoint(tmp_path / "run" / "edited.safetensors", found["TableNet"](30, 2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), edit.model.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), found["model"].parameters(), strict=True))
    for words in shell_commands(ROOT / "docs" / "own-model.md"):
        assert (tmp_path / words[-1]).exists()  # the commands below the example name files that it wrote


def test_quickstart_from_python_is_the_recipe(tmp_path, monkeypatch):
    _, found = execute("quickstart.md", tmp_path, monkeypatch)
    recipe = load_recipe("digits-quick")
    assert found["settings"] == unlearn.TrainSettings(
        **recipe.train.model_dump(exclude={"train_seed", "snapshot_epochs"})
    )
    edit = found["edit"]
    assert edit.changes.action == "relabel"
    assert len(edit.changes.ids) == len(found["found"]) > 0
    assert edit.after["changed_loss"] > edit.before["changed_loss"]
    assert found["verdict"].outcome in ("pass", "fail", "undecided")
    assert {row["references"] for row in found["verdict"].table} == {recipe.verify.references}


def follow(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, unlearn: Any, capsys: Any) -> dict[str, Any]:
    """Do what a page says, from top to bottom; return what its Python defined.

    Titled blocks are files, Python runs in one space of names, commands must do their work (a verdict may be any), and
    a text block must be what the block before it printed, with ``...`` for what varies.
    """
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "example"}
    printed, same = "", doctest.OutputChecker().check_output
    for language, title, text in _TITLED.findall((ROOT / "docs" / page).read_text()):
        if title:
            (folder / title).write_text(text)
        elif language == "python":
            with torch.random.fork_rng(devices=[]):
                exec(compile(text, page, "exec"), names)
            printed = capsys.readouterr().out
        elif language == "console":
            printed = ""
            for words in command_lines(text):
                code, out, err = unlearn(*words)
                judging = words[0] == "verify" or words[:2] == ["request", "process"]
                assert code in ((0, 1, 3) if judging else (0,)), f"{words} ended with {code}: {err}"
                printed += out
        elif language == "text":
            assert same(text, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), f"{text} is not in {printed}"
    return names


HOW_TOS = ["clean", "delete-a-user", "remove-a-class", "undo-a-backdoor", "explain"]


def test_every_how_to_is_followed():
    assert {path.stem for path in (ROOT / "docs" / "how-to").glob("*.md")} == set(HOW_TOS)


@pytest.mark.parametrize("name", HOW_TOS)
def test_how_to(name, tmp_path, monkeypatch, unlearn, capsys):
    names = follow(f"how-to/{name}.md", tmp_path, monkeypatch, unlearn, capsys)
    if name == "clean":
        assert names["after"] < 0.5 * names["before"]
    elif name == "delete-a-user":
        assert (tmp_path / "runs/customers/requests/certificates/R-0001-000009.html").exists()
        assert not set(names["rows"][68:72]) & set((tmp_path / "head.json").read_text().split('"'))
    elif name == "remove-a-class":
        assert names["kept"]["edited"] < 0.5 * names["kept"]["original"]
    elif name == "undo-a-backdoor":
        assert names["sent"]["edited"] < 0.1
        assert names["sent"]["original"] > 0.9
    elif name == "explain":
        assert names["explained"]
        assert all(row.influence > 0 for query in names["explained"] for row in query.harmful)


def test_data_page_runs_its_recipe(tmp_path, monkeypatch, unlearn):
    _, found = execute("data.md", tmp_path, monkeypatch)
    assert (len(found["rows"]), found["rows"].classes) == (40, 2)
    (words,) = shell_commands(ROOT / "docs" / "data.md")
    code, out, err = unlearn(*words)
    assert code == 0, err
    assert "160 training rows" in out
    assert (tmp_path / "runs" / "pets" / "report.html").exists()


def test_scale_page_runs(tmp_path, monkeypatch):
    _, found = execute("scale.md", tmp_path, monkeypatch)
    assert found["curvature"].passes == 2
    assert len(found["scores"]) == len(found["again"]) == 5000
    assert found["suspicious"] == found["again"].top(3)
    assert (tmp_path / "factors" / "manifest.json").exists()
    printed = "".join(path.read_text() for path in (ROOT / "benchmarks/results").glob("*.md"))
    rows = [line for line in (ROOT / "docs/scale.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) > 40
    assert [row for row in rows if row not in printed] == []


def test_every_option_of_the_data_page_is_taken():
    page = ROOT / "docs" / "data.md"
    tables = [tomllib.loads(text)["data"] for text in blocks(page, "toml")]
    assert [table["source"] for table in tables] == ["table", "cifar10", "hub"]
    for table in tables:
        check_options(table["source"], DataSection(**table).options)
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", page.read_text(), re.M))))
    assert named <= {option for kind in SOURCE_OPTIONS.values() for option in kind.model_fields}
    assert set(TableOptions.model_fields) <= named


def test_the_csv_of_quickstart_is_a_decisions_file(tmp_path):
    (text,) = blocks(ROOT / "docs" / "quickstart.md", "csv")
    path = tmp_path / "decisions.csv"
    path.write_text(text)
    changes = unlearn.Changes.load(path)
    changes.check(unlearn.symmetric_noise(unlearn.load_data("digits"), 0.1, 0))
    assert changes.action == "mixed"


@every_page
def test_python_blocks_compile(page):
    for code in blocks(page, "python", "py"):
        compile(code, str(page), "exec")


@every_page
def test_relative_links_lead_somewhere(page):
    for link in ("".join(found) for found in _LINK.findall(prose(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", _FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_commands_parse(page):
    for words in shell_commands(page):
        parse(words)
    for code in inline_code(page):
        if re.fullmatch(r"unlearn [a-z].*", code):
            find_command(shlex.split(code)[1:])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("unlearn recip list", "has no command"),
        ("unlearn verify runs/x --reference-count 3", "No such option"),
        ("unlearn verify", "Missing argument"),
        ("$ cd x && unlearn recipe run mnist5k", "no recipe"),
    ],
)
def test_a_wrong_command_would_be_seen(line, problem):
    (words,) = command_lines(line)
    with pytest.raises((click.ClickException, AssertionError)) as caught:
        parse(words)
    error = caught.value
    assert problem in (error.format_message() if isinstance(error, click.ClickException) else str(error))


@every_page
def test_named_recipes_paths_and_functions_exist(page):
    for code in inline_code(page):
        assert not re.fullmatch(r"(mnist5k|digits)-[a-z-]+", code) or code in shipped_recipes(), f"no recipe {code}"
        if code.split("/")[0] in FOLDERS and re.fullmatch(r"[\w./-]+/[\w./-]*", code):
            assert (ROOT / code).exists(), f"{page.name} names {code}"
        for name in re.findall(r"\bunlearn\.([A-Za-z_]\w*)", code):
            is_room = (ROOT / "unlearn" / name).is_dir() or (ROOT / "unlearn" / f"{name}.py").exists()
            assert name in dir(unlearn) or is_room, f"{page.name} names unlearn.{name}"


def rooms() -> dict[str, int]:
    """Floor of every room, from the map in CONTRIBUTING.md."""
    table = re.findall(r"^\| (\d) \| `unlearn/(\w+)(?:/|\.py)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    return {room: int(floor) for floor, room in table}


def imports(path: Path) -> Iterator[str]:
    """Rooms that a module imports from, also inside functions and for types."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "unlearn":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unlearn."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("unlearn."))


def test_the_map_of_rooms_holds():
    floors, package = rooms(), ROOT / "unlearn"
    found = {p.stem for p in package.iterdir() if (p / "__init__.py").exists() or p.suffix == ".py"}
    assert found - {"__init__", "__main__"} == set(floors)
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        for other in set(imports(path)) - {room} if room in floors else ():
            neighbours = floors[room] <= 1 and floors[other] == floors[room]
            assert floors[other] < floors[room] or neighbours, f"{path.relative_to(ROOT)} imports {other}"
