"""Killed at every named point and started again, a story ends with the same ledger and files, byte for byte."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.requests.stories import STORIES, in_child, kill_self, remains, tell, write_recipe
from unlearn.requests import FAULT_POINTS, audit, audit_passes

POINTS_SEEN: set[str] = set()


@pytest.mark.parametrize("name", STORIES)
def test_killed_at_every_point_and_started_again(name, trained, tmp_path, keys, clock):
    changed, steps = STORIES[name]
    for copy in ("calm", "killed"):
        shutil.copytree(trained, tmp_path / copy)
        write_recipe(tmp_path / copy, changed)
    calm, killed = tmp_path / "calm", tmp_path / "killed"

    seen: list[str] = []
    tell(calm, keys, clock, steps, seen.append)
    assert audit_passes(audit(calm)), audit(calm)
    POINTS_SEEN.update(seen)

    marks = killed / "killed-at"

    def fault(point: str) -> None:
        before = marks.read_text().splitlines() if marks.exists() else []
        if point not in before:
            marks.write_text("\n".join([*before, point]))
            kill_self()

    restarts = 0
    while (status := in_child(lambda: tell(killed, keys, clock, steps, fault))) != 0:
        assert status == -9, status
        restarts += 1
        assert restarts <= len(FAULT_POINTS)
    assert set(marks.read_text().splitlines()) == set(seen)
    assert restarts == len(set(seen))

    left, expected = remains(killed, keys), remains(calm, keys)
    assert left["events"] == expected["events"]
    assert left.keys() == expected.keys()
    assert [path for path in left if left[path] != expected[path]] == []
    assert audit_passes(audit(killed)), audit(killed)


def test_every_named_point_is_in_a_story():
    """Runs after the stories; a point that no story reaches is a point that no test kills at."""
    if POINTS_SEEN:
        assert POINTS_SEEN | {"key given up"} == set(FAULT_POINTS)
