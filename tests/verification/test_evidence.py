"""Evidence without retraining, on digits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import unlearn
from benchmarks.setting import Setting
from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.predict import predict
from unlearn.repair import Changes, Edit
from unlearn.tasks import phi
from unlearn.verification import Evidence, train_references
from unlearn.verification.evidence import _placed


@pytest.fixture(scope="module")
def setting() -> Setting:
    torch.set_num_threads(1)
    return Setting.of("digits-quick", 0)


@pytest.fixture(scope="module")
def edit(setting: Setting) -> Edit:
    model, record, _ = setting.trained
    return unlearn.apply_changes(model, setting.data, setting.found("relabel"), record=record, budget=3.0)


@pytest.fixture(scope="module")
def found(setting: Setting, edit: Edit) -> Evidence:
    return unlearn.evidence(edit, held_out=setting.test)


def line(evidence: Evidence, model: str, quantity: str = "phi") -> dict[str, float]:
    (row,) = (row for row in evidence.against_held_out if (row["model"], row["quantity"]) == (model, quantity))
    return row


def pushed_past(model: nn.Module, data: Rows, ids: tuple[str, ...], steps: int) -> nn.Module:
    """Gradient ascent on some rows, descent on the others."""
    model = copy.deepcopy(model)
    parts = [rows.batch(torch.arange(len(rows))) for rows in (data.without(ids), data.only(ids))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        kept, gone = (nn.functional.cross_entropy(model(inputs), labels) for inputs, labels in parts)
        (kept - gone).backward()
        optimizer.step()
    return model


def test_it_is_never_a_verdict(found: Evidence) -> None:
    assert (found.outcome, found.exit_code) == ("evidence", 3)
    facts = json.loads(found.to_json())
    assert (facts["outcome"], facts["verdict"], facts["format"]) == ("evidence", None, 1)
    assert str(found).startswith("evidence, never a verdict: ")


def test_the_unedited_model_remembers(setting: Setting, edit: Edit) -> None:
    unedited = unlearn.evidence(replace(edit, model=edit.original), held_out=setting.test)
    assert unedited.reading == "still remembered"
    assert line(unedited, "edited") == line(unedited, "unedited") | {"model": "edited"}
    assert all(row["slope"] == row["cosine"] == row["actual"] == 0 for row in unedited.prediction)


def test_rows_forgotten_more_than_unseen_ones_are_over_forgotten(setting: Setting, edit: Edit) -> None:
    """Rejects a one-sided reading, which would praise it."""
    clean = [row for row, a, b in zip(setting.data.ids, setting.data.labels, setting.data.truth, strict=True) if a == b]
    ids = tuple(clean[:60])
    past = pushed_past(edit.original, setting.data, ids, 40)
    found = unlearn.evidence(replace(edit, model=past, changes=Changes(removed=ids)), held_out=setting.test)
    assert found.reading == "over-forgotten"


def test_a_kind_forgotten_as_a_whole_is_not_praised(setting: Setting, edit: Edit) -> None:
    """Held-out rows move along, so phi beside them shows nothing; how far the outputs moved does."""
    past = pushed_past(edit.model, setting.data, edit.changes.ids, 40)
    found = unlearn.evidence(replace(edit, model=past), held_out=setting.test)
    assert abs(line(found, "edited")["auc"] - 0.5) < 0.1
    assert found.reading == "not telling"
    assert "times as far as foretold" in found.reason


def test_an_edit_and_a_retrain_are_nearer_to_held_out_rows_than_the_unedited_model(
    setting: Setting, edit: Edit, found: Evidence
) -> None:
    (retrain,) = train_references(edit.original, edit.edited_data, edit.record, count=1).independent
    retrained = unlearn.evidence(replace(edit, model=retrain), held_out=setting.test)
    assert retrained.reading not in ("still remembered", "over-forgotten")
    for evidence in (found, retrained):
        assert line(evidence, "edited")["auc"] < line(evidence, "unedited")["auc"] - 0.05
        assert all(row["cosine"] > 0.5 and 0.5 < row["slope"] < 2 for row in evidence.prediction)
        after, before = (line(evidence, model, "self-influence")["changed"] for model in ("edited", "unedited"))
        assert after > 1.5 * before  # the model no longer fits them
    assert found.cost_epochs < 15


def test_rows_hold_phi_before_after_and_foretold(setting: Setting, edit: Edit, found: Evidence) -> None:
    changed = setting.data.only(edit.changes.ids)
    assert [row["id"] for row in found.rows] == list(edit.changes.ids)
    for name, model in (("phi_before", edit.original), ("phi_after", edit.model)):
        values = phi(predict(model, changed).double(), changed.labels).tolist()
        assert [row[name] for row in found.rows] == values
    assert [row["looks_like"] for row in found.rows] == list(edit.changes.relabelled.values())
    assert all(0 <= row["share_after"] <= 1 for row in found.rows)
    down = sum(row["phi_predicted"] < row["phi_before"] for row in found.rows)
    assert down > 0.9 * len(found.rows)


def test_without_held_out_rows_it_does_not_tell_and_says_why(edit: Edit) -> None:
    found = unlearn.evidence(edit)
    assert found.reading == "not telling"
    assert found.against_held_out == []
    assert "no held-out rows were given" in found.notes[0]
    assert {row["share_after"] for row in found.rows} == {None}


def test_models_and_global_seeds_are_left_as_they_were(setting: Setting, edit: Edit, found: Evidence) -> None:
    before, weights = torch.random.get_rng_state(), copy.deepcopy(edit.original.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in edit.original.parameters()]
    again = unlearn.evidence(edit, held_out=setting.test)
    assert again.to_json() == found.to_json()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(value, weights[name]) for name, value in edit.original.state_dict().items())
    for p, gradient in zip(edit.original.parameters(), gradients, strict=True):
        assert gradient is None if p.grad is None else torch.equal(p.grad, gradient)


@pytest.mark.parametrize(
    ("lower", "upper", "reading"),
    [
        (0.61, 0.9, "still remembered"),
        (0.59, 0.9, "not telling"),
        (0.1, 0.39, "over-forgotten"),
        (0.1, 0.41, "not telling"),
        (0.4, 0.6, "like held-out rows"),
        (0.39, 0.6, "not telling"),
        (0.2, 0.8, "not telling"),
    ],
)
def test_a_reading_needs_its_bounds(lower: float, upper: float, reading: str) -> None:
    assert _placed(lower, upper, 0.1) == reading


def test_bad_input(edit: Edit) -> None:
    with pytest.raises(InputError, match=r"margin is 0\.5; give a number above 0 and below 1/2"):
        unlearn.evidence(edit, margin=0.5)
    numbers = Rows.from_tensors(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(InputError, match="compares class probabilities, and data has none"):
        unlearn.evidence(replace(edit, data=numbers))


def test_verify_without_references_prints_evidence_and_exits_3(
    unlearn: Callable[..., tuple[int, str, str]], run_copy: Path
) -> None:
    code, out, _ = unlearn("verify", run_copy, "--references", 0)
    assert code == 3
    assert "evidence, never a verdict: " in out
    assert max(len(line) for line in out.splitlines() if not line.startswith("report: ")) <= 80
    assert json.loads((run_copy / "evidence.json").read_text())["verdict"] is None
    code, out, _ = unlearn("verify", run_copy, "--references", 0, "--json")
    assert code == 3
    facts = json.loads(out)
    assert (facts["outcome"], facts["evidence"]["outcome"]) == ("undecided", "evidence")
