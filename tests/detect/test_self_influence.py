import numpy as np
import pytest
import torch
from detect_cases import CASES, gradients, model_of, rows_of
from torch import nn

from unlearn.curvature import dot, fit_curvature, weights_digest
from unlearn.data import Rows, load_data, symmetric_noise
from unlearn.detect import ranking_quality, self_influence
from unlearn.errors import InputError, StaleCurvatureError
from unlearn.models import build_model
from unlearn.training import TrainSettings, train


def slow(model, rows, curvature, damping):
    found = gradients(model, rows)
    return np.array([dot(g, curvature.solve(g, damping=damping)) for g in found])


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "diagonal"])
@pytest.mark.parametrize("case", CASES)
def test_equals_one_solve_for_each_row(case, kind):
    # rejects the empirical label, 1/n, a square root, damping without weight decay, and a norm in place of the form
    model, rows = model_of(case), rows_of()
    curvature = fit_curvature(model, rows, kind=kind)
    scores = self_influence(model, rows, curvature=curvature, damping=0.03, weight_decay=0.02)
    np.testing.assert_allclose(scores.values, slow(model, rows, curvature, 0.05), rtol=1e-10)
    assert (scores.values > 0).all()
    assert scores.ids == rows.ids
    assert scores.method == "self-influence"


@pytest.mark.parametrize("case", ["mlp", "cnn"])
def test_float32_is_within_1e5_of_float64(case):
    wide, rows = model_of(case), rows_of()
    narrow, narrow_rows = model_of(case, torch.float32), rows_of(dtype=torch.float32)
    wide.load_state_dict(narrow.state_dict())
    scores = self_influence(narrow, narrow_rows, damping=0.05)
    np.testing.assert_allclose(scores.values, self_influence(wide, rows, damping=0.05).values, rtol=1e-4)
    curvature = fit_curvature(narrow, narrow_rows)
    by_row = slow(narrow, narrow_rows, curvature, 0.05)
    np.testing.assert_allclose(
        self_influence(narrow, narrow_rows, curvature=curvature, damping=0.05).values, by_row, rtol=1e-5
    )


@pytest.mark.parametrize("case", ["mlp", "cnn"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_changes_nothing(case, batch_size):
    # gradients of a batch's mean loss would be smaller by the batch size, unequally in the last batch
    model, rows = model_of(case), rows_of()
    whole, parts = (self_influence(model, rows, batch_size=size) for size in (len(rows), batch_size))
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-9)


def test_order_of_rows_changes_nothing():
    model, rows = model_of("mlp"), rows_of()
    order = torch.arange(len(rows)).flip(0)
    curvature = fit_curvature(model, rows)
    forth, back = (self_influence(model, x, curvature=curvature) for x in (rows, rows.at(order)))
    np.testing.assert_allclose(back.values, forth.values[::-1], rtol=1e-10)


def test_gradients_are_at_the_given_labels():
    # labels sampled from the model, as in the factors, would not see a label change
    model, rows = model_of("mlp"), rows_of()
    curvature = fit_curvature(model, rows)
    label = int(rows.labels[0])
    changed = rows.relabelled({rows.ids[0]: (label + 1) % 3})
    before, after = (self_influence(model, x, curvature=curvature, damping=0.1).values for x in (rows, changed))
    assert after[0] != pytest.approx(before[0], rel=1e-3)
    np.testing.assert_array_equal(after[1:], before[1:])


def test_default_damping_is_a_tenth_of_the_mean_eigenvalue():
    model, rows = model_of("mlp"), rows_of()
    curvature = fit_curvature(model, rows, kind="kfac")
    scores = self_influence(model, rows, curvature=curvature, weight_decay=0.5)
    total = sum(block.eigenvalues.sum() for block in curvature.blocks.values())
    mean = float(total / sum(p.numel() for p in model.parameters()))
    assert scores.options == {
        "kind": "kfac",
        "damping": pytest.approx(0.1 * mean),
        "damping_share": pytest.approx(0.1),
        "weight_decay": 0.5,
    }
    np.testing.assert_allclose(scores.values, slow(model, rows, curvature, 0.5 + 0.1 * mean), rtol=1e-10)


def test_curvature_is_fitted_where_missing():
    model, rows = model_of("mlp"), rows_of()
    fitted = self_influence(model, rows, curvature=fit_curvature(model, rows))
    np.testing.assert_array_equal(self_influence(model, rows).values, fitted.values)
    assert self_influence(model, rows).options["kind"] == "ekfac"


def test_regression_has_its_own_gradient():
    # one Linear layer with squared error: G = A exactly, g = r a, so the score is r^2 a^T (A + d)^-1 a
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(9, k, generator=draw, dtype=torch.float64) for k in (3, 1))
    model = nn.Linear(3, 1, bias=False).double()
    curvature = fit_curvature(model, (x, y), task="regression", kind="kfac", fisher="exact")
    scores = self_influence(model, (x, y), curvature=curvature, damping=0.2, task="regression")
    r = (model(x) - y).detach().squeeze(1)
    A = x.T @ x / 9 + 0.2 * torch.eye(3, dtype=torch.float64)
    by_hand = r.square() * (x * torch.linalg.solve(A, x.T).T).sum(1)
    np.testing.assert_allclose(scores.values, by_hand.numpy(), rtol=1e-10)


def test_mislabelled_rows_score_higher():
    # a score with the wrong sign would have an AUROC near 0, one of the sampled label near 0.5
    noisy = symmetric_noise(load_data("digits"), 0.1, seed=0)
    model, _ = train(build_model("mlp", inputs=64, widths=[32]), noisy, TrainSettings(epochs=8))
    scores = self_influence(model, noisy)
    wrong = (noisy.labels != noisy.truth).numpy()
    assert scores.values[wrong].mean() > 3 * scores.values[~wrong].mean()
    auroc = ranking_quality(scores, noisy)["auroc"]
    assert auroc is not None
    assert auroc > 0.95


def test_the_model_is_left_as_found():
    model, rows = nn.Sequential(model_of("mlp"), nn.Dropout(0.5)), rows_of()
    model.train()
    before, seed = weights_digest(model), torch.get_rng_state()
    first, second = self_influence(model, rows), self_influence(model, rows)
    np.testing.assert_array_equal(first.values, second.values)
    assert weights_digest(model) == before
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(seed, torch.get_rng_state())


def test_factors_of_other_weights_are_refused():
    rows = rows_of()
    curvature = fit_curvature(model_of("mlp"), rows)
    with pytest.raises(StaleCurvatureError, match="belongs to weights"):
        self_influence(model_of("mlp", seed=5), rows, curvature=curvature)


def test_factors_of_another_task_are_refused():
    model, rows = model_of("mlp"), rows_of()
    curvature = fit_curvature(model, (rows.batch(torch.arange(11))[0], torch.zeros(11, 3).double()), task="regression")
    with pytest.raises(StaleCurvatureError, match="fitted for regression, this is classification"):
        self_influence(model, rows, curvature=curvature)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": -0.1}, "damping is -0.1"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"weight_decay": float("inf")}, "weight_decay is inf"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"task": "clasification"}, "did you mean 'classification'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        self_influence(model_of("mlp"), rows_of(), **options)


def test_no_damping_needs_an_inverse():
    model, rows = model_of("mlp"), rows_of()  # one row of outputs is dependent: softmax gradients sum to 0
    curvature = fit_curvature(model, rows, kind="kfac")
    curvature.blocks["0"].eigenvalues[0, 0, 0] = 0
    with pytest.raises(InputError, match="has no inverse; give damping > 0"):
        self_influence(model, rows, curvature=curvature, damping=0.0)
    assert len(self_influence(model, rows, curvature=curvature, damping=0.0, weight_decay=0.1)) == 11


def test_classes_must_fit_the_model():
    rows = rows_of()
    more = Rows.from_tensors(rows.batch(torch.arange(11))[0], rows.labels + 1)
    model = model_of("mlp")
    with pytest.raises(InputError, match="label 3 is outside the model's 3 classes"):
        self_influence(model, more, curvature=fit_curvature(model, rows))
