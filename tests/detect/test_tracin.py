import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from detect_cases import gradients, model_of, rows_of
from torch import nn

from unlearn.curvature import dot, loss_gradient, weights_digest
from unlearn.data import load_data, symmetric_noise
from unlearn.detect import ranking_quality, tracin
from unlearn.errors import InputError, RecordError
from unlearn.models import build_model
from unlearn.training import TrainingRecord, TrainSettings, train

SETTINGS = TrainSettings(lr=0.1, epochs=3, batch_size=4, schedule="step", step_epochs=1)


@pytest.fixture(params=["mlp", "cnn", "grouped", "tokens", "frozen-bias"])
def trained(request, tmp_path):
    rows = rows_of()
    model, record = train(model_of(request.param), rows, SETTINGS, folder=tmp_path, snapshot_epochs=[0, 1, 2])
    return model, rows, record


def at(model, record, step):
    """Return the model at a snapshot."""
    there = copy.deepcopy(model)
    record.snapshot(step).restore(there)
    return there


# three steps an epoch; the rates of epochs 1 to 3 are 0.1, 0.01 and 0.001
RATES = {3: 0.1, 6: 0.01, 9: 0.001}


def test_self_influence_equals_the_sum_by_hand(trained):
    # rejects equal weights, the rate of the next step, the snapshot before training, and final weights only
    model, rows, record = trained
    scores = tracin(model, rows, record=record)
    expected = sum(
        rate * np.array([dot(g, g) for g in gradients(at(model, record, step), rows)]) for step, rate in RATES.items()
    )
    np.testing.assert_allclose(scores.values, expected, rtol=1e-10)
    assert scores.method == "tracin"
    assert scores.options["snapshots"] == [3, 6, 9]
    assert scores.options["rates"] == pytest.approx([0.1, 0.01, 0.001])
    assert scores.options["cost_epochs"] == 3


def test_validation_equals_the_mean_over_pairs_by_hand(trained):
    model, rows, record = trained
    trusted = rows_of(5, seed=7)
    scores = tracin(model, rows, record=record, validation=trusted)
    expected = np.zeros(len(rows))
    for step, rate in RATES.items():
        there = at(model, record, step)
        for query in gradients(there, trusted):
            expected -= rate * np.array([dot(query, g) for g in gradients(there, rows)]) / len(trusted)
    np.testing.assert_allclose(scores.values, expected, rtol=1e-9, atol=1e-14)
    assert scores.method == "tracin-validation"
    assert scores.options["validation_rows"] == 5
    assert scores.options["cost_epochs"] == pytest.approx(3 * (1 + 5 / 11))


def test_harmful_is_positive(tmp_path):
    # one small step of gradient descent on a row with a positive score must raise the validation loss
    rows, trusted = rows_of(30), rows_of(20, seed=7)
    model, record = train(model_of("mlp"), rows, SETTINGS, folder=tmp_path)
    scores = tracin(model, rows, record=record, validation=trusted)

    def loss_after_a_step_on(row):
        there = copy.deepcopy(model)
        step = loss_gradient(there, rows.only([row]))
        with torch.no_grad():
            for name, parameter in there.named_parameters():
                parameter -= 1e-4 * step[name]
            inputs, labels = trusted.batch(torch.arange(20))
            return nn.functional.cross_entropy(there(inputs), labels).item()

    inputs, labels = trusted.batch(torch.arange(20))
    before = nn.functional.cross_entropy(model(inputs), labels).item()
    assert loss_after_a_step_on(scores.top(1)[0][0]) > before > loss_after_a_step_on(scores.top(30)[-1][0])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_and_order_change_nothing(trained, batch_size):
    model, rows, record = trained
    back = rows.at(torch.arange(len(rows) - 1, -1, -1))
    for validation, turned in ((None, None), (rows, back)):
        whole = tracin(model, rows, record=record, validation=validation)
        parts = tracin(model, back, record=record, validation=turned, batch_size=batch_size)
        np.testing.assert_allclose(parts.values[::-1], whole.values, rtol=1e-9, atol=1e-14)


def test_chosen_snapshots_and_layers(trained):
    model, rows, record = trained
    parts = [tracin(model, rows, record=record, steps=[step]).values for step in RATES]
    np.testing.assert_allclose(tracin(model, rows, record=record).values, sum(parts), rtol=1e-12)
    last = list(dict(model.named_parameters()))[-1].rsplit(".", 1)[0]
    without = tracin(model, rows, record=record, skip=last)
    assert (without.values < tracin(model, rows, record=record).values).all()


def test_the_model_is_left_as_found(trained):
    model, rows, record = trained
    model.train()
    before = weights_digest(model)
    tracin(model, rows, record=record, validation=rows)
    assert weights_digest(model) == before
    assert model.training


def test_mislabelled_rows_score_higher(tmp_path):
    noisy = symmetric_noise(load_data("digits"), 0.1, seed=0)
    start = build_model("mlp", inputs=64, widths=[32])
    model, record = train(start, noisy, TrainSettings(epochs=8), folder=tmp_path, snapshot_epochs=[2, 5])
    auroc = ranking_quality(tracin(model, noisy, record=record), noisy)["auroc"]
    assert auroc is not None
    assert auroc > 0.97


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": []}, InputError, "name at least one snapshot"),
        ({"steps": [3, 3]}, InputError, r"each once \(recorded: \[3, 6, 9\]\)"),
        ({"steps": [0]}, RecordError, r"no snapshot that a step led to was recorded at 0; there are \[3, 6, 9\]"),
        ({"steps": [4]}, RecordError, "recorded at 4"),
        ({"batch_size": 0}, InputError, "batch_size is 0; give at least 1"),
        ({"skip": "nothing*"}, InputError, "matches no module or parameter"),
    ],
)
@pytest.mark.parametrize("trained", ["mlp"], indirect=True)
def test_bad_options(trained, options, error, message):
    model, rows, record = trained
    with pytest.raises(error, match=message):
        tracin(model, rows, record=record, **options)


@pytest.mark.parametrize("trained", ["mlp"], indirect=True)
def test_a_record_without_snapshots_is_refused(trained):
    model, rows, record = trained
    with pytest.raises(RecordError, match="the training record has no snapshots after the first step; train with"):
        tracin(model, rows, record=TrainingRecord(optimizer="sgd", lr=0.1, steps=9))
    with pytest.raises(RecordError, match="no snapshots after the first step"):
        tracin(model, rows, record=replace(record, snapshots={0: record.snapshots[0]}))
    with pytest.raises(RecordError, match="does not fit the model"):
        tracin(model_of("tokens"), rows, record=record)
