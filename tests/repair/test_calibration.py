"""Damping by held-out rows: the condition it stands on, what it refuses, and that test rows stay apart."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from repair_cases import flat
from torch import nn

import unlearn
from unlearn.curvature import dot, loss_gradient
from unlearn.data import Rows
from unlearn.data.overlap import shared_rows
from unlearn.errors import InputError, RecordError
from unlearn.repair import Calibration, calibrate_damping
from unlearn.repair.calibration import Rise, losses
from unlearn.tasks import get_task
from unlearn.training import TrainingRecord

STEPS, LR = 50, 0.1


def pool(n: int = 3300, features: int = 40) -> Rows:
    """Rows of which most features say nothing, so that training learns its own rows."""
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(n, features, generator=draw)
    y = (x[:, 0] + 0.7 * torch.randn(n, generator=draw) > 0).long()
    return Rows.from_tensors(x, y, ids=[f"row-{i}" for i in range(n)], classes=2)


def descent(rows: Rows) -> nn.Module:
    """Full-batch gradient descent from zero: T = STEPS * LR."""
    inputs, labels = rows.batch(torch.arange(len(rows)))
    model = nn.Linear(inputs.shape[1], 2)
    for p in model.parameters():
        p.data.zero_()
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            p.data -= LR * g
    return model


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Rows, Rows]:
    rows = pool()
    mine = rows.at(torch.arange(300))
    return descent(mine), mine, rows.at(torch.arange(300, 3300))


def test_leaving_rows_out_takes_back_the_gap(trained: tuple[nn.Module, Rows, Rows]) -> None:
    """The identity it stands on, by training again without each of 40 rows; and the damping that it leads to.

    Rejects a gap of the wrong sign, and a rise without 1/n or with the wrong power of the gradient.
    """
    model, rows, held = trained
    task = get_task("classification")
    own = losses(model, rows, task)
    gap = losses(model, held, task)
    rises = torch.stack([losses(descent(rows.without([row])), rows.only([row]), task)[0] for row in rows.ids[:40]])
    rises -= own[:40]
    assert bool((rises > 0).all())
    error = math.hypot(float(rises.std()) / 40**0.5, float(gap.std()) / len(held) ** 0.5, float(own.std()) / 300**0.5)
    assert abs(float(rises.mean()) - float(gap.mean() - own.mean())) < 2 * error
    right = Rise(model, rows, rows, rows.at(torch.arange(40)), task, 0.0).inverse(float(rises.mean()))
    found = calibrate_damping(model, rows, held)
    assert 1 / 3 < found.damping / right < 3
    assert found.low < found.damping < found.high
    assert 1 / 4 < right * STEPS * LR < 3  # about the horizon; below 2 / T, for the first order is short of the rises


@pytest.mark.parametrize("case", ["linear", "conv"])
def test_the_rise_is_the_mean_of_solves(case: str) -> None:
    """(1/n) mean g^T (G + w + d)^-1 g, by the curvature's own solve for each row; the inverse inverts it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    model = (nn.Linear(16, 3) if case == "linear" else net).double()
    x = torch.randn(20, 16, dtype=torch.float64)
    rows = Rows.from_tensors(x if case == "linear" else x.reshape(-1, 1, 4, 4), torch.arange(20) % 3)
    curvature, sample = unlearn.fit_curvature(model, rows), rows.at(torch.arange(5))
    rise = Rise(model, rows, rows, sample, get_task("classification"), 0.02)
    for damping in (0.01, 1.0):
        total = 0.0
        for row in sample.ids:
            g = loss_gradient(model, rows.only([row]))
            total += dot(g, curvature.solve(g, damping=0.02 + damping))
        assert rise(damping) == pytest.approx(total / 5 / 20, rel=1e-9)
        assert rise.inverse(rise(damping)) == pytest.approx(damping, rel=1e-5)
    assert rise.inverse(0.0) == math.inf
    assert rise.inverse(2 * rise(0.0)) == 0.0


def test_an_edit_with_calibration_rows_is_the_edit_with_their_damping(trained: tuple[nn.Module, Rows, Rows]) -> None:
    model, rows, held = trained
    before = copy.deepcopy(model.state_dict())
    found = calibrate_damping(model, rows, held)
    asked = [
        unlearn.remove(model, rows, ["row-3"], **options)
        for options in ({"calibration": held}, {"calibration": found}, {"damping": found.damping, "weight_decay": 0.0})
    ]
    weights = [flat(dict(edit.model.named_parameters())) for edit in asked]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert asked[0].steps[0].damping == found.damping
    assert f"damping {found.damping:.3g}" in asked[0].notes[0]
    assert "was calibrated on 3000 rows that were not trained on" in asked[0].notes[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_calibration_rows_are_no_test_rows(trained: tuple[nn.Module, Rows, Rows]) -> None:
    model, rows, held = trained
    edit = unlearn.remove(model, rows, ["row-3"], calibration=held)
    with pytest.raises(
        InputError, match=r"1 of the test rows were calibrated on .*'row-3299'; test on rows that the edit"
    ):
        unlearn.verify(edit, test=held.only(["row-3299"]), references=0)
    inputs, labels = held.batch(torch.tensor([5]))
    renamed = Rows.from_tensors(inputs, 1 - labels, ids=["another"], classes=2)
    with pytest.raises(InputError, match=r"1 of the test rows were calibrated on .*'another'"):
        unlearn.verify(edit, test=renamed, references=0)
    other = Rows.from_tensors(inputs + 1, labels, ids=["other"], classes=2)
    assert unlearn.verify(edit, test=other, references=0).outcome == "undecided"


def test_rows_in_common_are_found_by_id_and_by_content() -> None:
    rows = pool(10)
    inputs, labels = rows.batch(torch.arange(3))
    assert shared_rows(rows, Rows.from_tensors(inputs, labels)) == ["0", "1", "2"]  # by content, under no ids
    assert shared_rows(rows, Rows.from_tensors(inputs + 1, labels)) == []
    assert shared_rows(rows, Rows.from_tensors(inputs + 1, labels, ids=["a", "row-7", "b"])) == ["row-7"]
    numbered = Rows.from_tensors(inputs, labels)
    assert shared_rows(numbered, Rows.from_tensors(inputs + 1, labels)) == []  # row numbers name no row elsewhere
    assert shared_rows(rows, Rows.from_tensors(inputs.double(), labels)) == []


def test_what_is_refused(trained: tuple[nn.Module, Rows, Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, held = trained
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"calibration": rows.at(torch.arange(5))}, InputError, "5 of the calibration rows were trained on"),
        ({"calibration": held, "damping": 0.1}, InputError, "choose a damping, and one is given already"),
        ({"calibration": held, "record": TrainingRecord("sgd", 0.1, 9)}, InputError, "the training record gives one"),
        ({}, RecordError, "or calibration= with rows that it was not trained on"),
        ({"weight_decay": 0.1}, RecordError, "or calibration= with rows that it was not trained on"),
        ({"calibration": held.at(torch.arange(8))}, InputError, "can not be told from 0: give more of them"),
    ]
    for options, error, message in cases:
        with pytest.raises(error, match=message) as found:
            unlearn.remove(model, rows, ["row-3"], **options)
        assert "\n" not in str(found.value)
    monkeypatch.setattr(Rise, "inverse", lambda self, gap: 0.0)
    with pytest.raises(InputError, match=r"no damping makes up the gap of .*; a model that has memorised its rows"):
        calibrate_damping(model, rows, held)


def test_a_calibration_says_what_it_is(trained: tuple[nn.Module, Rows, Rows]) -> None:
    _, _, held = trained
    found = Calibration(0.2, 0.1, math.inf, 0.0, 0.05, 0.03, held, 100)
    assert str(found) == (
        "damping 0.2 (0.1 to inf) was calibrated on 3000 rows that were not trained on; their mean loss is 0.05 +- "
        "0.03 above that of the training rows"
    )
