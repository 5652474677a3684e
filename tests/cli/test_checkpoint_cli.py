"""``unlearn checkpoint``: exit codes, tables of 80 columns, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from unlearn.checkpoint import read_checkpoint, save_checkpoint
from unlearn.cli.checkpoint import checkpoint
from unlearn.errors import CheckpointError, UnlearnError


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(checkpoint, [str(a) for a in arguments], env=env)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "original.safetensors"
    save_checkpoint(path, nn.Linear(3, 2), recipe=("mnist5k", "seed = 0\n"), record={"steps": 480})
    return path


@pytest.fixture
def edited(original: Path) -> Path:
    path = original.with_name("edited.safetensors")
    save_checkpoint(path, nn.Linear(3, 2), parent=original, rows=["row-a", "row-b"], method="newton")
    return path


def test_nothing_heavy_is_imported_before_a_command_runs() -> None:
    # rejects: two seconds of torch for `unlearn checkpoint --help`
    code = "import sys, unlearn.cli.checkpoint; sys.exit('torch' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", ["show", "diff", "verify", "rollback", "import"])
def test_each_help_has_an_example(command: str) -> None:
    # rejects: a command explained only by its options, or an example folded into one paragraph
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"\n    unlearn checkpoint {command} " in result.output
    assert "--json" in result.output


def test_show_says_where_weights_come_from_without_naming_rows(original: Path, edited: Path) -> None:
    # rejects: ids in the clear, or provenance that only JSON shows
    output = run("show", edited).output
    for word in ("edited", "original.safetensors", "newton", "2 remove", "weight", "2 x 3", "F32"):
        assert word in output
    assert "row-a" not in output
    assert "mnist5k" in run("show", original).output


def test_show_reads_a_foreign_file_and_says_so(tmp_path: Path) -> None:
    # rejects: refusing to look at what another program wrote
    import safetensors.torch

    safetensors.torch.save_file({"[red]w": torch.ones(2)}, tmp_path / "f.safetensors")
    result = run("show", tmp_path / "f.safetensors")
    assert result.exit_code == 0
    assert "foreign" in result.output
    assert "[red]w" in result.output  # rejects: a tensor's name read as rich markup
    assert json.loads(run("show", tmp_path / "f.safetensors", "--json").output)["metadata"] is None


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_tables_keep_to_80_columns(original: Path, edited: Path, columns: str) -> None:
    # rejects: lines that wrap in a plain terminal
    for arguments in (["show", edited], ["diff", original, edited], ["verify", edited]):
        lines = run(*arguments, env={"COLUMNS": columns}).output.splitlines()
        assert lines
        assert max(map(len, lines)) <= min(80, int(columns))


def test_json_is_whole_and_agrees_with_the_file(original: Path, edited: Path) -> None:
    # rejects: JSON with a table or a notice mixed in
    shown = json.loads(run("show", edited, "--json").output)
    assert shown["metadata"] == read_checkpoint(edited).metadata
    assert shown["tensors"]["bias"] == {"dtype": "F32", "shape": [2]}
    differ = json.loads(run("diff", original, edited, "--json").output)
    assert differ["same_weights"] is False
    assert [change["name"] for change in differ["tensors"]] == ["bias", "weight"]
    assert differ["metadata"]["kind"] == ["original", "edited"]
    checks = json.loads(run("verify", edited, "--json").output)
    assert checks["ok"] is True
    assert {check["name"] for check in checks["checks"]} == {
        "header",
        "metadata",
        "tensors",
        "finite",
        "recipe",
        "parent",
    }


def test_diff_ends_with_0_whether_or_not_files_differ(original: Path, edited: Path) -> None:
    # rejects: exit code 1, which means that a check said no
    assert (run("diff", original, edited).exit_code, run("diff", original, original).exit_code) == (0, 0)
    assert "The weights differ." in run("diff", original, edited).output
    assert "the same bit for bit" in run("diff", original, original).output


def test_verify_ends_with_1_when_a_check_says_no(edited: Path) -> None:
    # rejects: a damaged file that a script can not notice; an error where there is an answer
    assert run("verify", edited).exit_code == 0
    whole = edited.read_bytes()
    edited.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    result = run("verify", edited)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "NO" in result.output
    broken = run("verify", edited, "--json")
    assert (broken.exit_code, json.loads(broken.output)["ok"]) == (1, False)


def test_verify_without_standalone_mode_returns_1(edited: Path) -> None:
    # rejects: a code that is lost when the main group runs the commands itself
    edited.write_bytes(edited.read_bytes()[:-1])
    assert checkpoint.main(["verify", str(edited)], standalone_mode=False) == 1


def test_bad_input_reaches_the_main_group_as_a_typed_error(tmp_path: Path) -> None:
    # rejects: errors printed here, with an exit code of their own
    for command in ("show", "verify", "rollback"):
        with pytest.raises(CheckpointError, match="absent"):
            checkpoint.main([command, str(tmp_path / "absent")], standalone_mode=False)


def test_rollback_restores_and_tells_where_the_edit_went(original: Path, edited: Path) -> None:
    # rejects: a rollback that does not say what became of the edit
    result = run("rollback", edited)
    assert result.exit_code == 0
    assert edited.read_bytes() == original.read_bytes()
    assert "edited.rolled-back.safetensors" in result.output
    assert isinstance(run("rollback", edited).exception, UnlearnError)


def test_rollback_to_another_file(original: Path, edited: Path, tmp_path: Path) -> None:
    # rejects: --out that also replaces the edited file
    edit = edited.read_bytes()
    moved = original.rename(tmp_path / "moved.safetensors")
    result = run("rollback", edited, "--out", tmp_path / "back", "--parent", moved, "--json")
    done = json.loads(result.output)
    assert (done["kept"], done["restored"]) == (None, str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == moved.read_bytes()
    assert edited.read_bytes() == edit


def test_import_writes_down_the_model(tmp_path: Path) -> None:
    # rejects: options kept as strings, with which the model can not be built
    from unlearn.checkpoint import load_weights
    from unlearn.models import build_model

    model = build_model("mlp", inputs=4, classes=3, widths=[5])
    torch.save(model.state_dict(), tmp_path / "a.pt")
    options = ["--model", "mlp", "--option", "inputs=4", "--option", "classes=3", "--option", "widths=[5]"]
    result = run("import", tmp_path / "a.pt", tmp_path / "a.safetensors", *options)
    assert result.exit_code == 0
    back = load_weights(None, read_checkpoint(tmp_path / "a.safetensors"))
    assert all(torch.equal(back.state_dict()[k], v) for k, v in model.state_dict().items())


def test_import_refuses_a_model_that_the_tensors_do_not_fit(tmp_path: Path) -> None:
    # rejects: a description written down unread, with which the checkpoint can never be loaded
    from unlearn.models import build_model

    torch.save(build_model("mlp", inputs=4, classes=3, widths=[5]).state_dict(), tmp_path / "a.pt")
    for name, message in (("mlp", "does not fit the model"), ("mpl", "did you mean 'mlp'")):
        words = ["import", str(tmp_path / "a.pt"), str(tmp_path / "b"), "--model", name, "--option", "inputs=4"]
        with pytest.raises(UnlearnError, match=message):
            checkpoint.main(words, standalone_mode=False)
    assert not (tmp_path / "b").exists()


def test_import_refuses_options_that_say_nothing(tmp_path: Path) -> None:
    # rejects: an option without '=', or without the model that it describes
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pt")
    for options in (["--option", "a=1"], ["--model", "mlp", "--option", "a"]):
        with pytest.raises(click.UsageError):
            checkpoint.main(["import", str(tmp_path / "a.pt"), str(tmp_path / "b"), *options], standalone_mode=False)
    assert not (tmp_path / "b").exists()
