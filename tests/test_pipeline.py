"""The run folder: what is in it, that it repeats, resumes and never half-writes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import nn

from unlearn.errors import FolderError, InputError, RecipeError, RecordError, RowNotFoundError, UnlearnError
from unlearn.pipeline import Run, run_stages, stages
from unlearn.recipe import load_recipe, parse_recipe
from unlearn.repair import Changes

FILES = (
    "recipe.toml", "original.safetensors", "trajectory.safetensors", "curvature/manifest.json",
    "scores-margin-trajectory.csv", "scores-self-influence.csv", "scores-gif.csv", "scores-loss.csv",
    "decisions.csv", "edited.safetensors", "verdict.json", "report.json", "report.html", "timings.json",
)  # fmt: skip
REPEATED = (
    "original.safetensors", "trajectory.safetensors", "edited.safetensors", "decisions.csv", "verdict.json",
    "report.json", "report.html",
)  # fmt: skip


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copy_of(run: Path, tmp_path: Path) -> Run:
    shutil.copytree(run, tmp_path / "copy")
    return Run.open(tmp_path / "copy")


def test_the_run_folder_holds_every_file_and_no_part(tiny_run: Path) -> None:
    assert [name for name in FILES if not (tiny_run / name).exists()] == []
    assert list(tiny_run.rglob("*.part")) == []


def test_two_runs_of_one_recipe_give_the_same_bytes(tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """Rejects a draw from a global seed, and times, dates or paths in results."""
    again = Run.create(tmp_path / "elsewhere", load_recipe(str(tiny_recipe)))
    run_stages(again)
    names = [*REPEATED, *(path.name for path in tiny_run.glob("scores-*.csv"))]
    assert [name for name in names if digest(tiny_run / name) != digest(again.folder / name)] == []


def test_a_killed_run_goes_on_without_redoing_finished_stages(
    tiny_run: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(tiny_run, tmp_path)
    for name in ("edited.safetensors", "verdict.json", "report.json", "report.html"):
        (run.folder / name).unlink()
    monkeypatch.setattr(stages, "train", lambda *a, **k: pytest.fail("trained again"))
    told: dict[str, float | None] = {}
    run_stages(Run.create(run.folder, load_recipe(str(tiny_recipe)), resume=True), tell=told.__setitem__)
    assert {stage for stage, seconds in told.items() if seconds is None} == {"train", "detect", "decide"}
    assert digest(run.folder / "edited.safetensors") == digest(tiny_run / "edited.safetensors")
    assert digest(run.folder / "report.json") == digest(tiny_run / "report.json")


def test_a_stage_that_dies_leaves_no_marker(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects writing the file that marks a stage before the others are there."""
    run = copy_of(tiny_run, tmp_path)
    for name in ("edited.safetensors",):
        (run.folder / name).unlink()
    monkeypatch.setattr(stages, "save_checkpoint", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_stages(run, until="repair")
    assert not (run.folder / "edited.safetensors").exists()


def test_a_folder_with_a_run_or_other_files_is_refused(tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(tiny_recipe))
    with pytest.raises(FolderError, match="--resume"):
        Run.create(tiny_run, recipe)
    other = parse_recipe(recipe.text.replace("epochs = 5", "epochs = 6"))
    with pytest.raises(FolderError, match="another recipe"):
        Run.create(tiny_run, other, resume=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match="no run folder"):
        Run.create(tmp_path, recipe)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(FolderError, match="no run"):
        Run.open(tmp_path)


MISFITS = {
    "data": ('source = "digits"', 'source = "digit"', "did you mean 'digits'"),
    "model": ('name = "mlp"', 'name = "mpl"', "did you mean 'mlp'"),
    "inputs": ("inputs = 64", "inputs = 63", r"can not take the rows of digits, inputs of shape"),
    "classes": ("classes = 10", "classes = 5", "label 9 is outside the model's 5 classes"),
    "rows mixed": ('name = "mlp"', 'name = "test_pipeline:batch_normed"', "depend on the rows beside it"),
    "raises": ('name = "mlp"', 'name = "test_pipeline:broken"', "KeyError"),
}


def batch_normed(**_: object) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, track_running_stats=False), nn.Linear(64, 10))


def broken(**_: object) -> nn.Module:
    raise KeyError("depth")


@pytest.mark.parametrize("case", MISFITS)
def test_data_and_model_that_do_not_fit_are_refused_before_a_folder_is_made(
    case: str, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rejects a folder that holds a bad recipe, which would refuse the mended one."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    right, wrong, message = MISFITS[case]
    recipe = parse_recipe(tiny_recipe.read_text().replace(right, wrong))
    with pytest.raises(UnlearnError, match=message):
        Run.create(tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()


def test_a_recipe_may_ask_for_an_audit(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copy_of(tiny_run, tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(stages, "audit_run", lambda run, shadows: asked.append(shadows))
    run_stages(run)
    assert asked == []
    (run.folder / "recipe.toml").write_text(run.recipe.text + "shadows = 8\n")
    run_stages(Run.open(run.folder))
    assert asked == [8]
    with pytest.raises(RecipeError, match="give at least 6 shadows, half of them with the rows, or 0 for no audit"):
        parse_recipe(run.recipe.text + "shadows = 5\n")


def test_an_edit_takes_audit_and_evidence_of_an_older_one_away(tiny_run: Path, tmp_path: Path) -> None:
    run = copy_of(tiny_run, tmp_path)
    for name in ("audit.json", "evidence.json"):
        (run.folder / name).write_text("{}")
    stages.write_edit(run, run.edit())
    assert [name for name in ("audit.json", "evidence.json", "report.html") if (run.folder / name).exists()] == []


@pytest.mark.parametrize("name", ["detection.json", "verdict.json", "timings.json"])
def test_a_damaged_file_of_the_run_is_named(name: str, tiny_run: Path, tmp_path: Path) -> None:
    run = copy_of(tiny_run, tmp_path)
    (run.folder / name).write_bytes((run.folder / name).read_bytes()[:20])
    (run.folder / "report.html").unlink()
    with pytest.raises(FolderError, match=f"{name}' is damaged"):
        run_stages(run)


def test_the_edited_checkpoint_names_its_parent_and_the_rows_hashed(tiny_run: Path) -> None:
    from unlearn.checkpoint import read_checkpoint, verify_checkpoint

    edited = read_checkpoint(tiny_run / "edited.safetensors")
    changes = Changes.load(tiny_run / "decisions.csv")
    assert edited.edit is not None
    assert {row["id_sha256"] for row in edited.edit["rows"]} == {
        hashlib.sha256(row.encode()).hexdigest() for row in changes.ids
    }
    assert all(check.ok for check in verify_checkpoint(tiny_run / "edited.safetensors"))
    assert not any(row.encode() in (tiny_run / "edited.safetensors").read_bytes() for row in changes.ids)
    assert set(load_file(tiny_run / "edited.safetensors")) == {"1.weight", "1.bias", "3.weight", "3.bias"}


def test_decisions_are_those_of_the_detector_and_never_look_at_the_truth(tiny_run: Path, tmp_path: Path) -> None:
    """Rejects suggestions or a cut-off that read ``truth``: without it the decisions are the same."""
    run = copy_of(tiny_run, tmp_path)
    blind = Run(run.folder, run.recipe)
    blind.__dict__["data"] = blind.data.with_truth(None)
    (run.folder / "decisions.csv").unlink()
    (run.folder / "detection.json").unlink()
    run_stages(blind, until="decide")
    assert digest(run.folder / "decisions.csv") == digest(tiny_run / "decisions.csv")
    assert json.loads((run.folder / "detection.json").read_text())["quality"] is None


def test_without_noise_nothing_is_found_and_the_run_ends_without_a_verdict(tiny_recipe: Path, tmp_path: Path) -> None:
    text = load_recipe(str(tiny_recipe)).text.replace("rate = 0.1", "rate = 0.0").replace("epochs = 5", "epochs = 15")
    run = Run.create(tmp_path / "clean", parse_recipe(text))
    run_stages(run)
    report = json.loads((run.folder / "report.json").read_text())
    assert len(Changes.load(run.folder / "decisions.csv").ids) < 0.015 * len(run.data)
    if report["edit"] is None:
        assert report["verdict"] is None


def test_a_missing_stage_and_a_missing_snapshot_are_named(tiny_run: Path, tmp_path: Path) -> None:
    run = copy_of(tiny_run, tmp_path)
    (run.folder / "edited.safetensors").unlink()
    with pytest.raises(FolderError, match="repair"):
        run.edit()
    for path in (run.folder / "snapshots").glob("step-*"):
        path.unlink()
    with pytest.raises(RecordError, match="missing"):
        run_stages(Run.open(run.folder), until="repair")
    assert not (run.folder / "edited.safetensors").exists()


def test_decisions_changed_after_the_edit_are_refused(tiny_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """Rejects a verdict that speaks of other rows than decisions.csv names."""
    run = copy_of(tiny_run, tmp_path)
    text = (run.folder / "decisions.csv").read_text().splitlines()
    (run.folder / "decisions.csv").write_text("\n".join(text[:-1]) + "\n")
    with pytest.raises(FolderError, match="--replace"):
        run_stages(Run.create(run.folder, load_recipe(str(tiny_recipe)), resume=True))
    with pytest.raises(FolderError, match="changed after the edit"):
        run.edit()


def test_rows_a_person_kept_stay_in_the_decisions_file(tiny_run: Path, tmp_path: Path) -> None:
    run = copy_of(tiny_run, tmp_path)
    for name in ("edited.safetensors",):
        (run.folder / name).unlink()
    lines = (run.folder / "decisions.csv").read_text().splitlines()
    first = lines[2].split(",")[0]
    (run.folder / "decisions.csv").write_text("\n".join([*lines[:2], f"{first},keep,", *lines[3:]]) + "\n")
    run_stages(Run.open(run.folder), until="repair")
    assert f"{first},keep," in (run.folder / "decisions.csv").read_text()


def test_a_count_is_the_users_option(tiny_recipe: Path, tmp_path: Path) -> None:
    text = load_recipe(str(tiny_recipe)).text.replace("[detect]", "[detect]\ncount = 7").replace('"gif", ', "")
    run = Run.create(tmp_path / "count", parse_recipe(text))
    run_stages(run, until="decide")
    assert len(Changes.load(run.folder / "decisions.csv").ids) == 7


def test_no_shipped_recipe_uses_a_fixed_count() -> None:
    from unlearn.recipe import shipped_recipes

    assert all(load_recipe(name).detect.count is None for name in shipped_recipes())
    assert {"digits-quick", "mnist5k-relabel", "mnist5k-remove", "mnist5k-cnn-relabel"} <= set(shipped_recipes())


def test_a_detector_without_a_cutoff_asks_for_a_count(tiny_recipe: Path, tmp_path: Path) -> None:
    text = load_recipe(str(tiny_recipe)).text.replace("[detect]", '[detect]\nmethod = "loss"')
    run = Run.create(tmp_path / "loss", parse_recipe(text))
    with pytest.raises(InputError, match="count"):
        run_stages(run, until="decide")
    assert not (run.folder / "decisions.csv").exists()


OWN_DECISIONS = """
[[repair.decisions]]
id = "digits-0006"
action = "remove"
[[repair.decisions]]
id = "digits-0007"
action = "relabel"
label = 1
[[repair.decisions]]
action = "remove-class"
label = 3
"""


def test_a_recipe_may_say_itself_what_is_changed(tmp_path: Path, tiny_recipe: Path) -> None:
    """Nothing is looked for then; and what can not be meant is refused before anything is trained."""
    text = tiny_recipe.read_text().replace('action = "relabel"', 'action = "decisions"').split("[verify]")[0]
    text = text.split("noise =")[0] + "[model]" + text.split("[model]")[1] + OWN_DECISIONS
    run = Run.create(tmp_path / "run", parse_recipe(text.replace("epochs = 5", "epochs = 2")))
    run_stages(run, until="repair")
    edit = run.edit()
    assert edit.changes.action == "mixed"
    assert edit.changes.removed[0] == "digits-0006"
    assert edit.changes.relabelled == {"digits-0007": 1}
    assert len(edit.changes.removed) == 1 + int((run.data.labels == 3).sum())
    assert not (run.folder / "detection.json").exists()
    run_stages(Run.open(run.folder), until="decide")
    for wrong, message in (("label = 3", "no row of digits is of class 3"), ('"digits-0006"', "'digits-9999'")):
        other = {"label = 3": "label = 33", '"digits-0006"': '"digits-9999"'}[wrong]
        with pytest.raises((InputError, RowNotFoundError), match=message):
            Run.create(tmp_path / "bad", parse_recipe(text.replace(wrong, other)))
        assert not (tmp_path / "bad").exists()
