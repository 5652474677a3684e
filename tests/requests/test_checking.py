"""What is found before release: evidence beside held-out rows, verdicts without names, membership audits."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.requests.stories import write_recipe
from unlearn.atomic import read_json
from unlearn.errors import RecipeError
from unlearn.predict import predict
from unlearn.recipe import parse_recipe
from unlearn.requests import Desk, approve, audit, audit_passes, process, purge, submit
from unlearn.requests import membership as membership_module
from unlearn.requests.answer import model_after
from unlearn.requests.certificate import certificate_page
from unlearn.requests.named_files import batch_folder

EVIDENCE = {"references = 2": "references = 0", '"verified"': '"evidence"'}
THREE = {"references = 2": "references = 3, tolerance = 1000.0", "drift_limit = 0.5": "drift_limit = 1e9"}


@pytest.fixture
def opened(folder, keys, clock):
    """Open the run with a changed recipe."""
    desks = []

    def open_with(changed):
        write_recipe(folder, changed)
        desks.append(Desk.open(folder, keys=keys, who="dpo", clock=clock, create=True))
        return desks[-1]

    yield open_with
    for desk in desks:
        desk.ledger.close()


def verdict(desk, batch, number=1):
    return read_json(batch_folder(desk.run.folder, batch) / f"verdict-{number}.json")


def certificates(desk):
    return [json.loads(path.read_text()) for path in sorted((desk.folder / "certificates").glob("*.json"))]


def test_evidence_is_the_rank_test_of_each_row_among_held_out_rows_of_its_kind(opened):
    desk = opened(EVIDENCE)
    rows, test = desk.run.data, desk.run.test
    sevens = [row for row, label in zip(rows.ids, rows.labels.tolist(), strict=True) if label == 7]
    submit(desk, ids=[*rows.ids[:9], sevens[-1]])
    submit(desk, ids=sevens[-3:-1], action="relabel", label=1)
    state = process(desk)
    said = verdict(desk, 1)
    model, _ = model_after(desk.run, 1, state)

    def phi_at(logits, label):  # log p / (1 - p), from the probabilities
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        return float(np.log(p[label] / (1 - p[label])))

    held_out = predict(model, test).double().numpy()
    changed = rows.only([*rows.ids[:9], sevens[-1], *sevens[-3:-1]])
    logits, labels = predict(model, changed).double().numpy(), changed.labels.tolist()
    shares, own, kinds = [], {}, set()
    for row, own_logits, label in zip(changed.ids, logits, labels, strict=True):
        looks = (
            1 if row in sevens[-3:-1] else label
        )  # a wrong seven that looks like a one is held against ones, at seven
        of_kind = [phi_at(held_out[j], label) for j in (test.labels == looks).nonzero().flatten().tolist()]
        value = phi_at(own_logits, label)
        shares.append(np.mean([(one < value) + (one == value) / 2 for one in of_kind]))
        own[label, looks] = [np.mean([(b < a) + (b == a) / 2 for b in of_kind]) for a in of_kind]
        kinds.add((label, looks))
    found = stats.mannwhitneyu(shares, np.concatenate([own[kind] for kind in sorted(kinds)]))
    assert said["rows"] == 12
    assert said["p"] == pytest.approx(found.pvalue, rel=1e-6)
    assert said["outcome"] == ("fail" if said["p"] < 0.05 else "pass")
    assert (state.requests[1].status == "provisional") is (said["outcome"] == "pass")


def test_rows_that_the_model_is_surest_of_are_told_from_held_out_ones_and_held(opened):
    desk = opened(EVIDENCE)
    model, rows = desk.run.original[0], desk.run.data
    sure = predict(model, rows).softmax(1)[range(len(rows)), rows.labels]
    submit(desk, ids=[rows.ids[k] for k in sure.argsort(descending=True)[:60].tolist()])
    state = process(desk)
    said = verdict(desk, 1)
    assert said["p"] < 0.05
    assert said["outcome"] == "fail"
    assert (state.requests[1].status, state.current) == ("held", 0)


@pytest.mark.parametrize(("level", "status"), [(0.0, "provisional"), (1.1, "held")])
def test_release_follows_the_printed_evidence_either_way(level, status, opened, monkeypatch):
    """The level decides here, not rows that happen to pass."""
    desk = opened(EVIDENCE)
    monkeypatch.setattr("unlearn.requests.checking.LEVEL", level)
    submit(desk, ids=desk.run.data.ids[:5])
    state = process(desk)
    said = verdict(desk, 1)
    assert said["outcome"] == ("fail" if said["p"] < level else "pass")
    assert state.requests[1].status == status
    assert state.current == (1 if status == "provisional" else 0)


def test_a_single_row_can_not_be_told_from_anything_and_is_held(opened):
    desk = opened(EVIDENCE)
    submit(desk, ids=desk.run.data.ids[:1])
    assert process(desk).requests[1].status == "held"
    assert "give two of each at least" in verdict(desk, 1)["reason"]


def test_a_provisional_release_is_verified_when_it_is_due(opened, clock, monkeypatch, folder):
    desk = opened(EVIDENCE)
    monkeypatch.setattr("unlearn.requests.checking.LEVEL", 0.0)
    submit(desk, ids=desk.run.data.ids[:4])
    state = process(desk)
    assert (state.requests[1].status, state.batches[1].verify_by) == ("provisional", "2026-03-15")
    first = certificates(desk)[0]
    assert first["full_verification_due"] == "2026-03-15"
    assert first["membership_audit"]["outcome"] is None
    assert "evidence trains no models" in first["membership_audit"]["reason"]
    clock.pass_days(13)
    assert process(desk).requests[1].status == "provisional"
    clock.pass_days(1)
    state = process(desk)  # without references it is undecided, so a person decides
    assert (state.batches[1].outcome, state.requests[1].status) == ("undecided", "held")
    state = approve(desk, 1, reason="seen")
    assert (state.requests[1].status, state.batches[1].verify_by) == ("released", None)
    assert len(state.batches[1].certificates[1]) == 2
    assert audit_passes(audit(folder))


def test_no_file_of_the_requests_names_a_deleted_row(opened, keys):
    """Verdicts are kept for good: rows that are still remembered stand in them by their codes."""
    desk = opened(THREE)
    rows = desk.run.data.ids[:30]
    submit(desk, ids=rows)
    process(desk)
    found = verdict(desk, 1)
    remembered = [row for one in found["verdicts"].values() for row in one["remembered"]]
    assert remembered  # else this test shows nothing
    assert {row["row"] for row in remembered} <= {keys.code("row", row) for row in rows}
    for path in desk.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [row for row in rows if row.encode() in data], path


def test_the_certificate_carries_a_membership_audit(opened):
    desk = opened({**THREE, '"verified"': '"verified", membership = 4'})
    submit(desk, ids=desk.run.data.ids[:12])
    state = process(desk)
    if state.held is not None:
        approve(desk, 1, reason="seen")
    certificate = certificates(desk)[0]
    found = certificate["membership_audit"]
    assert found["outcome"] in ("pass", "fail", "undecided")
    assert found["models"] == {"never": 3, "learned": 4}
    assert found["rows"] == 12
    assert {line["attack"] for line in found["table"]} == {"lira", "lira-offline", "less-confident"}
    assert found == verdict(desk, 1)["membership_audit"]
    kept = [path.name for path in (batch_folder(desk.run.folder, 1) / "references").iterdir()]
    before, after = desk.run.data.fingerprint[:16], desk.run.data.without(desk.run.data.ids[:12]).fingerprint[:16]
    assert sorted(name.split("-")[2].removesuffix(".safetensors") for name in kept) == sorted(
        [before] * 4 + [after] * 3
    )
    page = certificate_page(certificate)
    assert found["reason"].split(":")[0] in page
    assert "models that did learn them" in page


def test_references_of_the_batch_before_serve_as_models_that_saw_the_rows(opened):
    desk = opened(THREE)
    rows = desk.run.data.ids
    outcomes = []
    for number, asked in enumerate((rows[:6], rows[10:16], rows[20:26]), 1):
        submit(desk, ids=asked)
        if process(desk).held is not None:
            approve(desk, number, reason="seen")
        outcomes.append(verdict(desk, number)["membership_audit"])
        assert len(list((batch_folder(desk.run.folder, number) / "references").iterdir())) == 3  # none was trained more
        if number == 2:
            purge(desk)
            assert not (batch_folder(desk.run.folder, 2) / "references").exists()
    first, second, third = outcomes
    assert first["outcome"] is third["outcome"] is None
    assert "and there are 3 and 0; state membership" in first["reason"]
    assert second["models"] == {"never": 3, "learned": 3}


def test_a_failed_membership_audit_is_not_released(opened, monkeypatch):
    real = membership_module.membership_audit
    monkeypatch.setattr(
        membership_module, "membership_audit", lambda *a, **o: replace(real(*a, **o), outcome="fail", reason="told")
    )
    desk = opened({**THREE, '"verified"': '"verified", membership = 3'})
    submit(desk, ids=desk.run.data.ids[:6])
    state = process(desk)
    assert (state.batches[1].outcome, state.requests[1].status) == ("fail", "held")
    assert verdict(desk, 1)["reason"] == "membership audit: told"


def test_a_retrain_and_an_answer_without_a_model_say_why_there_is_no_audit(opened):
    desk = opened({"references = 2": "references = 0", "drift_limit = 0.5": "drift_limit = 1e-9"})
    submit(desk, ids=["nobody"])
    process(desk)
    submit(desk, ids=desk.run.data.ids[:2])
    process(desk)
    reasons = [certificate["membership_audit"]["reason"] for certificate in certificates(desk)]
    assert "no model was changed" in reasons[0]
    assert "a retrain never saw the rows" in reasons[1]
    assert all("none was made" in certificate_page(certificate) for certificate in certificates(desk))


def test_a_recipe_that_asks_for_an_audit_asks_for_enough_models():
    text = 'name = "x"\ndata.source = "digits"\nmodel.name = "mlp"\n'
    assert parse_recipe(text + "requests.membership = 3\n").requests.membership == 3
    for wrong in ("requests.membership = 2\n", "requests.membership = 5\nverify.references = 2\n"):
        with pytest.raises(RecipeError, match="at least 3"):
            parse_recipe(text + wrong)
