"""The level on real logistic regressions: the reduced case of ``python -m benchmarks.verdict_logistic``."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.verdict_logistic import LEVEL, Boundary, World, lower_bound

EXPERIMENTS = 200


@pytest.fixture(scope="module")
def boundary() -> Boundary:
    """Models at r = 1.5, fewer of them and found with fewer retrains than in the benchmark."""
    found = Boundary.of(World.of(bootstrap=False), pool=400)
    return replace(found, edited={name: found.edited[name] for name in ("past forgetting", "random weights")})


def test_false_passes_at_the_tolerance_are_within_the_stated_level(boundary: Boundary) -> None:
    """The edited models are at r = 1.5 by the population of retrains, not by those of the experiment."""
    for found in boundary.reached.values():
        assert max(found.values()) == pytest.approx(1.5, abs=1e-3)
    counts = boundary.outcomes(5, EXPERIMENTS)
    for name in boundary.edited:
        assert lower_bound(counts[name]["pass"], EXPERIMENTS) <= LEVEL, name
    assert counts["unedited"]["fail"] > 0.9 * EXPERIMENTS
    assert counts["a retrain"]["pass"] > 0.3 * EXPERIMENTS
    assert counts["a retrain"]["fail"] < 0.05 * EXPERIMENTS
