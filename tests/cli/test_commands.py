"""Commands: what they print, their exit codes, and bad input in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from unlearn.cli.main import cli

Unlearn = Callable[..., tuple[int, str, str]]


def commands() -> dict[str, object]:
    found: dict[str, object] = {}
    for name, command in cli.commands.items():
        found[name] = command
        for child, inner in getattr(command, "commands", {}).items():
            found[f"{name} {child}"] = inner
    return found


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_with_an_example_within_80_columns(unlearn: Unlearn, name: str) -> None:
    code, out, _ = unlearn(*name.split(), "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    if not hasattr(commands()[name], "commands"):
        assert "unlearn " + name in out.split("Example", 1)[1]


def test_recipe_list_and_show(unlearn: Unlearn) -> None:
    code, out, _ = unlearn("recipe", "list")
    assert code == 0
    assert "mnist5k-relabel" in out
    code, out, _ = unlearn("recipe", "show", "digits-quick")
    assert 'source = "digits"' in out
    assert "digits-quick" in json.loads(unlearn("recipe", "list", "--json")[1])


def test_the_whole_recipe_prints_a_verdict_and_strict_exits_with_it(
    unlearn: Unlearn, tiny_recipe: Path, run_copy: Path
) -> None:
    code, out, _ = unlearn("recipe", "run", tiny_recipe, "--out", run_copy, "--resume")
    assert code == 0
    assert "verdict: " in out
    assert max(len(line) for line in out.splitlines() if not line.startswith("report: ")) <= 80
    verdict = json.loads((run_copy / "verdict.json").read_text())
    code, _, _ = unlearn("recipe", "run", tiny_recipe, "--out", run_copy, "--resume", "--strict")
    assert code == {"pass": 0, "fail": 1, "undecided": 3}[verdict["outcome"]]
    code, out, _ = unlearn("recipe", "run", tiny_recipe, "--out", run_copy, "--resume", "--json")
    assert json.loads(out)["verdict"]["outcome"] == verdict["outcome"]


def test_stage_by_stage(unlearn: Unlearn, tiny_recipe: Path, tiny_run: Path, tmp_path: Path) -> None:
    """The single commands write the same bytes as the whole recipe."""
    folder = tmp_path / "stages"
    code, out, _ = unlearn("train", tiny_recipe, "--out", folder)
    assert code == 0
    assert "test accuracy" in out
    code, out, _ = unlearn("detect", folder, "--top", 3)
    assert code == 0
    assert "suggested" in out
    assert (folder / "decisions.csv").read_bytes() == (tiny_run / "decisions.csv").read_bytes()
    code, out, _ = unlearn("repair", "apply", folder, folder / "decisions.csv", "--json")
    assert code == 0
    assert json.loads(out)["method"] == "rewind-compressed-replay"
    assert (folder / "edited.safetensors").read_bytes() == (tiny_run / "edited.safetensors").read_bytes()
    code, out, err = unlearn("verify", folder, "--references", 2, "--processes", 1, "--json")
    assert "references: 3 retrains of 5 training epochs, 15 in all" in err
    outcome = json.loads(out)["outcome"]
    assert code == {"pass": 0, "fail": 1, "undecided": 3}[outcome]


def test_detect_another_method(unlearn: Unlearn, run_copy: Path) -> None:
    (run_copy / "scores-loss.csv").unlink()
    code, out, _ = unlearn("detect", run_copy, "--method", "loss", "--json")
    assert code == 0
    assert len(json.loads(out)["top"]) == 20
    assert (run_copy / "scores-loss.csv").exists()


def test_repair_by_hand_keeps_the_run_consistent(unlearn: Unlearn, run_copy: Path) -> None:
    """Rejects an edit beside decisions, verdict or report of another one."""
    ids = [line.split(",")[0] for line in (run_copy / "decisions.csv").read_text().splitlines()[2:5]]
    code, _, err = unlearn("repair", "remove", run_copy, *ids)
    assert code == 2
    assert "--replace" in err
    code, out, _ = unlearn("repair", "remove", run_copy, *ids, "--replace", "--budget", 0)
    assert code == 0
    assert "remove of 3 rows by unrolled" in out
    assert not (run_copy / "verdict.json").exists()
    assert not (run_copy / "report.html").exists()
    assert {line.split(",")[1] for line in (run_copy / "decisions.csv").read_text().splitlines()[2:]} == {"remove"}
    code, out, _ = unlearn("verify", run_copy, "--references", 0)
    assert code == 3
    assert "UNDECIDED" in out


def test_a_new_verdict_is_in_the_report(unlearn: Unlearn, run_copy: Path) -> None:
    """Rejects a report that shows another verdict than verdict.json, and evidence that looks like one."""
    before = json.loads((run_copy / "report.json").read_text())
    assert before["verdict"]["table"]
    assert before["evidence"] is None
    code, out, _ = unlearn("verify", run_copy, "--references", 0)
    assert code == 3
    assert "evidence, never a verdict: " in out
    assert out.endswith(f"report: {run_copy / 'report.html'}\n")
    after = json.loads((run_copy / "report.json").read_text())
    assert after["verdict"]["reason"] == json.loads((run_copy / "verdict.json").read_text())["reason"]
    assert after["verdict"]["table"] == []
    assert (before["verification"]["references"], after["verification"]["references"]) == (2, 0)
    assert after["evidence"]["verdict"] is None
    assert "Evidence, never a verdict" in (run_copy / "report.html").read_text()


def test_one_changed_row_is_too_few_for_evidence(unlearn: Unlearn, run_copy: Path) -> None:
    row = (run_copy / "decisions.csv").read_text().splitlines()[2].split(",")[0]
    assert unlearn("repair", "remove", run_copy, row, "--replace", "--budget", 0)[0] == 0
    code, out, err = unlearn("verify", run_copy, "--references", 0)
    assert (code, "UNDECIDED" in out, err) == (3, True, "references: 1 retrain of 5 training epochs, 5 in all\n")
    assert not (run_copy / "evidence.json").exists()


def test_retrains_of_ones_own_are_the_references(unlearn: Unlearn, run_copy: Path) -> None:
    own = sorted((run_copy / "references").glob("seed-*.safetensors"))
    words = [word for path in own for word in ("--retrained", path)]
    code, out, _ = unlearn("verify", run_copy, "--json")
    code_of_own, out_of_own, err = unlearn("verify", run_copy, *words, "--json")
    assert (code, json.loads(out)["table"]) == (code_of_own, json.loads(out_of_own)["table"])
    assert "retrains" not in err
    assert "no coupled retrain" in json.loads(out_of_own)["notes"][0]
    assert unlearn("verify", run_copy, *words, "--references", 3)[0] == 2
    assert unlearn("verify", run_copy, "--processes", "many")[0] == 2
    shutil.rmtree(run_copy / "references")
    code, _, err = unlearn("verify", run_copy, "--groups", run_copy / "none.csv")
    assert (code, err.splitlines()[0][:16]) == (2, "error: can not r")  # told before anything is trained
    assert not (run_copy / "references").exists()


def test_any_models_are_held_against_each_other(unlearn: Unlearn, tiny_run: Path, tmp_path: Path) -> None:
    edited, own = tiny_run / "edited.safetensors", sorted((tiny_run / "references").glob("seed-*.safetensors"))
    table, rows = tmp_path / "rows.csv", tiny_run / "decisions.csv"
    words = ["verify", edited, "--data", "digits", "--split", "train", "--rows", rows, "--against", *own]
    code, out, _ = unlearn(*words, "--json", "--table", table)
    verdict = json.loads(out)
    assert code == {"pass": 0, "fail": 1, "undecided": 3}[verdict["outcome"]]
    count = len(rows.read_text().splitlines()) - 2
    assert [(row["group"], row["rows"], row["references"]) for row in verdict["table"]] == [("given", count, 2)]
    assert len(table.read_text().splitlines()) == 2 + count
    code, out, _ = unlearn("verify", edited, "--against", own[0], "--data", "digits")
    assert code == 3
    assert "UNDECIDED. one reference has no spread" in out
    assert max(map(len, out.splitlines())) <= 80
    groups = tmp_path / "groups.csv"
    groups.write_text("id,group\ndigits-0000,nobody's\n")
    foreign = ["verify", *own, "--against", edited, "--data", "digits"]
    assert "does not say how to build its model" in unlearn(*foreign)[2]
    model = ["--model", "mlp", "--option", "inputs=64", "--option", "classes=10", "--option", "widths=[32]"]
    assert unlearn(*foreign, *model)[0] in (0, 1, 3)
    for wrong, message in (
        ([edited, "--against", own[0]], "--against needs --data"),
        ([edited, "--against", own[0], "--data", "digit"], "did you mean 'digits'"),
        ([edited, "--against", own[0], "--data", "digits", "--references", 3], "leave out --references"),
        ([tiny_run, "--data", "digits"], "only with --against"),
        ([tiny_run, tiny_run], "only with --against"),
        ([tiny_run, "--groups", tmp_path / "no.csv"], "can not read rows"),
    ):
        code, _, err = unlearn("verify", *wrong)
        assert code == 2
        assert message in err


def test_groups_of_a_run_and_its_rows(unlearn: Unlearn, run_copy: Path, tmp_path: Path) -> None:
    from unlearn.pipeline import Run

    test = Run.open(run_copy).test
    groups = tmp_path / "groups.csv"
    groups.write_text("id,group\n" + "".join(f"{row},scanner B\n" for row in test.ids[:40]))
    code, out, _ = unlearn("verify", run_copy, "--groups", groups, "--json")
    found = json.loads(out)
    assert code == {"pass": 0, "fail": 1, "undecided": 3}[found["outcome"]]
    assert [row["rows"] for row in found["subgroups"] if row["part"] == "scanner B"] == [40]
    for group, count in [(row["group"], row["rows"]) for row in found["table"]]:
        assert len((run_copy / f"rows-{group}.csv").read_text().splitlines()) == 2 + count


BAD = {
    "unknown recipe": (["recipe", "run", "mnist5k-relable"], "did you mean 'mnist5k-relabel'"),
    "unknown command": (["recipe", "rum"], "rum"),
    "no run": (["detect", "NOWHERE"], "no run"),
    "unknown method": (["detect", "RUN", "--method", "los"], "did you mean 'loss'"),
    "unknown id": (["repair", "remove", "RUN", "nobody", "--replace"], "'nobody'"),
    "id twice": (["repair", "remove", "RUN", "ID", "ID", "--replace"], "twice"),
    "label outside": (["repair", "relabel", "RUN", "ID=10", "--replace"], "outside the classes 0..9"),
    "no label": (["repair", "relabel", "RUN", "ID", "--replace"], "ID=LABEL"),
    "present label": (["repair", "relabel", "RUN", "ID=GIVEN", "--replace"], "already"),
    "a label that is no number": (["repair", "relabel", "RUN", "ID=²", "--replace"], "ID=LABEL"),
    "infinite budget": (["repair", "remove", "RUN", "ID", "--replace", "--budget", "inf"], "finite number of training"),
    "no decisions file": (["repair", "apply", "RUN", "nothing.csv", "--replace"], "nothing.csv"),
    "class not there": (["repair", "remove-class", "RUN", "10", "--replace"], "no row of digits is of class 10"),
    "class no number": (["repair", "remove-class", "RUN", "three", "--replace"], "'three' is not a valid integer"),
    "negative damping": (["repair", "remove", "RUN", "ID", "--replace", "--damping", "-1"], "damping"),
    "a file as folder": (["recipe", "run", "RECIPE", "--out", "RECIPE"], "choose"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_with_exit_2_and_changes_nothing(
    unlearn: Unlearn, case: str, tiny_recipe: Path, tiny_run: Path, tmp_path: Path
) -> None:
    from unlearn.pipeline import Run

    rows = Run.open(tiny_run).data
    names = {"RUN": str(tiny_run), "RECIPE": str(tiny_recipe), "NOWHERE": str(tmp_path / "no")}
    words, message = BAD[case]
    given = str(int(rows.labels[0]))
    filled = [names.get(word, word.replace("ID", rows.ids[0]).replace("GIVEN", given)) for word in words]
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    code, out, err = unlearn(*filled)
    assert code == 2
    assert message in err
    assert "Traceback" not in err + out
    assert len([line for line in err.splitlines() if line.startswith(("error:", "Error:"))]) == 1
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before


def test_removing_a_whole_class_is_refused_unless_asked(unlearn: Unlearn, run_copy: Path) -> None:
    from unlearn.pipeline import Run

    rows = Run.open(run_copy).data
    ids = [row for row, label in zip(rows.ids, rows.labels.tolist(), strict=True) if label == 0]
    code, _, err = unlearn("repair", "remove", run_copy, *ids, "--replace")
    assert code == 2
    assert "class 0" in err
    code, _, _ = unlearn("repair", "remove", run_copy, *ids, "--replace", "--allow-empty-class", "--budget", 0)
    assert code == 0


def test_a_class_is_removed_and_its_output_cut_on_request(unlearn: Unlearn, run_copy: Path) -> None:
    """Rejects a cut model in the place of the one that retrained models are compared with."""
    from unlearn.pipeline import Run
    from unlearn.training import load_checkpoint

    code, out, _ = unlearn("repair", "remove-class", run_copy, 3, "--replace", "--budget", 0, "--drop-output")
    assert code == 0
    assert "remove-class of" in out
    assert "edited-cut.safetensors" in out
    run = Run.open(run_copy)
    edit = run.edit()
    assert edit.changes.removed_classes == (3,)
    assert {row for row, label in zip(run.data.ids, run.data.labels.tolist(), strict=True) if label == 3} == set(
        edit.changes.removed
    )
    cut, _ = load_checkpoint(run_copy / "edited-cut.safetensors")
    whole, _ = load_checkpoint(run_copy / "edited.safetensors")
    kept = [label for label in range(10) if label != 3]
    assert (cut[-1].weight == whole[-1].weight[kept]).all()
    assert unlearn("checkpoint", "verify", run_copy / "edited-cut.safetensors")[0] == 0
    assert unlearn("verify", run_copy, "--references", 0)[0] == 3
    code, _, _ = unlearn("repair", "remove-class", run_copy, 4, "--replace", "--budget", 0)
    assert code == 0
    assert not (run_copy / "edited-cut.safetensors").exists()


def test_mixed_decisions_are_one_edit(unlearn: Unlearn, run_copy: Path) -> None:
    from unlearn.pipeline import Run

    rows = Run.open(run_copy).data
    ids = [row for row, label in zip(rows.ids, rows.labels.tolist(), strict=True) if label not in (3, 5)][:2]
    text = f"# unlearn decisions 1\nid,action,label\n{ids[0]},remove,\n{ids[1]},relabel,5\n,remove-class,3\n"
    (run_copy / "mine.csv").write_text(text)
    code, out, _ = unlearn("repair", "apply", run_copy, run_copy / "mine.csv", "--replace", "--budget", 0, "--json")
    assert code == 0
    facts = json.loads(out)
    threes = int((rows.labels == 3).sum())
    assert (facts["action"], facts["removed"], facts["relabelled"]) == ("mixed", threes + 1, 1)
    assert facts["removed_classes"] == [3]
    assert Run.open(run_copy).edit().changes.relabelled == {ids[1]: 5}


def test_damaged_and_foreign_files_are_named(unlearn: Unlearn, run_copy: Path, tiny_run: Path) -> None:
    data = bytearray((run_copy / "original.safetensors").read_bytes())
    data[-5] ^= 1
    (run_copy / "original.safetensors").write_bytes(bytes(data))
    code, _, err = unlearn("repair", "apply", run_copy, run_copy / "decisions.csv", "--replace")
    assert code == 2
    assert "original.safetensors" in err
    shutil.copy(tiny_run / "edited.safetensors", run_copy / "original.safetensors")
    (run_copy / "scores-gif.csv").unlink()
    code, _, err = unlearn("detect", run_copy, "--method", "gif")
    assert code == 2
    assert "curvature belongs to" in err


def test_a_device_that_is_not_there_is_bad_input(unlearn: Unlearn, run_copy: Path) -> None:
    code, _, err = unlearn("repair", "apply", run_copy, run_copy / "decisions.csv", "--replace", "--device", "cuda:9")
    assert code == 2
    assert "cuda:9" in err


def test_an_interrupt_exits_130(unlearn: Unlearn, run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unlearn import pipeline

    monkeypatch.setattr(pipeline.Run, "open", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert unlearn("detect", run_copy)[0] == 130
    monkeypatch.setattr(pipeline.Run, "open", lambda *a, **k: 1 / 0)
    code, _, err = unlearn("detect", run_copy)
    assert code == 4
    assert "internal error" in err
