"""``unlearn plan``: counted against what a finished run holds and what its stages say they cost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unlearn.curvature import fit_curvature
from unlearn.curvature.layers import find_layers
from unlearn.curvature.per_layer import PerLayer
from unlearn.pipeline import Run, plan_run, run_stages
from unlearn.pipeline.plan import RunPlan, StagePlan, factor_bytes
from unlearn.recipe import parse_recipe
from unlearn.repair import Changes, apply_changes
from unlearn.verification import Price, train_references

Unlearn = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> Run:
    return Run.open(tiny_run)


@pytest.fixture(scope="module")
def plan(run: Run) -> RunPlan:
    return plan_run(run.recipe, run.folder)


def stage(plan: RunPlan, name: str) -> StagePlan:
    return next(stage for stage in plan.stages if stage.name == name)


def test_factors_are_counted_as_they_are_fitted() -> None:
    """Every form of block: convolution, groups, linear, embedding, norm."""
    torch.manual_seed(0)
    nn = torch.nn
    images = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(96, 3, bias=False))
    words = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Flatten(), nn.Linear(12, 2))
    labels = torch.tensor([0, 1, 0, 1])
    for model, inputs in ((images, torch.randn(4, 4, 6, 6)), (words, torch.randint(7, (4, 3)))):
        data = (inputs, labels)
        fitted = fit_curvature(model, data)
        for layer in find_layers(model, data).layers:
            block = fitted.blocks[layer.name]
            parts = (block.eigenvalues, block.basis.inputs, block.basis.outputs)
            assert factor_bytes(layer) == sum(part.nbytes for part in parts if part is not None), layer


def test_snapshots_are_counted_as_they_are_written(run: Run, plan: RunPlan) -> None:
    """Rejects a forgotten optimizer state and a forgotten first snapshot; files have a header beside."""
    written = sum(path.stat().st_size for path in (run.folder / "snapshots").glob("*.safetensors"))
    assert stage(plan, "train").disk <= written <= 1.15 * stage(plan, "train").disk


def test_epochs_are_those_that_the_stages_say(run: Run, plan: RunPlan, tmp_path: Path) -> None:
    told: list[Price] = []
    model, record = run.original
    scores = json.loads((run.folder / "detection.json").read_text())["scores"]
    fits = [s["cost_epochs"] for s in scores]
    assert stage(plan, "detect").epochs == pytest.approx(sum(fits) - 2.0)  # factors are fitted once for two scores
    edit = apply_changes(model, run.data, Changes(run.data.ids[:3]), record=record, budget=run.recipe.repair.budget)
    assert edit.method == "rewind-unrolled-replay"
    assert stage(plan, "repair").epochs == pytest.approx(edit.cost.total, rel=0.35)
    train_references(model, edit.edited_data, record, count=2, folder=tmp_path, tell=told.append)
    assert stage(plan, "verify").epochs == pytest.approx(told[0].total, rel=0.01)


def test_streamed_factors_give_the_same_scores_and_cost_what_the_plan_says(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the recipe to the scores; rejects a plan that forgets the passes, and factors that are fitted in memory."""
    monkeypatch.setattr("unlearn.curvature.fit._LEAST_BYTES", 0)
    text = run.recipe.text.replace("[detect]", "[detect]\nstream_factors = true")
    streamed = Run.create(tmp_path / "run", parse_recipe(text))
    run_stages(streamed, until="detect")
    for method in ("self-influence", "gif"):
        name = f"scores-{method}.csv"
        assert (streamed.folder / name).read_bytes() == (run.folder / name).read_bytes()
    assert isinstance(streamed.curvature().blocks, PerLayer)
    costs = {
        s["method"]: s["cost_epochs"] for s in json.loads((streamed.folder / "detection.json").read_text())["scores"]
    }
    assert costs["gif"] == 1 + 2 * 2
    found, held = (stage(plan_run(one.recipe, one.folder, measure=False), "detect") for one in (streamed, run))
    assert found.epochs == pytest.approx(sum(costs.values()) - 2 * 2)
    assert found.memory < held.memory
    assert "factors in 2 groups of layers" in found.why


def test_time_is_measured_and_the_model_left_alone(plan: RunPlan) -> None:
    assert plan.epoch_seconds is not None
    times = [stage.seconds for stage in plan.stages]
    assert all(time is not None and 0 < time < math.inf for time in times)
    assert stage(plan, "train").seconds == pytest.approx(5 * plan.epoch_seconds)


def test_a_detector_that_says_its_cost_later_has_none(run: Run) -> None:
    other = parse_recipe(run.recipe.text.replace('beside = ["self-influence", "gif", "loss"]', 'beside = ["tracin"]'))
    found = plan_run(other, run.folder, measure=False)
    assert (stage(found, "detect").epochs, stage(found, "train").seconds) == (None, None)


def test_what_does_not_fit_says_what_to_change(plan: RunPlan) -> None:
    assert plan.advice == ()
    small = RunPlan(**{**vars(plan), "memory": 10_000, "disk": 10_000})
    memory, disk = small.advice
    assert "the factors of layer '1' take" in memory
    assert memory.endswith("for detect, state detect.stream_factors = true: they stay on the disk, for more passes")
    assert "stream_factors" not in RunPlan(**{**vars(small), "streamed": True}).advice[0]
    assert "train.snapshot_epochs = 6, fewer verify.references" in disk


def test_the_command_prints_eighty_columns_and_writes_nothing(
    unlearn: Unlearn, tiny_recipe: Path, tmp_path: Path
) -> None:
    code, out, _ = unlearn("plan", tiny_recipe, "--out", tmp_path / "run")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert all(name in out for name in ("train", "detect", "repair", "verify", "one training epoch"))
    code, out, _ = unlearn("plan", tiny_recipe, "--out", tmp_path / "run", "--no-measure", "--json")
    assert code == 0
    assert json.loads(out)["epoch_seconds"] is None
    assert not any(tmp_path.iterdir())
    code, _, err = unlearn("plan", "digits-linear-certified")
    assert (code, "run it with `unlearn recipe run`" in err) == (2, True)
