"""What is shipped: the wheel and the sdist hold all that runs; help is given without torch; shells complete."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import click
import pytest

from unlearn.cli.main import cli

ROOT = Path(__file__).parent.parent


def run(*words: str, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "hatchling", "build", "-d", str(folder))
    return folder


def test_the_wheel_runs_apart_from_the_repository(built: Path, tmp_path: Path) -> None:
    """Rejects a recipe, a template or the mark of types left out."""
    wheel = next(built.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    here = {"cwd": tmp_path, "PYTHONPATH": str(tmp_path / "site")}
    assert "site" in run("-c", "import unlearn; print(unlearn.__file__)", **here)  # type: ignore[arg-type]
    listed = run("-m", "unlearn", "recipe", "list", **here)  # type: ignore[arg-type]
    assert all(path.stem in listed for path in (ROOT / "recipes").glob("*.toml"))
    for path in (ROOT / "unlearn").rglob("*"):
        if path.suffix in (".py", ".html", ".css", ".js", ".typed", ".j2"):
            assert (tmp_path / "site" / path.relative_to(ROOT)).exists(), path


def test_the_sdist_holds_what_the_tests_need(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for name in ("pyproject.toml", "README.md", "LICENSE", "recipes/digits-quick.toml", "tests/conftest.py"):
        assert name in names


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    for name, command in group.commands.items():
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


def test_help_needs_no_torch_and_fits_eighty_columns() -> None:
    """Every command's help in one process; torch takes seconds to import."""
    script = (
        "import sys, io, contextlib\n"
        "from unlearn.cli.main import cli\n"
        f"for words in {commands(cli)!r}:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        cli.main([*words, '--help'], prog_name='unlearn')\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)\n"
    )
    lines = run("-c", script).splitlines()
    assert lines[-1] == "False False"
    assert max(map(len, lines)) <= 80


def test_shells_complete() -> None:
    assert "complete" in run("-m", "unlearn", _UNLEARN_COMPLETE="bash_source")
    words = {"COMP_WORDS": "unlearn re", "COMP_CWORD": "1", "_UNLEARN_COMPLETE": "bash_complete"}
    assert {line.split(",")[1] for line in run("-m", "unlearn", **words).split()} >= {"recipe", "repair", "review"}
