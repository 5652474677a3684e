"""Decisions on the disk: nothing that was told to be saved is lost, nothing damaged is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unlearn.errors import FolderError
from unlearn.review import Journal

SUBJECT = "rows 1"


def written(path: Path, count: int = 3) -> list[dict[str, int]]:
    with Journal(path, SUBJECT) as journal:
        for k in range(count):
            journal.append({"k": k})
        return journal.entries


def read(path: Path) -> list[dict[str, int]]:
    with Journal(path, SUBJECT) as journal:
        return journal.entries


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    assert written(tmp_path / "j") == read(tmp_path / "j") == [{"k": 0}, {"k": 1}, {"k": 2}]


def test_a_file_cut_anywhere_gives_its_whole_lines_and_takes_more(tmp_path: Path) -> None:
    """Rejects a reader that trusts a torn line, and a writer that goes on behind it."""
    path = tmp_path / "j"
    written(path)
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    for size in range(head, len(whole)):
        path.write_bytes(whole[:size])
        entries = whole[head:size].count(b"\n")
        with Journal(path, SUBJECT) as journal:
            assert journal.entries == [{"k": k} for k in range(entries)]
            journal.append({"k": 9})
        assert read(path) == [*({"k": k} for k in range(entries)), {"k": 9}]


@pytest.mark.parametrize("damage", [b"{not json}", b"[1]", b"\xff\xfe", b""])
def test_damage_inside_is_named_with_its_line(tmp_path: Path, damage: bytes) -> None:
    written(tmp_path / "j")
    lines = (tmp_path / "j").read_bytes().split(b"\n")
    (tmp_path / "j").write_bytes(b"\n".join([*lines[:2], damage, *lines[2:]]))
    with pytest.raises(FolderError, match="is damaged in line 3"):
        read(tmp_path / "j")


def test_another_version_or_subject_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "j")
    with pytest.raises(FolderError, match="begun on other rows"):
        Journal(tmp_path / "j", "rows 2")
    (tmp_path / "j").write_text(json.dumps({"format": 2, "subject": SUBJECT}) + "\n")
    with pytest.raises(FolderError, match="format 2; this release reads 1"):
        read(tmp_path / "j")
    (tmp_path / "j").write_text("")
    with pytest.raises(FolderError, match="is damaged in line 1"):
        read(tmp_path / "j")


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects an entry that counts in memory, or half of it in the file, though the disk did not take it."""
    with Journal(tmp_path / "j", SUBJECT) as journal:
        journal.append({"k": 0})
        before = (tmp_path / "j").read_bytes()

        def full(file: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(FolderError, match=r"No space left on device.*not saved"):
                journal.append({"k": 1})
        assert journal.entries == [{"k": 0}]
        assert (tmp_path / "j").read_bytes() == before
        journal.append({"k": 2})
    assert read(tmp_path / "j") == [{"k": 0}, {"k": 2}]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = "import sys, pathlib; from unlearn.review import Journal; Journal(pathlib.Path(sys.argv[1]), sys.argv[2])"
    command = [sys.executable, "-c", code, str(tmp_path / "j"), SUBJECT]
    with Journal(tmp_path / "j", SUBJECT):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "is in use by another `unlearn review`" in second.stderr
    assert subprocess.run(command, check=False).returncode == 0
