"""A tiny run on real digits, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

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
