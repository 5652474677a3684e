"""Models by name and users' own factories."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from unlearn.errors import InputError
from unlearn.models import build_model, cnn, mlp, tinynet


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in model.parameters()]


def test_mlp_has_the_stated_widths_and_no_hidden_layer_when_asked():
    model = mlp(12, 4, [7, 5])
    assert shapes(model) == [(7, 12), (7,), (5, 7), (5,), (4, 5), (4,)]
    assert model(torch.zeros(3, 1, 3, 4)).shape == (3, 4)
    assert shapes(mlp(12, 4, [])) == [(4, 12), (4,)]
    assert isinstance(mlp(12, 4, [7])[-1], nn.Linear)  # rejects a ReLU after the head


@pytest.mark.parametrize("size", [7, 8, 28])
def test_cnn_fits_odd_and_even_sizes_and_has_no_normalisation(size: int):
    # rejects a head sized by size // 4, which odd sizes do not fit
    model = cnn(3, size, 4, [2, 5], 6)
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 4)
    assert not list(model.buffers())
    kinds = {type(module) for module in model} - {nn.ReLU, nn.Flatten}
    assert kinds == {nn.Conv2d, nn.Linear}


@pytest.mark.parametrize("size", [7, 28])
def test_tinynet_is_four_strided_convolutions_and_a_head(size: int):
    model = tinynet(1, size, 5)
    assert [layer.out_channels for layer in model if isinstance(layer, nn.Conv2d)] == [32, 64, 128, 256]
    assert {layer.stride for layer in model if isinstance(layer, nn.Conv2d)} == {(2, 2)}
    assert sum(isinstance(layer, nn.Linear) for layer in model) == 1
    assert model(torch.zeros(2, 1, size, size)).shape == (2, 5)
    assert not list(model.buffers())
    assert shapes(build_model("tinynet", size=size, classes=5)) == shapes(model)


def test_initial_weights_depend_on_the_seed_only():
    # rejects drawing from the global generator
    torch.manual_seed(1)
    one = build_model("mlp", seed=3, inputs=4, widths=[5])
    torch.manual_seed(2)
    two, other = (build_model("mlp", seed=seed, inputs=4, widths=[5]) for seed in (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one[1].weight, other[1].weight)  # type: ignore[index]


def test_the_global_generator_is_left_as_found():
    before = torch.get_rng_state()
    build_model("cnn", size=8)
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_names_and_options_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'mlp'"):
        build_model("mpl")
    with pytest.raises(InputError, match=r"has no option 'width'; did you mean 'widths'\?"):
        build_model("mlp", width=[3])


def test_an_option_of_the_wrong_kind_is_one_clear_line():
    # rejects a bare TypeError or RuntimeError from inside torch
    for options in ({"widths": 3}, {"classes": -1}, {"inputs": "many"}):
        with pytest.raises(InputError, match="model 'mlp' can not be built with"):
            build_model("mlp", **options)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "own_models_of_the_registry_test"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "def net(width, classes=2): return nn.Sequential(nn.Linear(3, width), nn.Linear(width, classes))\n"
        "def anything(**options): return nn.Linear(options['inputs'], 1)\n"
        "def numbers(): return [1, 2]\n"
        "constant = 5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_users_own_factory_is_built_under_the_seed(own: str):
    one, two = (build_model(f"{own}:net", seed=5, width=4) for _ in range(2))
    assert shapes(one) == [(4, 3), (4,), (2, 4), (2,)]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert shapes(build_model(f"{own}:anything", inputs=6)) == [(1, 6), (1,)]


def test_bad_factories_are_refused(own: str):
    with pytest.raises(InputError, match=r"returned list; a model factory returns a torch\.nn\.Module"):
        build_model(f"{own}:numbers")
    with pytest.raises(InputError, match="is int; give a function"):
        build_model(f"{own}:constant")
    with pytest.raises(InputError, match="can not import model"):
        build_model(f"{own}:nothing")
    with pytest.raises(InputError, match="can not import model 'no_such_module:f'"):
        build_model("no_such_module:f")
    with pytest.raises(InputError, match="can not import model ':f'"):
        build_model(":f")
    with pytest.raises(InputError, match=r"needs more options: missing a required argument: 'width'"):
        build_model(f"{own}:net")
    with pytest.raises(InputError, match=r"has no option 'widht'; did you mean 'width'"):
        build_model(f"{own}:net", widht=4)


def test_the_linear_head_scales_each_row_by_itself_and_keeps_zeros():
    """Rejects scaling by the longest row, which would let one row move the others, and 0 / 0."""
    head = build_model("linear", inputs=4, outputs=2, unit_rows=True)
    rows = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    outputs = head(rows)
    assert outputs.dtype == torch.float64
    torch.testing.assert_close(outputs[0], torch.tensor([0.6, 0.0, 0.0, 0.8]).double() @ head.weight.T)
    assert torch.equal(outputs[1], torch.zeros(2).double())
    assert shapes(head) == [(2, 4)]
    plain = build_model("linear", inputs=4, outputs=2)
    torch.testing.assert_close(plain(rows)[0], rows[0].flatten().double() @ plain.weight.T)
