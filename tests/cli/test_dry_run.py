"""``unlearn recipe run --dry-run``: what is there, what is not, what would run; nothing is trained or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from unlearn.pipeline import Run, run_stages, stages_of
from unlearn.recipe import load_recipe, shipped_recipes

Unlearn = Callable[..., tuple[int, str, str]]

HERE = {"mnist5k", "digits", "breast-cancer"}
RECIPES = {name: load_recipe(name) for name in shipped_recipes()}


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.data.source in HERE])
def test_recipes_on_shipped_data_can_run(
    name: str, unlearn: Unlearn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = unlearn("recipe", "run", name, "--dry-run", "--json")
    found = json.loads(out)
    assert (code, err, found["problems"]) == (0, "", [])
    assert min(found["rows"], found["test_rows"], found["parameters"]) > 0
    assert (found["plan"] is None) == (RECIPES[name].certified is not None)
    assert not any(found["stages"].values())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.data.source not in HERE])
def test_data_that_is_not_there_is_told_beside_the_model(
    name: str, unlearn: Unlearn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # rejects stopping at the first problem: the model is built all the same
    monkeypatch.chdir(tmp_path)
    code, out, err = unlearn("recipe", "run", name, "--dry-run")
    assert code == 2
    assert "training rows could not be looked at" in out
    assert "it can not run" in out
    problems = err.strip().splitlines()
    assert all(line.startswith("problem: ") for line in problems)
    assert any(how in problems[0] for how in ("put them there", "save_pretrained", "save_to_disk"))
    assert not any(tmp_path.iterdir())


def test_stages_are_those_that_run(tiny_recipe: Path, tiny_run: Path, unlearn: Unlearn, tmp_path: Path) -> None:
    told: list[str] = []
    run = Run.create(tmp_path / "run", load_recipe(str(tiny_recipe)))
    assert not any(stages_of(run).values())
    run_stages(run, tell=lambda stage, _: told.append(stage))
    assert list(stages_of(run)) == told
    assert all(stages_of(run).values())
    code, out, _ = unlearn("recipe", "run", tiny_recipe, "--dry-run", "--out", tmp_path / "run", "--resume")
    assert (code, "train (finished before), detect (finished before)" in out) == (0, True)
    code, _, err = unlearn("recipe", "run", tiny_recipe, "--dry-run", "--out", tmp_path / "run")
    assert (code, "holds a run already; pass --resume" in err) == (2, True)


def test_what_does_not_fit_is_a_problem(unlearn: Unlearn, tiny_recipe: Path, tmp_path: Path) -> None:
    text = tiny_recipe.read_text()
    for old, new, message in (
        ("inputs = 64", "inputs = 65", "can not take the rows of digits"),
        ("inputs = 64", "input = 64", "has no option 'input'; did you mean 'inputs'"),
    ):
        assert old in text
        path = tmp_path / "mine.toml"
        path.write_text(text.replace(old, new))
        code, out, err = unlearn("recipe", "run", path, "--dry-run")
        assert (code, message in err, len(err.strip().splitlines())) == (2, True, 1)
        assert "parameters" in out


def test_certified_and_stated_recipes_have_their_own_stages(tmp_path: Path) -> None:
    stages = {name: list(stages_of(Run(tmp_path, recipe))) for name, recipe in RECIPES.items()}
    assert stages["digits-linear-certified"] == ["certified"]
    assert stages["digits-deletion-requests"] == ["train", "rehearsal"]
    assert "detect" not in stages["mnist5k-class-removal"]
    assert "detect" in stages["mnist5k-remove"]
