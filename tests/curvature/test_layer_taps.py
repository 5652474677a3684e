"""Per-sample gradients from taps against a backward pass for each sample; what is refused; what is left as found."""

from __future__ import annotations

import pytest
import torch
from curvature_cases import CASES, CLASSES, CLASSIFICATION, build, row_gradients
from torch import Tensor, nn

from unlearn.curvature import fit_curvature, gauss_newton, layer_gradients, loss_gradient
from unlearn.curvature.layers import find_layers
from unlearn.errors import InputError, UnsupportedLayerError


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_a_backward_pass_for_each_row(case: str, batch_size: int) -> None:
    model, rows = build(case)
    layers = find_layers(model).layers
    seen = []
    for positions, gradients in layer_gradients(model, rows, "classification", layers, batch_size):
        inputs, labels = rows.batch(positions)
        cotangent = CLASSIFICATION.output_gradient(model(inputs).detach(), labels)
        for k, position in enumerate(positions.tolist()):
            seen.append(position)
            expected = row_gradients(model, layers, inputs[k], cotangent[k])
            for name, (a, d) in gradients.items():
                assert a.shape[:3] == d.shape[:3]
                torch.testing.assert_close(d[:, k].mT @ a[:, k], expected[name], rtol=0, atol=1e-10)
    assert seen == list(range(len(rows)))


def test_loss_gradient_is_the_sum_over_rows() -> None:
    # a mean would differ by a factor of 9, a sum of batch means by the size of the last batch
    model, rows = build("conv-groups")
    inputs, labels = rows.batch(torch.arange(len(rows)))
    loss = nn.functional.cross_entropy(model(inputs), labels, reduction="sum")
    expected = torch.autograd.grad(loss, list(model.parameters()))
    found = loss_gradient(model, rows, batch_size=4)
    assert list(found) == [name for name, _ in model.named_parameters()]
    for part, right in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(part, right, rtol=1e-12, atol=1e-12)


def test_outputs_of_the_same_forward_pass_are_handed_on() -> None:
    model, rows = build("linear")
    seen = []
    stream = layer_gradients(
        model,
        rows,
        "classification",
        find_layers(model).layers,
        4,
        output_rows=lambda positions, outputs, labels: seen.append((positions, outputs, labels)),
    )
    assert len(list(stream)) == 3
    inputs, labels = rows.batch(torch.arange(len(rows)))
    torch.testing.assert_close(torch.cat([outputs for _, outputs, _ in seen]), model(inputs).detach())
    assert torch.equal(torch.cat([given for _, _, given in seen]), labels)


def test_a_layer_that_the_output_does_not_use_has_gradient_zero() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(5, CLASSES), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            return self.used(x)

    _, rows = build("linear", torch.float32)
    model = Unused()
    ((_, gradients),) = layer_gradients(model, rows, "classification", find_layers(model).layers)
    assert gradients["unused"][1].abs().sum() == 0
    assert gradients["used"][1].abs().sum() > 0


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 4, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.rnn(x[:, None])[0][:, -1]))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()).tanh())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.body(x)))


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.idle, self.head = nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x @ self.idle.weight)


class Folded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(1, 1), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.reshape(-1, 1)).reshape(-1, 5))


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


REFUSED = {
    "GRU": (Recurrent, [], r"layer 'rnn' \(GRU\).*covers.*pass skip=\['rnn'\]"),
    "LayerNorm": (Recurrent, ["rnn"], r"layer 'norm' \(LayerNorm\).*pass skip=\['norm'\]"),
    "tied": (Tied, [], r"'first\.weight' and 'second\.weight' are one tied parameter"),
    "tied, one skipped": (Tied, ["first"], r"'first\.weight' and 'second\.weight' are one tied parameter"),
    "twice": (Twice, [], r"layer 'body' is called twice.*skip=\['body'\]"),
    "idle": (Idle, [], r"layer 'idle' is not called.*skip=\['idle'\]"),
    "rows folded into another dimension": (Folded, [], r"layer 'body' have shape \(45, 1\) for 9 rows"),
    "own forward": (lambda: Scaled(5, CLASSES), [], r"\(Scaled\) have no curvature"),
    "weight alone skipped": (lambda: nn.Linear(5, CLASSES), ["weight"], r"parameters bias of layer ''"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_layers_are_named(case: str) -> None:
    make, skip, message = REFUSED[case]
    _, rows = build("linear", torch.float32)
    with pytest.raises(UnsupportedLayerError, match=message):
        fit_curvature(make(), rows, skip=skip)


def test_other_padding_than_zeros_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 1, 4, 4))
    with pytest.raises(UnsupportedLayerError, match=r"layer '0' is Conv2d with padding_mode='circular'"):
        find_layers(model)


def test_skipped_and_frozen_parameters_are_listed() -> None:
    model = Recurrent()
    model.head.bias.requires_grad_(False)
    layers, uncovered = find_layers(model, skip=["rnn", "nor*"])
    assert [(layer.name, layer.bias, layer.shape) for layer in layers] == [("head", None, (1, CLASSES, 4))]
    assert uncovered["head.bias"] == "frozen"
    assert {name for name, reason in uncovered.items() if reason == "skipped"} == {
        name for name, _ in model.named_parameters() if name.startswith(("rnn", "norm"))
    }


def test_tied_parameters_can_be_skipped_together() -> None:
    layers, uncovered = find_layers(Tied(), skip=["first", "second"])
    assert [layer.name for layer in layers] == ["head"]
    assert set(uncovered) == {"first.weight", "first.bias", "second.bias"}


BAD_INPUT = {
    "skip matches nothing": ({"skip": ["hed"]}, "skip pattern 'hed' matches no module or parameter"),
    "everything skipped": ({"skip": ["*"]}, "no parameter is left to cover"),
    "kind": ({"kind": "efac"}, "did you mean 'ekfac'"),
    "fisher": ({"fisher": "exakt"}, "did you mean 'exact'"),
    "batch size": ({"batch_size": 0}, "batch_size is 0"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_options_are_checked(case: str) -> None:
    options, message = BAD_INPUT[case]
    model, rows = build("linear")
    with pytest.raises(InputError, match=message):
        fit_curvature(model, rows, **options)


def test_values_that_are_not_finite_are_named() -> None:
    model, rows = build("linear")
    inputs, labels = rows.batch(torch.arange(len(rows)))
    inputs[3, 0] = float("nan")
    with pytest.raises(InputError, match="rows 3"):
        fit_curvature(model, (inputs, labels))
    with torch.no_grad():
        model[2].weight[0, 0] = float("inf")
    with pytest.raises(InputError, match=r"parameter '2\.weight' has NaN or infinite"):
        fit_curvature(model, rows)


def test_a_model_that_changes_while_it_is_run_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, CLASSES)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.head(x)

    _, rows = build("linear", torch.float32)
    with pytest.raises(InputError, match="change when it is run"):
        fit_curvature(Counting(), rows)


def run_fit(model: nn.Module, rows: object) -> None:
    fit_curvature(model, rows, fisher="exact", batch_size=4)


def run_layer_gradients(model: nn.Module, rows: object) -> None:
    next(layer_gradients(model, rows, "classification", find_layers(model).layers, 4))


def run_gauss_newton(model: nn.Module, rows: object) -> None:
    vector = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    gauss_newton(model, rows, batch_size=4).matvec(vector)


def run_loss_gradient(model: nn.Module, rows: object) -> None:
    loss_gradient(model, rows, batch_size=4)


def run_failing_fit(model: nn.Module, rows: object) -> None:
    model.fail = True
    with pytest.raises(RuntimeError, match="broken on purpose"):
        fit_curvature(model, rows)


@pytest.mark.parametrize(
    "function", [run_fit, run_layer_gradients, run_gauss_newton, run_loss_gradient, run_failing_fit]
)
def test_what_the_caller_owns_is_left_as_found(function) -> None:
    class Net(nn.Module):
        fail = False

        def __init__(self) -> None:
            super().__init__()
            self.body, self.drop, self.head = nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            assert not self.drop.training
            h = self.drop(self.body(x).tanh())
            if self.fail:
                raise RuntimeError("broken on purpose")
            return self.head(h)

    _, rows = build("linear", torch.float32)
    model = Net()
    model.train()
    model.head.eval()
    hook = model.body.register_forward_hook(lambda *_: None)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    hooks = {name: list(module._forward_hooks) for name, module in model.named_modules()}

    function(model, rows)

    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: list(module._forward_hooks) for name, module in model.named_modules()} == hooks
    assert hook.id in model.body._forward_hooks
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, state[name])
        assert torch.equal(parameter.grad, torch.full_like(parameter, 7.0))
        assert parameter.requires_grad
