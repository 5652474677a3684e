"""``unlearn benchmark detect`` and the table of detectors that it shares with recipes and ``unlearn detect``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from unlearn.data import load_data
from unlearn.detect import Scores
from unlearn.errors import InputError
from unlearn.pipeline import DETECTORS, Run
from unlearn.pipeline.detection_benchmark import measure_detectors
from unlearn.pipeline.detectors import Detector
from unlearn.pipeline.reseeded import reseeded
from unlearn.recipe import DetectorName, Recipe, load_recipe, parse_recipe, shipped_recipes

Unlearn = Callable[..., tuple[int, str, str]]
FAST = "loss,margin-trajectory,outlier-gradients-l2"


def test_recipes_and_the_table_know_the_same_detectors() -> None:
    assert set(get_args(DetectorName)) == set(DETECTORS)


def test_every_detector_scores_a_run_and_states_its_cost(tiny_run: Path) -> None:
    # by hand: EK-FAC takes 2 passes, gradients 1; the last layer's 1/3, twice for the forest (1,438 < 4,096 rows);
    # TracIn one pass for each of 5 snapshots; 5 folds train 4 times 5 epochs
    run = Run.open(tiny_run)
    costs = {}
    for name, detector in DETECTORS.items():
        scores = detector.score(run)
        assert scores.ids == run.data.ids
        costs[name] = detector.cost(scores, run)
    assert costs == pytest.approx(
        {
            "margin-trajectory": 0,
            "loss": 1 / 3,
            "self-influence": 3,
            "gif": 3,
            "outlier-gradients": 2 / 3,
            "outlier-gradients-l1": 1 / 3,
            "outlier-gradients-l2": 1 / 3,
            "tracin": 5,
            "out-of-sample": 20 + 1 / 3,
        }
    )


def test_the_fit_of_a_run_s_factors_counts_though_the_score_was_given_them(tiny_run: Path) -> None:
    # rejects what the scores say, which is 1 where the run has its curvature on file
    run, given = Run.open(tiny_run), Scores(("a",), np.array([1.0]), "self-influence", {"cost_epochs": 1.0})
    assert DETECTORS["self-influence"].cost(given, run) == 3
    with pytest.raises(InputError, match="states no cost"):
        Detector(lambda run: given).cost(Scores(("a",), np.array([1.0]), "mine"), run)


@pytest.mark.parametrize("method", ["tracin", "outlier-gradients-l1"])
def test_any_detector_can_decide_in_a_recipe_and_be_asked_for_on_a_run(
    unlearn: Unlearn, tiny_recipe: Path, tiny_run: Path, tmp_path: Path, method: str
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    code, out, _ = unlearn("detect", tmp_path / "run", "--method", method, "--json")
    assert code == 0
    asked = json.loads(out)["top"]
    own = tmp_path / "own.toml"
    section = f'[detect]\nmethod = "{method}"\ncount = 9\n'
    own.write_text(tiny_recipe.read_text().replace("[detect]\n", section))
    assert unlearn("train", own, "--out", tmp_path / "own")[0] == 0
    code, out, _ = unlearn("detect", tmp_path / "own", "--json")
    assert code == 0
    assert [row["id"] for row in json.loads(out)["top"]] == [row["id"] for row in asked]
    found = json.loads((tmp_path / "own" / "detection.json").read_text())
    assert (found["method"], len(found["acted"])) == (method, 9)
    assert found["scores"][-1]["cost_epochs"] == pytest.approx({"tracin": 5, "outlier-gradients-l1": 1 / 3}[method])


def test_measures_are_those_of_scikit_learn_on_a_run_that_stands(tiny_run: Path) -> None:
    run = Run.open(tiny_run)
    bad = (run.data.labels != run.data.truth).numpy()
    measured = measure_detectors(run, ["loss"])["loss"]
    values = DETECTORS["loss"].score(run).values
    first = np.argsort(-values)[: bad.sum()]
    assert measured == pytest.approx(
        {
            "auroc": roc_auc_score(bad, values),
            "average_precision": average_precision_score(bad, values),
            "found": bad[first].sum() / bad.sum(),
            "cost_epochs": 1 / 3,
        }
    )


def test_the_command_prints_all_scores_and_their_cost_within_80_columns(unlearn: Unlearn, tiny_recipe: Path) -> None:
    code, out, _ = unlearn("benchmark", "detect", tiny_recipe)
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.strip().startswith(tuple(DETECTORS))] == list(DETECTORS)
    assert "AUROC" in out
    assert "144 of 1438 rows are wrong" in out
    assert "…" not in out


def test_several_seeds_differ_and_the_folder_keeps_runs_that_other_commands_take(
    unlearn: Unlearn, tiny_recipe: Path, tiny_run: Path, tmp_path: Path
) -> None:
    out_folder = tmp_path / "bench"
    words = ("benchmark", "detect", tiny_recipe, "--methods", FAST, "--seeds", 2, "--out", out_folder)
    code, out, _ = unlearn(*words, "--json")
    assert code == 0
    facts = json.loads(out)
    assert (facts["recipe"], facts["seeds"], facts["rows"], len(facts["wrong"])) == ("tiny", 2, 1438, 2)
    rows = {(row["method"], row["seed"]): row for row in facts["scores"]}
    assert set(rows) == {(name, seed) for name in FAST.split(",") for seed in (0, 1)}
    assert rows["loss", 0]["auroc"] != rows["loss", 1]["auroc"]
    assert measure_detectors(Run.open(tiny_run), ["loss"])["loss"]["auroc"] == rows["loss", 0]["auroc"]
    assert Run.open(out_folder / "seed-1").recipe.train.train_seed == 1
    trained = (out_folder / "seed-1" / "original.safetensors").stat().st_mtime_ns
    code, out, _ = unlearn(*words)  # goes on with what is trained
    assert code == 0
    assert (out_folder / "seed-1" / "original.safetensors").stat().st_mtime_ns == trained
    mean = (rows["loss", 0]["auroc"] + rows["loss", 1]["auroc"]) / 2
    worst = min(rows["loss", seed]["auroc"] for seed in (0, 1))
    assert f"{mean:.3f} ({worst:.3f})" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert unlearn("detect", out_folder / "seed-1", "--top", 2)[0] == 0


NOISE = 'noise = { kind = "symmetric", rate = 0.1, noise_seed = 0 }'
BAD = {
    "no truth": (NOISE, "", [], "true labels of recipe 'tiny' are not known"),
    "no wrong row": ("rate = 0.1", "rate = 0.0", [], "0 of 1438 rows of recipe 'tiny' have a wrong label"),
    "unknown method": ("", "", ["--methods", "loss,tracing"], "unknown method 'tracing'; did you mean 'tracin'"),
    "no method": ("", "", ["--methods", ""], "unknown method ''"),
    "no seeds": ("", "", ["--seeds", "0"], "--seeds"),
    "unknown recipe": (None, "", [], "did you mean 'digits-quick'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_exits_2_before_anything_is_trained(
    unlearn: Unlearn, tiny_recipe: Path, tmp_path: Path, case: str
) -> None:
    old, new, words, message = BAD[case]
    own = tmp_path / "own.toml"
    own.write_text(tiny_recipe.read_text().replace(old or "", new) if old else tiny_recipe.read_text())
    name = "digits-quik" if old is None else str(own)
    code, out, err = unlearn("benchmark", "detect", name, *words, "--out", tmp_path / "bench")
    assert code == 2
    assert message in err
    assert out == ""
    assert not (tmp_path / "bench").exists()


STRANGE = """
name = "über \\"x\\""
[data]
source = "digits"
noise = { kind = "pairs", rate = 0.25, noise_seed = 7, pairs = { 4 = 9, 9 = 4 } }
corruption = { kind = "gaussian", rate = 0.1, seed = 5 }
[model]
name = "mlp"
options = { inputs = 64, classes = 10, widths = [8, 4] }
[train]
eps = 1e-9
train_seed = 3
snapshot_epochs = [1, 2]
[repair]
damping = 0.5
"""


@pytest.mark.parametrize("text", [STRANGE, *(path.read_text() for path in shipped_recipes().values())])
def test_a_reseeded_recipe_is_the_same_but_for_its_seeds_and_says_so_in_its_text(text: str) -> None:
    def without_seeds(recipe: Recipe) -> dict[str, object]:
        values = recipe.model_dump(exclude={"text"})
        values["train"].pop("train_seed")
        (values["data"]["noise"] or {}).pop("noise_seed", None)
        (values["data"]["corruption"] or {}).pop("seed", None)
        return values

    recipe = parse_recipe(text)
    second = reseeded(recipe, 2)
    assert without_seeds(second) == without_seeds(recipe)
    assert second.train.train_seed == recipe.train.train_seed + 2
    assert parse_recipe(second.text) == second
    if recipe.data.noise is not None and second.data.noise is not None:
        assert second.data.noise.noise_seed == recipe.data.noise.noise_seed + 2
    if recipe.data.corruption is not None and second.data.corruption is not None:
        assert second.data.corruption.seed == recipe.data.corruption.seed + 2
    assert reseeded(recipe, 0) is recipe


def test_reseeding_keeps_the_split() -> None:
    recipe = load_recipe("digits-quick")
    first, second = (Run(Path("nowhere"), reseeded(recipe, shift)) for shift in (0, 1))
    assert first.data.ids == second.data.ids == load_data("digits").ids
    assert not np.array_equal(first.data.labels.numpy(), second.data.labels.numpy())
