"""``unlearn benchmark repair``: the whole frontier of a tiny run, on a grid cut down to what a test can wait for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from unlearn.cli.benchmark import _short
from unlearn.pipeline import repair_benchmark
from unlearn.repair import RIVALS
from unlearn.repair.rivals import dampening, gradient_ascent, influence_step, neggrad_plus, rates

Unlearn = Callable[..., tuple[int, str, str]]


@pytest.fixture
def small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_benchmark, "COSTS", (0.5, 1.0))
    monkeypatch.setattr(rates, "RATES", (1.0,))
    monkeypatch.setattr(gradient_ascent, "PASSES", (1, 2))
    monkeypatch.setattr(neggrad_plus, "ALPHAS", (0.99,))
    monkeypatch.setattr(dampening, "ALPHAS", (3.0,))
    monkeypatch.setattr(dampening, "LAMBDAS", (0.3, 1.0))
    monkeypatch.setattr(influence_step, "SCALES", (1.0, 10.0))


@pytest.fixture
def removal_recipe(tiny_recipe: Path, tmp_path: Path) -> Path:
    path = tmp_path / "removal.toml"
    text = tiny_recipe.read_text().replace('"relabel"', '"remove"').replace("epochs = 5", "epochs = 3")
    path.write_text(text.replace('"self-influence", "gif", "loss"', "").replace("batch_size = 64", "batch_size = 128"))
    return path


@pytest.mark.usefixtures("small_grid")
def test_the_command_prints_the_frontier_within_80_columns_and_keeps_what_it_measured(
    unlearn: Unlearn, removal_recipe: Path, tmp_path: Path
) -> None:
    out_folder = tmp_path / "bench"
    words = ("benchmark", "repair", removal_recipe, "--rows", 20, "--seeds", "0,1", "--out", out_folder)
    code, out, _ = unlearn(*words)
    assert code == 0
    lines = out.splitlines()
    assert max(len(line) for line in lines if not line.startswith("plot: ")) <= 80
    assert "…" not in out
    assert "remove 20, 20 of 1438 rows" in " ".join(out.split())
    facts = json.loads((out_folder / "repair.json").read_text())
    assert {point["method"] for point in facts["points"]} >= {"unedited", "ours", "ours, final only", *RIVALS}
    half, one = facts["levels"][:2]
    assert {row["method"] for row in one["oracle"]} == set(RIVALS)
    assert "replay" not in {row["method"] for row in half["chosen"]}  # snapshots lie an epoch apart
    for level in (half, one):
        for row in level["chosen"]:
            assert row["cost"] <= 1.1 * level["cost"]
            best = next((r for r in level["oracle"] if r["method"] == row["method"]), row)
            assert best["KL"]["mean"] <= row["KL"]["mean"]
            assert best["cosine test"]["worst"] >= row["cosine test"]["worst"]
    tuned = next(row for row in one["chosen"] if row["method"] == "fine-tune")
    assert f"{_short(1000 * tuned['KL']['mean'])}/{_short(1000 * tuned['KL']['worst'])}" in out
    page = (out_folder / "repair.html").read_text()
    assert page.count("<svg") == 4
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.usefixtures("small_grid")
def test_one_seed_as_detected_shows_oracles_only(
    unlearn: Unlearn, removal_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair_benchmark, "RIVALS", {name: RIVALS[name] for name in ("fine-tune", "random labels")})
    code, out, _ = unlearn("benchmark", "repair", removal_recipe, "--seeds", "3", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["which"] == "as detected"
    assert facts["changed"][0] > 50
    assert {row["method"] for level in facts["levels"] for row in level["chosen"]} <= {"ours", "ours, final only"}
    assert {row["method"] for row in facts["levels"][1]["oracle"]} == {"fine-tune", "random labels"}


BAD = {
    "seeds": (["--seeds", "0,x"], "--seeds is '0,x'; give whole numbers with commas"),
    "seed twice": (["--seeds", "1,1"], "seeds are [1, 1]; give at least one, each once"),
    "no rows": (["--rows", "0"], "rows is 0, and 144 rows have a wrong label; give 1 to 144"),
    "too many": (["--rows", "145"], "rows is 145"),
}


def test_recipes_whose_rows_are_stated_or_that_have_no_stages(unlearn: Unlearn) -> None:
    code, _, err = unlearn("benchmark", "repair", "mnist5k-class-removal", "--rows", 5)
    assert (code, "recipe 'mnist5k-class-removal' has action 'remove-class'; leave rows out" in err) == (2, True)
    code, _, err = unlearn("benchmark", "repair", "digits-linear-certified")
    assert (code, "has no stages to detect or verify" in err) == (2, True)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_exits_2_before_anything_is_trained(
    unlearn: Unlearn, tiny_recipe: Path, tmp_path: Path, case: str
) -> None:
    words, message = BAD[case]
    code, out, err = unlearn("benchmark", "repair", tiny_recipe, *words, "--out", tmp_path / "bench")
    assert code == 2
    assert message in err
    assert out == ""
    assert not (tmp_path / "bench").exists()
