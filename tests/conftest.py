"""A tiny run on real digits, made once; the command line in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from chromium import Browser

from unlearn.cli import main

TINY = """
name = "tiny"
description = "A tiny run for the tests."

[data]
source = "digits"
noise = { kind = "symmetric", rate = 0.1, noise_seed = 0 }

[model]
name = "mlp"
options = { inputs = 64, classes = 10, widths = [32] }

[train]
epochs = 5
batch_size = 64

[detect]
beside = ["self-influence", "gif", "loss"]

[repair]
action = "relabel"
budget = 2.0

[verify]
references = 2
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> Path:
    """A finished run of it; tests must not change it."""
    from unlearn.pipeline import Run, run_stages
    from unlearn.recipe import load_recipe

    torch.set_num_threads(1)
    run = Run.create(tmp_path_factory.mktemp("runs") / "tiny", load_recipe(str(tiny_recipe)))
    run_stages(run)
    return run.folder


@pytest.fixture
def unlearn(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny run."""
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless chromium, started once."""
    started = Browser()
    yield started
    started.quit()
