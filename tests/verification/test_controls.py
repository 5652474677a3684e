"""Known good and known bad models: the reduced case of ``python -m benchmarks.verdict_controls``."""

from __future__ import annotations

import pytest

from benchmarks.setting import Setting
from benchmarks.verdict_controls import MEMORISED, Controls, changes_of
from unlearn.recipe import parse_recipe
from unlearn.verification import Verdict

K = 5


@pytest.fixture(scope="module")
def controls() -> Controls:
    """Twenty mislabelled digits that a small net has learnt by heart, deleted."""
    setting = Setting(parse_recipe(MEMORISED), 0)
    return Controls.of(setting, changes_of(setting)["20 mislabelled rows removed"], count=K + 1)


@pytest.fixture(scope="module")
def verdicts(controls: Controls) -> list[Verdict]:
    """Each of K + 1 independent retrains against the K others."""
    return list(controls.retrains(K))


def test_independent_retrains_pass_and_none_fails(verdicts: list[Verdict]) -> None:
    """Five references leave some undecided, which by the last bits of training: see the next test."""
    assert {verdict.outcome for verdict in verdicts} == {"pass", "undecided"}
    assert all(verdict.more_references for verdict in verdicts if verdict.outcome == "undecided")


def test_an_undecided_retrain_passes_with_as_many_more_references_as_it_asks_for(
    controls: Controls, verdicts: list[Verdict]
) -> None:
    (k,) = (k for k, verdict in enumerate(verdicts) if verdict.more_references == 1)
    ((count, verdict),) = controls.until_decided(controls.first[k], controls.others(k), verdicts[k])
    assert (count, verdict.outcome, verdict.more_references) == (K + 1, "pass", None)


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
