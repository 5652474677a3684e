"""A trained run with customers, made once; copies of it with keys and a clock that stands still."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.requests.stories import Clock, trained_run
from unlearn.requests import Desk, Keys, make_keys


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run; tests must not change it."""
    torch.set_num_threads(1)
    return trained_run(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("secrets") / "keys")


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def desk(folder: Path, keys: Keys, clock: Clock) -> Desk:
    with Desk.open(folder, keys=keys, who="dpo", clock=clock, create=True) as opened:
        yield opened


@pytest.fixture
def customers(tmp_path: Path, trained: Path) -> Path:
    """Customer c of every row: its number modulo 500."""
    from unlearn.pipeline import Run

    path = tmp_path / "customers.csv"
    rows = Run.open(trained).data.ids
    path.write_text("id,customer\n" + "".join(f"{row},{int(row[-4:]) % 500}\n" for row in rows))
    return path


@pytest.fixture
def failing() -> Callable[[Callable[[], object]], list[str]]:
    """Names of the audit's checks that do not hold."""

    def run(checks: Callable[[], object]) -> list[str]:
        return [check.name for check in checks() if check.ok is False]  # type: ignore[attr-defined]

    return run
