"""Curvature kept between requests: fitted once, in force until it is stale, altered or purged."""

from __future__ import annotations

import pytest
import torch

from benchmarks.requests.stories import write_recipe
from unlearn.requests import Desk, approve, audit, audit_passes, process, purge, rollback, submit
from unlearn.requests.answer import model_after

WIDE = {"references = 2": "references = 0", "drift_limit = 0.5": "drift_limit = 1e9"}


@pytest.fixture
def desk(folder, keys, clock):
    write_recipe(folder, WIDE)
    with Desk.open(folder, keys=keys, who="dpo", clock=clock, create=True) as opened:
        yield opened


def answered(desk, number, rows):
    """Answer one more request; return what the ledger says of its edit."""
    submit(desk, ids=rows)
    process(desk)
    return approve(desk, number, reason="seen").batches[number].edited


def cost(facts):
    return facts["answer"]["cost"]["factors"]


def test_the_second_request_fits_nothing_and_lands_where_its_own_factors_would(desk, folder, keys, clock, tmp_path):
    rows = desk.run.data.ids
    first, second = answered(desk, 1, rows[:3]), answered(desk, 2, rows[5:7])
    assert cost(first) > 0
    assert cost(second) == 0
    assert second["factors"] == first["factors"]
    assert second["factors"]["fitted_by"] == 1
    model, _ = model_after(desk.run, 2, desk.state())

    rollback(desk, 1, reason="again, with other factors", knows_deleted=True)
    next((desk.folder / "curvature").glob("*/factors.safetensors")).unlink()  # a cache: its loss is no flaw
    assert audit_passes(audit(folder))
    process(desk)
    fresh = approve(desk, 2, reason="seen").batches[3].edited
    assert cost(fresh) > 0
    assert fresh["factors"]["fitted_by"] == 3
    other, _ = model_after(desk.run, 3, desk.state())
    original, _ = model_after(desk.run, 0, desk.state())
    apart, moved = (
        torch.cat([(a - b).flatten() for a, b in zip(x.parameters(), y.parameters(), strict=True)]).norm()
        for x, y in ((model, other), (model, original))
    )
    assert apart < 0.05 * moved  # a preconditioner speeds the solve; it is no part of the answer


def test_altered_factors_are_named_by_the_audit_and_not_used(desk, folder):
    rows = desk.run.data.ids
    first = answered(desk, 1, rows[:3])
    path = next((desk.folder / "curvature").glob("*/manifest.json"))
    assert path.parent.name == first["factors"]["key"]
    path.write_text(path.read_text().replace("1", "2", 1))
    failed = {check.name: check.detail for check in audit(folder) if check.ok is False}
    assert "the curvature fitted by batch 1 was altered" in failed["files"]
    assert cost(answered(desk, 2, rows[5:7])) > 0


def test_factors_of_a_stale_solve_are_fitted_anew_and_a_retrain_has_none(desk, monkeypatch):
    rows = desk.run.data.ids
    answered(desk, 1, rows[:3])
    monkeypatch.setattr("unlearn.repair.chain.STALE", 0.0)
    assert answered(desk, 2, rows[5:7])["factors"] is None
    assert cost(answered(desk, 3, rows[8:9])) > 0
    state = process(desk, retrain=True)
    assert state.batches[4].edited["factors"] is None


def test_a_purge_takes_factors_that_know_deleted_rows_and_leaves_those_that_do_not(desk, folder):
    rows = desk.run.data.ids
    key = answered(desk, 1, rows[:3])["factors"]["key"]
    assert key not in str(purge(desk).removes)  # fitted on the rows that are left
    answered(desk, 2, rows[5:7])
    assert f"requests/curvature/{key}" in {item.path for item in purge(desk).removes}
    assert not (desk.folder / "curvature" / key).exists()
    assert audit_passes(audit(folder))
    assert cost(answered(desk, 3, rows[8:9])) > 0
