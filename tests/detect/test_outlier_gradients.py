from importlib import import_module

import numpy as np
import pytest
import torch
from detect_cases import CASES, gradients, model_of, rows_of
from torch import nn

from unlearn.curvature import find_layers, weights_digest
from unlearn.data import Rows, load_data, symmetric_noise
from unlearn.detect import outlier_gradients, ranking_quality
from unlearn.detect.gradient_norms import absolute_sums, squared_norms
from unlearn.errors import InputError, UnsupportedLayerError
from unlearn.models import build_model
from unlearn.training import TrainSettings, train


def slow(model, rows, name):
    """Return each row's gradient of one layer, flat, one backward pass each."""
    (layer,) = [layer for layer in find_layers(model, rows).layers if layer.name == name]
    return torch.stack([layer.block(g).flatten() for g in gradients(model, rows)])


@pytest.mark.parametrize(("detector", "order"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("case", CASES)
def test_norms_equal_one_backward_pass_for_each_row(case, detector, order):
    # rejects a squared norm, the other norm, all layers, another layer than the last, and a bias left out
    model, rows = model_of(case), rows_of()
    scores = outlier_gradients(model, rows, detector=detector)
    expected = slow(model, rows, scores.options["layer"]).norm(p=order, dim=1)
    np.testing.assert_allclose(scores.values, expected.numpy(), rtol=1e-10)
    assert scores.method == f"outlier-gradients-{detector}"
    assert scores.ids == rows.ids


@pytest.mark.parametrize("positions", [1, 4])
def test_norms_of_factors_with_groups_and_positions(positions):
    # with several positions the product of the factors' norms is only a bound
    draw = torch.Generator().manual_seed(0)
    a, d = (torch.randn(2, 5, positions, k, generator=draw, dtype=torch.float64) for k in (3, 4))
    whole = (d.mT @ a).transpose(0, 1).flatten(1)
    torch.testing.assert_close(absolute_sums(a, d), whole.abs().sum(1))
    torch.testing.assert_close(squared_norms(a, d), whole.square().sum(1))


def test_a_last_layer_with_positions_is_exact():
    model = nn.Sequential(nn.Unflatten(1, (4, 3)), nn.Linear(3, 3), nn.Flatten(), nn.AvgPool1d(4)).double()
    rows = rows_of()
    scores = outlier_gradients(model, rows, detector="l2")
    np.testing.assert_allclose(scores.values, slow(model, rows, "1").norm(dim=1).numpy(), rtol=1e-10)


def test_the_last_layer_is_the_one_called_last():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.first = nn.Linear(4, 3), nn.Linear(12, 4)

        def forward(self, x):
            return self.head(self.first(x).tanh())

    rows = rows_of()
    assert outlier_gradients(Backwards().double(), rows, detector="l2").options["layer"] == "head"
    assert outlier_gradients(Backwards().double(), rows, detector="l2", skip="head").options["layer"] == "first"


@pytest.mark.parametrize("max_features", [10_000, 9])
def test_the_forest_sees_the_gradients(max_features):
    # a row whose gradient is like no other's is the first, with and without projection
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 12, generator=draw, dtype=torch.float64) * 0.01
    inputs[17] = 3.0
    rows = Rows.from_tensors(inputs, torch.zeros(60, dtype=torch.long), classes=3)
    model = nn.Linear(12, 3, bias=False).double()
    scores = outlier_gradients(model, rows, max_features=max_features)
    assert scores.top(1)[0][0] == "17"
    assert scores.values.min() > 0
    assert scores.values.max() < 1
    assert scores.options["features"] == 36
    assert scores.options["projected_to"] == (None if max_features > 36 else 9)


def test_the_forest_does_not_mind_the_scale_of_gradients():
    # without a common scale all features of a well-fitted model would be constant to scikit-learn, and scores equal
    rows = rows_of(80)
    tiny = Rows.from_tensors(rows.batch(torch.arange(80))[0] * 1e-9, rows.labels, ids=rows.ids, classes=3)
    model = nn.Linear(12, 3, bias=False).double()
    nn.init.zeros_(model.weight)
    small, large = (outlier_gradients(model, x, trees=20).values for x in (tiny, rows))
    assert len(np.unique(large)) > 40
    np.testing.assert_allclose(small, large, rtol=1e-6)


@pytest.mark.parametrize("detector", ["isolation-forest", "l1", "l2"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_and_order_change_nothing(detector, batch_size):
    model, rows = model_of("cnn"), rows_of(40)
    whole = outlier_gradients(model, rows, detector=detector, trees=20, batch_size=40)
    turned = rows.at(torch.arange(39, -1, -1))
    back = outlier_gradients(model, turned, detector=detector, trees=20, batch_size=batch_size)
    np.testing.assert_allclose(back.values[::-1], whole.values, rtol=1e-9)


def test_a_large_data_set_grows_the_forest_on_a_sample(monkeypatch):
    # drawn by position in the order given, rows and trees' shares of them would be others in another order
    module = import_module("unlearn.detect.outlier_gradients")
    monkeypatch.setattr(module, "POOL_ROWS", 20)
    monkeypatch.setattr(module, "_TREE_ROWS", 8)
    model, rows = model_of("mlp"), rows_of(40)
    forth = outlier_gradients(model, rows, trees=20)
    assert forth.options["pool_rows"] == 20
    assert forth.options["cost_epochs"] == pytest.approx((1 + 0.5) / 3)
    back = outlier_gradients(model, rows.at(torch.arange(39, -1, -1)), trees=20)
    np.testing.assert_allclose(back.values[::-1], forth.values, rtol=1e-9)


def test_the_seed_decides():
    model, rows = model_of("mlp"), rows_of(40)
    first, again, other = (outlier_gradients(model, rows, trees=20, seed=seed).values for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_mislabelled_rows_score_higher():
    noisy = symmetric_noise(load_data("digits"), 0.1, seed=0)
    model, _ = train(build_model("mlp", inputs=64, widths=[32]), noisy, TrainSettings(epochs=8))
    for detector, bar in (("isolation-forest", 0.93), ("l1", 0.97), ("l2", 0.97)):
        auroc = ranking_quality(outlier_gradients(model, noisy, detector=detector), noisy)["auroc"]
        assert auroc is not None
        assert auroc > bar


def test_the_model_is_left_as_found():
    model, rows = nn.Sequential(model_of("mlp"), nn.Dropout(0.5)), rows_of()
    model.train()
    before, seed = weights_digest(model), torch.get_rng_state()
    np.random.seed(3)
    numpy_seed = np.random.get_state()[1].copy()
    outlier_gradients(model, rows, max_features=5, trees=5)
    assert weights_digest(model) == before
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(seed, torch.get_rng_state())
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_seed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": "isolation"}, "did you mean 'isolation-forest'"),
        ({"max_features": 0}, "max_features is 0; give at least 1"),
        ({"trees": 0}, "trees is 0; give at least 1"),
        ({"batch_size": 0}, "batch_size is 0; give at least 1"),
        ({"skip": ["nothing*"]}, "matches no module or parameter"),
        ({"task": "clasification"}, "did you mean 'classification'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        outlier_gradients(model_of("mlp"), rows_of(), **options)


def test_a_model_without_matrix_products_is_refused():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(12, dtype=torch.float64))

        def forward(self, x):
            return (x * self.scale)[:, :3]

    with pytest.raises(UnsupportedLayerError, match=r"none of the layers \[''\] is a matrix product"):
        outlier_gradients(Scaled(), rows_of())
