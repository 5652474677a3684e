"""Formatting, lint, docstring rules and types are part of the one test command."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CHECKS = {
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "types": ["mypy"],
}


@pytest.mark.parametrize("check", CHECKS)
def test_quality(check: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", *CHECKS[check]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_rooms_import_only_from_the_same_floor_or_below() -> None:
    """The map of CONTRIBUTING.md holds; a room that reached up would make a cycle."""
    import ast

    floors = {
        "errors": 0, "inputs": 0, "atomic": 0, "progress": 0, "modes": 0, "precision": 0, "ranks": 0, "extras": 0,
        "data": 1, "models": 1, "tasks": 1, "checkpoint": 1, "recipe": 1, "predict": 1,
        "source_options": 1,
        "curvature": 2, "training": 2, "detect": 3, "repair": 3, "report": 4, "verification": 4,
        "pipeline": 5, "requests": 6, "review": 6, "cli": 7, "__main__": 7,
    }  # fmt: skip
    wrong = []
    for path in sorted((ROOT / "unlearn").rglob("*.py")):
        room = path.relative_to(ROOT / "unlearn").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                parts = name.split(".")
                if parts[0] == "unlearn" and len(parts) > 1 and floors[parts[1]] > floors[room]:
                    wrong.append(f"{path.name}:{node.lineno} imports {name}")
    assert not wrong


def test_importing_the_package_and_the_commands_does_not_import_torch() -> None:
    """Help and usage errors stay fast; rejects an import of torch at the top of a command's module."""
    code = "import sys, unlearn, unlearn.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_front_door_names_what_it_promises() -> None:
    import unlearn

    promised = {
        "load_data", "load_checkpoint", "TrainingRecord", "Recorder", "fit_curvature", "self_influence", "gif_scores",
        "influence", "remove", "relabel", "verify", "save_checkpoint", "load_curvature", "gauss_newton",
    }  # fmt: skip
    assert promised <= set(unlearn.__all__)
    assert all(callable(getattr(unlearn, name)) for name in unlearn.__all__)
