"""Known good and known bad models: the reduced case of ``python -m benchmarks.verdict_controls``."""

from __future__ import annotations

import pytest

from benchmarks.setting import Setting
from benchmarks.verdict_controls import MEMORISED, Controls, changes_of
from unlearn.recipe import parse_recipe

K = 5


@pytest.fixture(scope="module")
def controls() -> Controls:
    """Twenty mislabelled digits that a small net has learnt by heart, deleted."""
    setting = Setting(parse_recipe(MEMORISED), 0)
    return Controls.of(setting, changes_of(setting)["20 mislabelled rows removed"], count=K)


def test_independent_retrains_pass_and_none_fails(controls: Controls) -> None:
    outcomes = [verdict.outcome for verdict in controls.retrains(K)]
    assert outcomes[0] == "pass"
    assert outcomes.count("pass") >= 3
    assert "fail" not in outcomes


@pytest.mark.parametrize("name", ["unedited", "fine-tuned, 1 epoch", "gradient ascent past forgetting"])
def test_a_model_that_is_known_to_be_bad_fails(controls: Controls, name: str) -> None:
    """Gradient ascent errs on the other side: surer than retrains that the rows are not what they were called."""
    verdict = controls.verdict(controls.bad[name], controls.references.independent[:K])
    assert verdict.outcome == "fail", str(verdict)
    assert "changed" in verdict.reason
    mean = {row["model"]: row for row in verdict.measures if (row["group"], row["measure"]) == ("changed", "phi")}
    over = mean["edited"]["value"] < mean["edited"]["independent"]
    assert over is (name == "gradient ascent past forgetting")


def test_one_reference_decides_nothing(controls: Controls) -> None:
    for model in (*controls.bad.values(), controls.references.independent[-1]):
        assert controls.verdict(model, controls.references.independent[:1]).outcome == "undecided"
