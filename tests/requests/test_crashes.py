"""Killed at every named point and started again, a story ends with the same ledger and files, byte for byte."""

from __future__ import annotations

import pytest

from benchmarks.requests.stories import STORIES, in_child, kill_self, own_copy, remains, tell
from unlearn.requests import FAULT_POINTS, audit, audit_passes

POINTS_SEEN: set[str] = set()


@pytest.mark.parametrize("name", STORIES)
def test_killed_at_every_point_and_started_again(name, trained, tmp_path, keys, clock):
    changed, steps = STORIES[name]
    calm, killed = (own_copy(trained, tmp_path / copy, keys, changed) for copy in ("calm", "killed"))

    seen: list[str] = []
    tell(calm, clock, steps, seen.append)
    assert audit_passes(audit(calm)), audit(calm)
    POINTS_SEEN.update(seen)

    marks = killed / "killed-at"

    def fault(point: str) -> None:
        before = marks.read_text().splitlines() if marks.exists() else []
        if point not in before:
            marks.write_text("\n".join([*before, point]))
            kill_self()

    restarts = 0
    while (status := in_child(lambda: tell(killed, clock, steps, fault))) != 0:
        assert status == -9, status
        restarts += 1
        assert restarts <= len(FAULT_POINTS)
    assert set(marks.read_text().splitlines()) == set(seen)
    assert restarts == len(set(seen))

    left, expected = remains(killed), remains(calm)
    assert left["events"] == expected["events"]
    assert left.keys() == expected.keys()
    assert [path for path in left if left[path] != expected[path]] == []
    assert audit_passes(audit(killed)), audit(killed)


def test_every_named_point_is_in_a_story():
    """Runs after the stories; a point that no story reaches is a point that no test kills at."""
    if POINTS_SEEN:
        assert set(FAULT_POINTS) == POINTS_SEEN
