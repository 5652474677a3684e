"""Reduced cases of the bars of ``python -m benchmarks.chains`` and ``python -m benchmarks.class_removal``: digits."""

from __future__ import annotations

import pytest
import torch

from benchmarks.chains import coupled, run_chain
from benchmarks.class_removal import measure
from benchmarks.setting import Setting, logits
from unlearn.repair import Changes, apply_changes
from unlearn.verification.distances import kl, phi_error


@pytest.fixture(scope="module")
def setting() -> Setting:
    torch.set_num_threads(1)
    return Setting.of("digits-quick", 0)


@pytest.mark.parametrize("budget", [1.0, 0.0])
def test_five_edits_of_four_land_at_most_1_3_times_as_far_as_one_of_twenty(setting: Setting, budget: float) -> None:
    model, record, _ = setting.trained
    changes = setting.flipped(20)
    retrained = coupled(setting, changes)
    one = apply_changes(model, setting.data, changes, record=record, budget=budget).model
    chain = run_chain(setting, changes, 4, budget)
    many = chain[-1][0].model
    assert chain[-1][1]["fits"] < 5
    changed, want = setting.data.only(changes.removed), logits(retrained, setting.test)
    distances = [
        (
            phi_error(logits(m, changed), logits(retrained, changed), changed.labels),
            kl(want, logits(m, setting.test)),
        )
        for m in (many, one)
    ]
    assert distances[0][0] <= 1.3 * distances[1][0]
    assert distances[0][1] <= 1.3 * distances[1][1]


@pytest.fixture(scope="module")
def class_removed(setting: Setting) -> tuple[dict[str, float], dict[str, float]]:
    """Measures of the unedited and the edited model after class 3 of clean digits is removed."""
    clean = Setting(setting.recipe, 0, 0.0)
    model, record, _ = clean.trained
    changes = Changes(removed_classes=(3,)).on(clean.data)
    retrained = coupled(clean, changes)
    edit = apply_changes(model, clean.data, changes, record=record, budget=3.0)
    changed = clean.data.only(changes.removed)
    unedited, edited = (measure(m, retrained, changed, clean.test) for m in (model, edit.model))
    return unedited, edited


def test_a_removed_class_is_not_answered_and_the_others_are(
    class_removed: tuple[dict[str, float], dict[str, float]],
) -> None:
    """Rejects an edit that leaves the class in, and one that breaks the others; distances are to retraining."""
    unedited, edited = class_removed
    assert unedited["forgotten accuracy, %"] > 80
    assert edited["forgotten accuracy, %"] <= 0.5
    assert edited["others - retrain, points"] >= -0.5
    for column in ("KL, forgotten test rows", "KL, other test rows"):
        assert edited[column] < 0.2 * unedited[column]
    assert edited["phi error, changed"] < 0.5 * unedited["phi error, changed"]
