import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from detect_cases import model_of, rows_of
from torch import nn

from unlearn.curvature import weights_digest
from unlearn.data import Rows, load_data, symmetric_noise
from unlearn.detect import out_of_sample, out_of_sample_logits, ranking_quality, suggest_labels
from unlearn.detect.out_of_sample import _folds
from unlearn.errors import InputError, MissingExtraError
from unlearn.models import build_model
from unlearn.predict import predict
from unlearn.training import TrainSettings, train

SETTINGS = TrainSettings(epochs=3, batch_size=4)


def test_no_row_is_judged_by_a_model_that_saw_it():
    inputs = rows_of(9).batch(torch.arange(9))[0]
    rows = Rows.from_tensors(inputs, torch.zeros(9, dtype=torch.long), classes=3)
    model, whole = model_of("mlp"), out_of_sample_logits(model_of("mlp"), rows, SETTINGS, folds=9)
    for i, row in enumerate(rows.ids):  # as many folds as rows: leave-one-out, by hand
        ordered = rows.only(sorted(rows.ids)).without([row])
        alone, _ = train(model, ordered, SETTINGS, seed=0)
        torch.testing.assert_close(predict(alone, rows.only([row]))[0], whole[i], rtol=1e-10, atol=1e-12)


def test_scores_are_one_minus_the_confidence():
    model, rows = model_of("mlp"), rows_of(12)
    logits = out_of_sample_logits(model, rows, SETTINGS, folds=3)
    scores = out_of_sample(model, rows, SETTINGS, folds=3, through="plain")
    p = logits.softmax(1)[torch.arange(12), rows.labels]
    np.testing.assert_allclose(scores.values, 1 - p.numpy(), rtol=1e-10)
    assert scores.method == "out-of-sample"
    assert scores.ids == rows.ids
    assert scores.options == {
        "folds": 3,
        "seed": 0,
        "epochs": 3,
        "through": "plain",
        "cost_epochs": pytest.approx(2 * 3 + 1 / 3),
    }


def test_confidence_near_one_keeps_its_digits():
    # 1 - p would be 0 for both rows, and their order lost
    inputs = torch.tensor([[1.0], [1.1]]).repeat(6, 1)
    rows = Rows.from_tensors(inputs, torch.zeros(12, dtype=torch.long), classes=2)
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[50.0], [0.0]]))
    settings = TrainSettings(lr=1e-6, weight_decay=0.0, epochs=1, batch_size=4)
    values = out_of_sample(model, rows, settings, folds=2, through="plain").values
    np.testing.assert_allclose(values[:2], [np.exp(-50), np.exp(-55)], rtol=1e-3)


def test_labels_are_spread_evenly_over_the_folds():
    rows = rows_of(31)
    folds = _folds(rows, 4, seed=0)
    assert sorted(torch.cat(folds).tolist()) == list(range(31))
    counts = torch.stack([rows.labels[fold].bincount(minlength=3) for fold in folds])
    assert (counts.amax(0) - counts.amin(0) <= 1).all()


def test_order_and_batch_size_change_nothing():
    # training shuffles positions: folds and batches must come from ids
    model, rows = model_of("mlp"), rows_of(20)
    forth = out_of_sample(model, rows, SETTINGS, folds=4)
    back = out_of_sample(model, rows.at(torch.arange(19, -1, -1)), SETTINGS, folds=4, batch_size=3)
    np.testing.assert_allclose(back.values[::-1], forth.values, rtol=1e-9)


def test_the_seed_decides():
    model, rows = model_of("mlp"), rows_of(20)
    first, again, other = (out_of_sample(model, rows, SETTINGS, seed=seed).values for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_the_model_is_left_as_found():
    model, rows = model_of("mlp"), rows_of(12)
    before, seed = weights_digest(model), torch.get_rng_state()
    out_of_sample(model, rows, SETTINGS, folds=2)
    assert weights_digest(model) == before
    assert torch.equal(seed, torch.get_rng_state())


def test_mislabelled_rows_score_higher_and_get_their_label_back():
    noisy = symmetric_noise(load_data("digits"), 0.1, seed=0)
    start, settings = build_model("mlp", inputs=64, widths=[32]), TrainSettings(epochs=15, batch_size=64)
    auroc = ranking_quality(out_of_sample(start, noisy, settings, folds=2), noisy)["auroc"]
    assert auroc is not None
    assert auroc > 0.97
    suggested = suggest_labels(noisy, logits=out_of_sample_logits(start, noisy, settings, folds=2))
    wrong = (noisy.labels != noisy.truth).nonzero().flatten().tolist()
    assert sum(suggested[noisy.ids[i]] == int(noisy.truth[i]) for i in wrong) > 0.9 * len(wrong)


def test_cleanlab_is_asked_where_it_is_installed(monkeypatch):
    # a stand-in with the signature of cleanlab 2: labels and probabilities in, quality (larger is better) out
    package, rank = ModuleType("cleanlab"), ModuleType("cleanlab.rank")
    package.__version__ = "2.9"

    def quality(labels, pred_probs, *, method, adjust_pred_probs):
        assert (method, adjust_pred_probs) == ("self_confidence", False)
        np.testing.assert_allclose(pred_probs.sum(1), 1)
        return pred_probs[np.arange(len(labels)), labels]

    rank.get_label_quality_scores = quality
    monkeypatch.setitem(sys.modules, "cleanlab", package)
    monkeypatch.setitem(sys.modules, "cleanlab.rank", rank)
    model, rows = model_of("mlp"), rows_of(12)
    plain = out_of_sample(model, rows, SETTINGS, folds=3, through="plain")
    for through in ("auto", "cleanlab"):
        scores = out_of_sample(model, rows, SETTINGS, folds=3, through=through)
        assert scores.options["through"] == "cleanlab 2.9"
        np.testing.assert_allclose(scores.values, plain.values, rtol=1e-9)


def test_without_cleanlab_the_options_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    model, rows = model_of("mlp"), rows_of(12)
    assert out_of_sample(model, rows, SETTINGS, folds=2).options["through"] == "plain"
    with pytest.raises(MissingExtraError, match="pip install cleanlab, or pass through='plain'"):
        out_of_sample(model, rows, SETTINGS, folds=2, through="cleanlab")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds is 1; give from 2 to the 12 rows"),
        ({"folds": 13}, "folds is 13"),
        ({"through": "clean"}, "did you mean 'cleanlab'"),
        ({"batch_size": 0}, "batch_size is 0; give at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        out_of_sample(model_of("mlp"), rows_of(12), SETTINGS, **options)


def test_numbers_are_refused():
    rows = Rows.from_tensors(torch.zeros(4, 12).double(), torch.zeros(4))
    with pytest.raises(InputError, match="has numbers for labels; out-of-sample confidence is of classes only"):
        out_of_sample(model_of("mlp"), rows, SETTINGS, folds=2)
