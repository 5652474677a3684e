"""A solve that goes wrong ends with the last accepted weights and says so; no NaN ever reaches a weight."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from repair_cases import same_bits, tiny, weights_of

import unlearn
from unlearn.curvature import Curvature, Vector
from unlearn.repair import Edit
from unlearn.repair import newton as newton_module
from unlearn.repair.objective import EditedObjective


def edit(**options: object) -> tuple[Edit, bool]:
    """Return a removal, and whether its weights are the original's bit for bit."""
    model, rows = tiny()
    found = unlearn.remove(model, rows, ["row-1"], damping=0.1, weight_decay=0.01, **options)
    assert bool(torch.isfinite(weights_of(found.model)).all())
    json.dumps(found.to_dict(), allow_nan=False)
    return found, same_bits(found.model, model)


def scaled(factor: float) -> Callable[..., Vector]:
    plain = Curvature.solve

    def solve(self: Curvature, vector: Vector, *, damping: float) -> Vector:
        return {name: factor * part for name, part in plain(self, vector, damping=damping).items()}

    return solve


@pytest.mark.parametrize("factor", [math.nan, math.inf, -1.0])
def test_a_hostile_preconditioner(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(Curvature, "solve", scaled(factor))
    found, unmoved = edit()
    assert unmoved
    assert found.failed
    assert found.notes[-1].startswith("failed: Newton step 1 was not accepted: r^T M r = ")
    assert "not positive definite; weights stay as before it" in found.notes[-1]


@pytest.mark.parametrize("factor", [math.nan, math.inf, -1e6])
def test_a_hostile_operator(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    class Hostile:
        cost = 0

        def matvec(self, vector: Vector) -> Vector:
            return {name: factor * part for name, part in vector.items()}

    monkeypatch.setattr(newton_module, "GaussNewton", lambda *args, **options: Hostile())
    found, unmoved = edit()
    assert unmoved
    assert found.failed
    assert "p^T A p" in found.notes[-1] or "not finite" in found.notes[-1]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e9])
def test_a_hostile_objective(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr(EditedObjective, "value", lambda self, weights: value)
    found, unmoved = edit()
    assert unmoved
    assert found.failed
    assert found.notes[-1] == (
        "failed: Newton step 1 was not accepted: the objective did not fall; weights stay as before it"
    )


@pytest.mark.parametrize("where", ["value", "gradient"])
def test_the_last_accepted_weights_stay(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Three steps, of which the second meets a gradient or value that is not finite: the first one stays."""
    first, _ = edit(steps=1)
    plain = EditedObjective.value_and_gradient

    def hostile(self: EditedObjective, weights: Vector) -> tuple[float, Vector]:
        value, gradient = plain(self, weights)
        if where == "value":
            return math.nan, gradient
        return value, {name: part * math.nan for name, part in gradient.items()}

    monkeypatch.setattr(EditedObjective, "value_and_gradient", hostile)
    found, unmoved = edit(steps=3)
    assert not unmoved
    assert same_bits(found.model, first.model)
    assert [step.accepted for step in found.steps] == [True, False]
    assert found.failed
    assert "Newton step 2 was not accepted: E or its gradient is not finite here" in found.notes[-1]


def test_a_good_solve_has_not_failed() -> None:
    found, unmoved = edit()
    assert not found.failed
    assert not unmoved
