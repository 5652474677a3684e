"""The training record: horizons, damping, its file form, and the files it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_cases import SETTINGS, SGD, network, rows_of

from unlearn.errors import RecordError
from unlearn.training import BatchOrder, TrainingRecord, TrainSettings, train


def test_horizon_and_damping_by_hand():
    # rejects a horizon without momentum, 1 / T, and a count of steps
    record = TrainingRecord(optimizer="sgd", lr=[0.1, 0.2, 0.4], momentum=0.5, steps=3)
    assert record.horizon() == pytest.approx(1.4)
    assert record.horizon(1) == pytest.approx(1.2)
    assert record.horizon(1, 2) == pytest.approx(0.4)
    assert record.damping() == pytest.approx(2 / 1.4)
    assert record.damping(2) == pytest.approx(2 / 0.6)
    with pytest.raises(RecordError, match="horizon before the first step is 0"):
        record.damping(0)


@pytest.mark.parametrize(("schedule", "total"), [("constant", 480 * 0.05), ("cosine", 480 * 0.025), ("step", 17.6)])
def test_horizon_of_schedules(schedule: Any, total: float):
    # 10 of 15 epochs at 0.05, 5 at 0.005 (32 steps each); a cosine sums to half its steps and half its first rate
    settings = TrainSettings(schedule=schedule)
    record = TrainingRecord(optimizer="sgd", lr=settings.rates(4096), steps=480, momentum=0.9)
    half_a_step = 0.025 if schedule == "cosine" else 0.0
    expected = 10 * 32 * 0.05 + 5 * 32 * 0.005 if schedule == "step" else total + half_a_step
    assert record.horizon() == pytest.approx(10 * expected, rel=1e-12)


def test_horizon_of_adam_is_the_sum_of_rates_and_its_damping_is_no_number():
    record = TrainingRecord(optimizer="adam", lr=0.001, steps=50, momentum=0.9)
    assert record.horizon() == pytest.approx(0.05)
    with pytest.raises(RecordError, match=r"diag\(sqrt\(v\) \+ eps\)"):
        record.damping()


def test_a_model_at_its_optimum_has_an_infinite_horizon_and_no_damping():
    record = TrainingRecord(optimizer="lbfgs", lr=1.0, steps=7)
    assert (record.horizon(), record.damping()) == (float("inf"), 0.0)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_record_survives_its_json_form(settings: TrainSettings, tmp_path: Path):
    # rejects rounded rates, a lost order, snapshots keyed by strings
    _, record = train(network(), rows_of(), settings, seed=3, folder=tmp_path, snapshot_epochs=[1])
    again = TrainingRecord.from_dict(json.loads(json.dumps(record.to_dict())), folder=tmp_path)
    assert again.to_dict() == record.to_dict()
    assert again.rates().tolist() == record.rates().tolist()
    assert again.order is not None
    assert [again.order.batch(k) for k in range(12)] == [record.order.batch(k) for k in range(12)]  # type: ignore[union-attr]
    assert sorted(again.snapshots) == [4, 12]
    assert again.betas == record.betas
    assert again.snapshot(4).weights.keys() == network().state_dict().keys()


def test_a_record_without_its_folder_still_says_how_it_was_trained(tmp_path: Path):
    _, record = train(network(), rows_of(), SGD, folder=tmp_path)
    alone = TrainingRecord.from_dict(record.to_dict())
    assert alone.order is None
    assert alone.damping() == record.damping()
    with pytest.raises(RecordError, match="does not know its folder"):
        alone.snapshot(12)
    moved = TrainingRecord.from_dict(record.to_dict(), folder=tmp_path / "elsewhere")
    with pytest.raises(RecordError, match="is missing"):
        moved.snapshot(12)


def test_missing_damaged_and_altered_snapshots_are_refused(tmp_path: Path):
    _, record = train(network(), rows_of(), SGD, folder=tmp_path, snapshot_epochs=[1, 2])
    with pytest.raises(RecordError, match=r"no snapshot after step 5 was recorded; there are \[4, 8, 12\]"):
        record.snapshot(5)
    path = tmp_path / "snapshots" / "step-000004.safetensors"
    whole = path.read_bytes()
    for bad in (
        whole[:-1],
        whole[:-1] + bytes([whole[-1] ^ 1]),
        b"",
        (path.with_name("step-000008.safetensors")).read_bytes(),
    ):
        path.write_bytes(bad)
        with pytest.raises(RecordError, match=r"step-000004.* is not the one in the training record"):
            record.snapshot(4)
    path.unlink()
    with pytest.raises(RecordError, match="is missing"):
        record.snapshot(4)
    record.snapshot(8)


def test_a_damaged_row_order_and_that_of_another_training_are_refused(tmp_path: Path):
    # rejects finding the order by name: seed 1 trained into the same folder has as many steps
    _, record = train(network(), rows_of(), SGD, seed=0, folder=tmp_path)
    path = tmp_path / "snapshots" / "order.safetensors"
    whole = path.read_bytes()
    train(network(), rows_of(), SGD, seed=1, folder=tmp_path)
    with pytest.raises(RecordError, match=r"row order .* is not the one in the training record"):
        TrainingRecord.from_dict(record.to_dict(), folder=tmp_path)
    path.write_bytes(whole[:-4])
    with pytest.raises(RecordError, match=r"row order .* is damaged"):
        TrainingRecord.from_dict(record.to_dict(), folder=tmp_path)
    path.write_bytes(whole)
    assert TrainingRecord.from_dict(record.to_dict(), folder=tmp_path).order is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamw"}, "did you mean 'adam'"),
        ({"steps": 0}, "0 steps; give at least 1"),
        ({"lr": [0.1, 0.2]}, "2 learning rates and 3 steps"),
        ({"lr": float("nan")}, "must be finite"),
        ({"lr": [0.1, -0.1, 0.1]}, ">= 0"),
        ({"lr": 0.0}, "not all 0"),
        ({"momentum": 1.0}, "momentum of the training record is 1.0"),
        ({"weight_decay": -0.1}, "weight decay of the training record is -0.1"),
        ({"order": BatchOrder.from_batches([["a"]])}, "1 batches and 3 steps"),
    ],
)
def test_values_that_can_not_be_meant_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(RecordError, match=message):
        TrainingRecord(**({"optimizer": "sgd", "lr": 0.1, "steps": 3} | options))


def test_rates_may_be_any_sequence_of_numbers():
    # rejects integer rates kept as integers
    for rates in ([1, 0, 1], (1.0, 0.0, 1.0), np.array([1, 0, 1]), torch.tensor([1.0, 0.0, 1.0])):
        found = TrainingRecord(optimizer="sgd", lr=rates, steps=3).rates()  # type: ignore[arg-type]
        assert found.dtype == np.float64
        assert found.tolist() == [1.0, 0.0, 1.0]


def test_another_version_and_a_missing_value_are_refused():
    whole = TrainingRecord(optimizer="sgd", lr=0.1, steps=3).to_dict()
    with pytest.raises(RecordError, match=r"version 2; this release reads version 1"):
        TrainingRecord.from_dict(whole | {"version": 2})
    for key in set(whole) - {"version"}:
        with pytest.raises(RecordError, match=f"damaged.*{key}"):
            TrainingRecord.from_dict({k: v for k, v in whole.items() if k != key})
