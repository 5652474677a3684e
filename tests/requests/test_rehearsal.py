"""The rehearsal recipe, trained shorter: twelve letters, and an audit that passes."""

from __future__ import annotations

import json

import pytest

from unlearn.errors import FolderError, InputError
from unlearn.pipeline import Run, run_stages
from unlearn.recipe import load_recipe, parse_recipe
from unlearn.requests import audit_passes, make_keys, rehearse, verify_certificate

SHORTER = {"epochs = 15": "epochs = 2", "references = 5": "references = 0", "widths = [64]": "widths = [16]"}


@pytest.fixture
def reduced(tmp_path):
    """The recipe with two epochs and no retrains: every edit is held, and the recipe's words decide."""
    text = load_recipe("digits-deletion-requests").text
    for old, new in SHORTER.items():
        assert old in text
        text = text.replace(old, new)
    run = Run.create(tmp_path / "run", parse_recipe(text))
    run_stages(run, until="train")
    return run


def test_twelve_letters_to_a_passing_audit(reduced, tmp_path):
    told = []
    keys = make_keys(tmp_path / "keys")
    done = rehearse(reduced, keys, tell=lambda day, what: told.append((day, what)))
    requests, batches = done.state.requests, done.state.batches
    assert sum("comes in" in what for _, what in told) == 12
    assert len(requests) == 11
    assert [request.name for request in requests.values() if request.times == 2] == ["R-0003"]
    assert [request.name for request in requests.values() if not request.rows] == ["R-0004"]
    assert requests[4].status == "not held"
    assert {requests[k].status for k in requests if k != 4} == {"released"}
    assert [batch.stage for batch in batches.values()].count("refused") == 1
    retrains = [batch for batch in batches.values() if batch.method == "retrain"]
    assert len(retrains) == 1
    refused = next(batch for batch in batches.values() if batch.stage == "refused")
    assert set(refused.requests) <= set(retrains[0].requests)
    assert {request.action for request in requests.values()} == {"remove", "relabel"}
    assert [check.ok for check in done.checks] == [True] * 7
    assert audit_passes(list(done.checks))
    issued = sorted((reduced.folder / "requests" / "certificates").glob("*.json"))
    assert {json.loads(path.read_text())["request"] for path in issued} == {item.name for item in requests.values()}
    for path in issued:
        assert not [check for check in verify_certificate(path, public_key=keys.public) if check.ok is False], path
    with pytest.raises(FolderError, match="has a ledger already; rehearse in a new run"):
        rehearse(reduced, keys)


def test_a_recipe_without_letters_is_refused(trained, keys):
    with pytest.raises(InputError, match=r"has no \[requests.rehearsal\]; take one that has"):
        rehearse(Run.open(trained), keys)
