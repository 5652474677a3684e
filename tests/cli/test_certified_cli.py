"""A certified head from the command line: the run, further removals, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from unlearn.data import load_data
from unlearn.errors import RecipeError
from unlearn.recipe import load_recipe, parse_recipe
from unlearn.repair import CertifiedHead

Unlearn = Callable[..., tuple[int, str, str]]
RECIPE = load_recipe("digits-linear-certified").text
SHORT = RECIPE.replace("sigma = 1.0", "sigma = 0.05")
FEW = RECIPE + "most = 2\n"


@pytest.fixture(scope="module")
def certified_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from unlearn.pipeline import Run, run_certified

    folder = tmp_path_factory.mktemp("certified") / "run"
    run_certified(Run.create(folder, parse_recipe(FEW)))
    return folder


@pytest.fixture
def copied_run(certified_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(certified_run, tmp_path / "run"))


def test_the_recipe_ends_with_a_refusal_and_says_what_is_left(unlearn: Unlearn, tmp_path: Path) -> None:
    recipe = tmp_path / "short.toml"
    recipe.write_text(SHORT)
    code, out, _ = unlearn("recipe", "run", recipe, "--out", tmp_path / "run")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    words = " ".join(out.split())
    for part in ("refused after", "retrain without these rows", "epsilon spent", "left", "honest operator"):
        assert part in words
    facts = json.loads((tmp_path / "run" / "certified.json").read_text())
    assert facts["refusal"]
    assert facts["requests"]
    assert facts["now"]["removed"] == sum(request["rows"] for request in facts["requests"])
    assert facts["now"]["spent"] <= facts["now"]["budget"]
    assert facts["trained"]["test_accuracy"] > 0.9
    head = (tmp_path / "run" / "head.safetensors").read_bytes()
    code, out, _ = unlearn("recipe", "run", recipe, "--out", tmp_path / "run", "--resume", "--json", "--strict")
    assert code == 3  # no verdict is sought
    assert json.loads(out) == facts
    assert (tmp_path / "run" / "head.safetensors").read_bytes() == head


def test_the_same_recipe_gives_the_same_bytes(certified_run: Path, tmp_path: Path) -> None:
    from unlearn.pipeline import Run, run_certified

    run_certified(Run.create(tmp_path / "run", parse_recipe(FEW)))
    for name in ("head.safetensors", "certified.json"):
        assert (tmp_path / "run" / name).read_bytes() == (certified_run / name).read_bytes()


def test_further_rows_are_removed_until_the_budget_refuses(unlearn: Unlearn, copied_run: Path) -> None:
    data = load_data("digits")
    head = CertifiedHead.load(copied_run / "head.safetensors", data)
    row = head.rows.ids[0]
    code, out, _ = unlearn("repair", "remove", copied_run, row)
    assert code == 0
    assert "removed 1 rows: residual at most" in out
    again = CertifiedHead.load(copied_run / "head.safetensors", data)
    assert len(again.rows) == len(head.rows) - 1
    assert again.spent > head.spent
    assert row not in again.rows
    before = (copied_run / "head.safetensors").read_bytes()
    code, _, err = unlearn("repair", "remove", copied_run, *again.rows.ids[:200])
    assert code == 2
    assert "retrain without these rows, with new noise" in err
    assert (copied_run / "head.safetensors").read_bytes() == before
    assert unlearn("repair", "remove", copied_run, row)[0] == 2  # it has gone


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("repair", "relabel", "RUN", "digits-0002=1"), "a certified head removes rows only"),
        (("repair", "remove", "RUN", "digits-0002", "--budget", "1"), "has no options but --json"),
        (("repair", "remove", "RUN", "digits-0002", "--device", "cpu"), "on the CPU; leave out --device cpu"),
        (("verify", "RUN"), "is a run of a certified head"),
        (("detect", "RUN"), "trains a certified head, which has no stages"),
    ],
)
def test_commands_without_a_meaning_here_are_refused(
    unlearn: Unlearn, certified_run: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, err = unlearn(*(str(certified_run) if word == "RUN" else word for word in words))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_certified_recipe_is_not_trained_by_stages(unlearn: Unlearn, tmp_path: Path) -> None:
    code, _, err = unlearn("train", "digits-linear-certified", "--out", tmp_path / "run")
    assert code == 2
    assert "unlearn recipe run" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "linear"', 'name = "mlp"', "model 'mlp' is uncertified: a bound exists for a linear head alone"),
        ("[certified]", "[repair]\nbudget = 1.0\n[certified]", "'repair.budget' has no meaning beside"),
        ("[train]", "[train]\nlr = 0.5", "'train.lr' has no meaning beside"),
        ("delta = 1e-4", "delta = 2", "'certified.delta' is 2"),
        ("sigma = 1.0", "sigma = 1.0\nsigm = 1.0", "unknown key 'certified.sigm'; did you mean 'sigma'"),
    ],
)
def test_recipes_that_have_no_certificate_are_refused(old: str, new: str, message: str) -> None:
    assert old in RECIPE
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(RECIPE.replace(old, new, 1))
    assert "\n" not in str(caught.value)


def test_rows_longer_than_one_and_a_wrong_number_of_outputs_are_refused(unlearn: Unlearn, tmp_path: Path) -> None:
    for old, new, message in (
        (", unit_rows = true", "", "needs rows of length at most 1"),
        ("outputs = 10", "outputs = 9", "a certified head of 10 classes has 10"),
    ):
        path = tmp_path / "bad.toml"
        path.write_text(SHORT.replace(old, new))
        code, _, err = unlearn("recipe", "run", path, "--out", tmp_path / "run")
        assert code == 2
        assert message in err
        assert not (tmp_path / "run").exists()


def test_an_ordinary_edit_says_that_it_has_no_bound(unlearn: Unlearn, run_copy: Path) -> None:
    data = load_data("digits")
    code, out, _ = unlearn("repair", "remove", run_copy, data.ids[0], "--budget", "0", "--replace")
    assert code == 0
    assert "no bound" in out
    code, out, _ = unlearn("repair", "remove", run_copy, data.ids[0], "--budget", "0", "--replace", "--json")
    assert json.loads(out)["bound"] is None
