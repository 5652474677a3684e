"""The denoiser: its noise levels, its rows, its sampler against a denoiser that knows the answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.models import Denoiser, build_model, mixed, noised_rows, sample_images


def images(n=5):
    x = torch.randn(n, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    return Rows.from_tensors(x, torch.zeros(n, dtype=torch.long), ids=[f"im{i}" for i in range(n)])


@pytest.mark.parametrize("noise", ["shared", "row"])
def test_rows_are_mixed_images_labelled_with_their_noise(noise):
    # rejects sine and cosine swapped, the angle pi t, labels that are not the noise mixed in
    rows = noised_rows(images(), 0.3, noise=noise)
    inputs, labels = rows.batch(torch.arange(5))
    x = images().batch(torch.arange(5))[0].flatten(1)
    expected = math.cos(0.15 * math.pi) * x + math.sin(0.15 * math.pi) * labels
    torch.testing.assert_close(inputs[:, :6], expected)
    assert inputs[:, 6].tolist() == pytest.approx([0.3] * 5)
    assert rows.ids == images().ids
    assert bool((labels[0] == labels[1]).all()) == (noise == "shared")


def test_noise_depends_on_seed_level_and_row_only():
    one = noised_rows(images(), 0.3, noise="row").labels
    assert torch.equal(noised_rows(images().at(torch.tensor([3, 1])), 0.3, noise="row").labels, one[[3, 1]])
    assert not torch.equal(noised_rows(images(), 0.3, noise="row", seed=1).labels, one)
    assert not torch.equal(noised_rows(images(), 0.4, noise="row").labels, one)
    shared = noised_rows(images(), 0.3).labels
    assert not torch.equal(noised_rows(images(), 0.4).labels, shared)
    assert not torch.equal(noised_rows(images(), 0.3, seed=1).labels, shared)


def test_noise_is_standard_normal():
    x = torch.zeros(2000, 4)
    labels = noised_rows((x, torch.zeros(2000, dtype=torch.long)), 0.5, noise="row").labels
    assert float(labels.mean()) == pytest.approx(0, abs=0.05)
    assert float(labels.std()) == pytest.approx(1, abs=0.05)


class OneImage(nn.Module):
    """The best denoiser of data that are one image."""

    def __init__(self, image):
        super().__init__()
        self.image = nn.Parameter(image)
        self.seen, self.noises = [], []

    def forward(self, rows):
        assert not self.training
        t = rows[:, -1:]
        self.seen.append(float(t[0]))
        self.noises.append((rows[:, :-1] - (0.5 * math.pi * t).cos() * self.image) / (0.5 * math.pi * t).sin())
        return self.noises[-1]


def test_the_sampler_gives_the_image_of_a_denoiser_that_knows_it():
    # rejects signs and levels of a step swapped, a last step that stops above 0, noise added or lost on the way
    model = OneImage(torch.tensor([0.5, -0.7, 0.1], dtype=torch.float64)).train()
    out = sample_images(model, 4, 3, steps=5)
    torch.testing.assert_close(out, model.image.detach().expand(4, 3))
    assert model.seen == pytest.approx([0.9, 0.72, 0.54, 0.36, 0.18])
    for noise in model.noises:
        torch.testing.assert_close(noise, model.noises[0])
    assert model.training
    clipped = sample_images(model, 1, 3, steps=5, limit=0.4)
    assert clipped[0].tolist() == pytest.approx([0.4, -0.4, 0.1])


def test_a_step_keeps_the_predicted_noise():
    # a net without weights predicts no noise: one step from t to s takes x_t to (x_t / cos t) cos s, by hand
    model = Denoiser(pixels=2, width=3, blocks=1)
    for p in model.parameters():
        nn.init.zeros_(p)
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(5))
    out = sample_images(model, 3, 2, steps=1, seed=5, limit=1e9)
    torch.testing.assert_close(out, start / math.cos(0.25 * math.pi))


def test_the_net_depends_on_the_level_and_is_known_by_name():
    model = build_model("denoiser", pixels=4, width=8, blocks=2)
    assert isinstance(model, Denoiser)
    x, e = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0))
    row = mixed(x, e, torch.tensor([0.5]))
    outputs = model(torch.cat([row, row + torch.tensor([0.0, 0.0, 0.0, 0.0, 0.1])]))
    assert outputs.shape == (2, 4)
    assert not torch.allclose(outputs[0], outputs[1])


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="level is 0"):
        noised_rows(images(), 0)
    with pytest.raises(InputError, match="unknown noise 'rows'; did you mean 'row'"):
        noised_rows(images(), 0.5, noise="rows")
    pairs = (torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(InputError, match="give images, one tensor for each row"):
        noised_rows(Rows.from_tensors(pairs, torch.tensor([0, 1])), 0.5)
    with pytest.raises(InputError, match="steps is 0"):
        sample_images(Denoiser(2, 3), 1, 2, steps=0)
    with pytest.raises(InputError, match="count is 0"):
        sample_images(Denoiser(2, 3), 0, 2)
