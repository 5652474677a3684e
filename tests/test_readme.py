"""README says what it must, and every figure in it stands in a committed output."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_it_opens_with_the_two_commands() -> None:
    commands = [line for line in README.splitlines() if line.startswith("pip install")]
    assert commands[:2] == [
        "pip install -e '.[demo]' && unlearn recipe run mnist5k-relabel",
        "pip install -e '.[demo,test]' && pytest",
    ]
    assert README.index("unlearn recipe run") < README.index("## What you see") < README.index("## What it can not do")


def test_ci_runs_exactly_the_readmes_test_command() -> None:
    assert "grep -m1 \"^pip install -e '.\\[demo,test\\]' && pytest$\" README.md" in (ROOT / ".ci/run").read_text()


def test_every_table_row_is_a_line_of_a_committed_output() -> None:
    """Rejects a figure that was typed by hand or went stale."""
    printed = "".join(path.read_text() for path in (ROOT / "benchmarks/results").glob("*.md"))
    rows = [line for line in README.splitlines() if line.startswith("| ") and not line.startswith("| model")]
    assert len(rows) > 5
    assert [row for row in rows if row not in printed] == []


def test_every_result_starts_with_the_command_that_prints_it() -> None:
    for path in (ROOT / "benchmarks/results").glob("*.md"):
        command = re.match(r"# python -m benchmarks\.(\w+)", path.read_text())
        assert command, path
        places = f"{command[1]}.py", f"{command[1]}/__main__.py"
        assert any((ROOT / "benchmarks" / place).exists() for place in places), path


def test_the_reference_checkpoint_is_still_read() -> None:
    """Rejects a change of the file format without a new version: older files are read or refused by name."""
    import unlearn
    from unlearn.checkpoint import verify_checkpoint

    path = ROOT / "checkpoints/digits-quick-reference.safetensors"
    assert all(check.ok is not False for check in verify_checkpoint(path))
    model, record = unlearn.load_checkpoint(path)
    assert record is not None
    assert record.steps == 345
    assert sum(p.numel() for p in model.parameters()) == 4810
