"""Reduced cases of the bars that ``python -m benchmarks.main_job`` measures in full: one seed of digits."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.setting import Comparison, Setting
from benchmarks.wrong_decisions import compare, with_clean_rows
from unlearn.detect import margin_trajectory, ranking_quality, self_influence
from unlearn.pipeline.repair_benchmark import known_wrong
from unlearn.repair import apply_changes
from unlearn.verification import train_references

SEED = 0


@pytest.fixture(scope="module")
def setting() -> Setting:
    torch.set_num_threads(1)
    return Setting.of("digits-quick", SEED)


@pytest.mark.parametrize(("rate", "least", "most"), [(0.1, 0.8, 1.2), (0.4, 0.8, 1.2)])
def test_the_cutoff_estimates_the_number_of_wrong_rows(rate: float, least: float, most: float) -> None:
    """Rejects a fixed share: the same rule must serve 10 %, 40 % and none."""
    noisy = Setting.of("digits-quick", SEED, rate)
    wrong = int((noisy.data.labels != noisy.data.truth).sum())
    assert least <= len(noisy.cutoff.ids) / wrong <= most


def test_on_clean_data_next_to_nothing_is_acted_on() -> None:
    clean = Setting.of("digits-quick", SEED, 0.0)
    assert len(clean.cutoff.ids) < 0.015 * len(clean.data)


def test_detectors_rank_wrong_rows_first(setting: Setting) -> None:
    model, record, trajectory = setting.trained
    margins = ranking_quality(margin_trajectory(trajectory, setting.data), setting.data)
    influence = ranking_quality(self_influence(model, setting.data, weight_decay=record.weight_decay), setting.data)
    assert (margins["average_precision"] or 0) >= 0.96
    assert (influence["auroc"] or 0) >= 0.975


def test_repair_as_detected_comes_near_the_coupled_retrain(setting: Setting) -> None:
    """Rejects a wrong sign and an edit that only fine-tunes. Plain replay at equal cost is nearer here: see README."""
    comparison = Comparison.of(setting, setting.found("relabel"), count=2)
    edit = comparison.edit(3.0)
    measured = comparison.measure(edit.model)
    assert measured["accuracy - retrain"] >= -0.005
    assert measured["KL / unedited"] <= 0.25
    rivals = comparison.rivals(round(edit.cost.total))
    assert all(measured["KL"] < comparison.measure(m)["KL"] for name, m in rivals.items() if "fine-tune" in name)


def test_removing_a_few_rows_comes_near_the_coupled_retrain(setting: Setting) -> None:
    """The bars of 20 rows that digits meet; rejects plain replay and fine-tuning, which stay above."""
    comparison = Comparison.of(setting, setting.flipped(20), count=3)
    edit = comparison.edit(1.0)
    measured = comparison.measure(edit.model)
    assert measured["phi error / spread"] <= 1.0
    assert measured["KL / unedited"] <= 0.7
    alone = comparison.measure(comparison.edit(0.0).model)
    assert alone["phi error / spread"] <= 1.15
    assert alone["KL / unedited"] <= 0.85
    for rival in comparison.rivals(round(edit.cost.total)).values():
        assert comparison.measure(rival)["phi error / spread"] > measured["phi error / spread"]


@pytest.mark.parametrize("action", ["remove", "relabel"])
def test_wrong_decisions_are_followed_as_retraining_on_them_would(setting: Setting, action: str) -> None:
    """Half of what is acted on is clean: the edit lands by the retrain on the decisions as made, not by the right one.

    The bars of few rows are one spread and 0.7 of the unedited KL; here half of that holds. Rejects an edit that leaves
    the wrong decisions out. The full case is ``python -m benchmarks.wrong_decisions``.
    """
    model, record, _ = setting.trained
    right = known_wrong(setting.data, 20, action, SEED)
    made = with_clean_rows(setting, right, 0.5)
    assert len(made.ids) == 40
    truth = dict(zip(setting.data.ids, setting.data.truth.tolist(), strict=True))
    assert sum(truth[row] == label for row, label in made.relabelled.items()) == (20 if action == "relabel" else 0)
    on_right = train_references(model, right.apply(setting.data), record, count=0).coupled
    assert on_right is not None
    found = compare(setting, right, on_right, 0.5, references=2)
    unedited, edited, retrain = (found[name] for name in ("unedited", "edited", "coupled retrain"))
    assert edited["KL, as made"] <= 0.35 * unedited["KL, as made"]
    assert edited["phi error, as made"] <= 0.5
    assert edited["cosine changed"] >= 0.9
    for measure in ("KL, as made", "phi error, as made"):
        assert edited[measure] < found["edited by the right decisions alone"][measure]
    assert edited["phi error, as made"] < edited["phi error, right"]
    assert (retrain["KL, as made"], retrain["phi error, as made"]) == (0, 0)


def test_every_step_and_cost_is_in_the_edit(setting: Setting) -> None:
    comparison = Comparison.of(setting, setting.flipped(5), count=0)
    model, record, _ = setting.trained
    edit = apply_changes(model, setting.data, comparison.changes, record=record, budget=1.0, method="newton")
    facts = json.loads(json.dumps(edit.to_dict()))
    assert facts["steps"][0]["damping"] == pytest.approx(record.damping(edit.start_step))
    assert facts["cost"]["total"] == pytest.approx(sum(facts["cost"][k] for k in ("factors", "solve", "replay")))
