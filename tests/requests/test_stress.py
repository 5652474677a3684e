"""The benchmarks of requests, reduced: the same assertions on small cases."""

from __future__ import annotations

import math

from benchmarks.requests.concurrency import crowd
from benchmarks.requests.sequence import latency, series
from benchmarks.requests.stories import RECIPE, STORIES, Clock, own_copy, tell
from benchmarks.requests.tamper import missed_in_run
from unlearn.requests import audit, audit_passes
from unlearn.requests.desk import nothing


def test_several_processes_submit_while_two_process():
    found = crowd(submitters=3, each=8, workers=2)
    total = 3 * 8
    for name in ("requests in the ledger", "requests released", "rows removed"):
        assert found[name] == total, found
    assert found["processes that failed"] == 0
    assert found["audit passes"] == 1


def test_requests_one_after_another_stay_within_the_spread_of_retrains_and_share_curvature():
    text = RECIPE.replace("references = 2", "references = 0").replace("drift_limit = 0.5", "drift_limit = 1e9")
    lines, found = series(4, 2, references=3, recipe=text)
    assert [line["requests"] for line in lines] == [2, 4]
    for line in lines:
        assert line["phi error / spread"] <= 1.5 or line["retrains"] > 0
    assert [one.cached for one in found] == [False, True, True, True]
    fitted, cached = latency(found).values()
    assert fitted[1] > 0
    assert cached[1] == 0
    assert all(math.isfinite(value) and value > 0 for value in cached[2:])


def test_single_bytes_changed_anywhere_are_found_and_named(trained, tmp_path, keys):
    changed, steps = STORIES["held, refused, retrained, held, approved"]
    folder = own_copy(trained, tmp_path / "run", keys, changed)
    tell(folder, Clock(), steps, nothing)
    found = missed_in_run(folder, most=40, small=1000)
    kinds = " ".join(found)
    for what in ("ledger", "original", "pointer", "checkpoint", "curvature", "verdict", "certificate", "heads"):
        assert what in kinds
    assert {kind: row for kind, row in found.items() if row[2]} == {}
    assert audit_passes(audit(folder))  # every byte is back
