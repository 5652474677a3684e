"""torchvision's vision transformer: every parameter covered, gradients those of one row alone, built again by seed."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, grad

from unlearn.curvature import find_layers, layer_gradients
from unlearn.data import as_rows
from unlearn.models import build_model
from unlearn.modes import evaluation
from unlearn.tasks import get_task
from unlearn.training import fresh_weights

models = pytest.importorskip("torchvision.models")


def test_gradients_of_rows_of_a_vision_transformer() -> None:
    # rejects a class token or position table that is not covered, and rows of the packed projections mixed up
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.VisionTransformer(8, 4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=3)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    model.double()
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = as_rows((images, torch.tensor([0, 1, 2, 1, 0])))
    layers, uncovered = find_layers(model, rows)
    assert uncovered == {}
    forms = {name: layer.form for layer in layers for name in layer.parameters}
    assert forms["encoder.layers.encoder_layer_0.self_attention.in_proj_weight"] == "factors"
    assert {forms["class_token"], forms["encoder.pos_embedding"]} == {"dense"}
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, image, label):
        return get_task("classification").loss(functional_call(model, weights, (image[None],)), label[None])[0]

    for positions, gradients in layer_gradients(model, rows, "classification", layers, 2):
        for k, row in enumerate(positions.tolist()):
            with evaluation(model):
                expected = grad(loss)(weights, images[row], rows.labels[row])
            for layer in layers:
                a, d = gradients[layer.name]
                torch.testing.assert_close(d[:, k].mT @ a[:, k], layer.block(expected), rtol=1e-8, atol=1e-10)


def test_models_of_torchvision_are_built_again_by_the_seed() -> None:
    # rejects reset_parameters alone, which leaves torchvision's own way to draw weights out
    model = build_model("shufflenet_v2_x1_0", seed=3, channels=1, classes=4)
    again, other = fresh_weights(model, 3), fresh_weights(model, 4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.conv1[0].weight, other.conv1[0].weight)
    assert other.conv1[0].weight.shape[1] == 1
