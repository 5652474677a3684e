"""Per-sample gradients from taps against a backward pass for each sample; what is refused; what is left as found."""

from __future__ import annotations

import pytest
import torch
from curvature_cases import CASES, CLASSES, CLASSIFICATION, build, row_gradients
from torch import Tensor, nn

from unlearn.curvature import fit_curvature, gauss_newton, layer_gradients, loss_gradient
from unlearn.curvature.layers import find_layers
from unlearn.errors import InputError, UnsupportedLayerError
from unlearn.modes import evaluation


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_a_backward_pass_for_each_row(case: str, batch_size: int) -> None:
    model, rows = build(case)
    layers = find_layers(model, rows).layers
    seen = []
    for positions, gradients in layer_gradients(model, rows, "classification", layers, batch_size):
        inputs, labels = rows.batch(positions)
        with evaluation(model):
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
        find_layers(model, rows).layers,
        4,
        output_rows=lambda positions, outputs, labels: seen.append((positions, outputs, labels)),
    )
    assert len(list(stream)) == 3
    inputs, labels = rows.batch(torch.arange(len(rows)))
    torch.testing.assert_close(torch.cat([outputs for _, outputs, _ in seen]), model(inputs).detach())
    assert torch.equal(torch.cat([given for _, _, given in seen]), labels)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.called, self.idle = nn.Linear(5, CLASSES), nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.called(x)
        return self.used(x)


def test_what_the_outputs_do_not_depend_on_is_listed() -> None:
    _, rows = build("linear", torch.float32)
    layers, uncovered = find_layers(Unused(), rows)
    assert [layer.name for layer in layers] == ["used"]
    assert uncovered == dict.fromkeys(("called.weight", "called.bias", "idle.weight", "idle.bias"), "unused")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()).tanh())


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_layer_is_known_by_what_is_done_with_its_weight() -> None:
    # by its class, the gradient of a subclass that scales its output would be off by the factor
    _, rows = build("linear", torch.float32)
    model = Scaled(5, CLASSES)
    ((_, gradients),) = layer_gradients(model, rows, "classification", find_layers(model, rows).layers)
    a, d = gradients[""]
    expected = loss_gradient(model, rows)
    torch.testing.assert_close(torch.einsum("gbto,gbti->oi", d, a)[:, :-1], expected["weight"], rtol=1e-5, atol=1e-6)


class Backwards(nn.Module):
    """Layers in another order than their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(4, CLASSES), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


def test_layers_know_the_order_of_their_calls() -> None:
    _, rows = build("linear", torch.float32)
    assert {layer.name: layer.last_call for layer in find_layers(Backwards(), rows).layers} == {"head": 1, "body": 0}
    model, rows = build("twice")
    places = {layer.name: layer.last_call for layer in find_layers(model, rows).layers}
    assert places == {"body": 1, "first.weight": 3, "first.bias": 2, "second": 3, "head": 4}


class Winding(nn.Module):
    """Takes another way for other data than the first row."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x if len(x) < 4 else self.body(x)))


def test_a_path_that_depends_on_the_data_is_refused() -> None:
    _, rows = build("linear", torch.float32)
    with pytest.raises(UnsupportedLayerError, match=r"layer 'body' is used in 2 calls by these rows, and in 1.*skip"):
        fit_curvature(Winding(), rows)
    fit_curvature(Winding(), rows, skip=["body"])


def test_a_norm_over_the_batch_is_refused() -> None:
    _, rows = build("linear", torch.float32)
    model = nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, CLASSES))
    with pytest.raises(InputError, match="each row's output depend on the rows beside it"):
        fit_curvature(model, rows)


def test_skipped_and_frozen_parameters_are_listed() -> None:
    model, rows = build("norms")
    model[6].bias.requires_grad_(False)
    layers, uncovered = find_layers(model, rows, skip=["[1-5]", "0.w*"])
    assert [(layer.name, layer.bias, layer.shape) for layer in layers] == [("6", None, (1, CLASSES, 12))]
    assert uncovered["6.bias"] == "frozen"
    skipped = {name for name, _ in model.named_parameters() if not name.startswith("6")}
    assert {name for name, reason in uncovered.items() if reason == "skipped"} == skipped


def test_a_weight_left_out_leaves_its_bias_a_layer() -> None:
    _, rows = build("linear", torch.float32)
    model = nn.Linear(5, CLASSES)
    (layer,), uncovered = find_layers(model, rows, skip=["weight"])
    assert (layer.weight, layer.bias, layer.shape, uncovered) == (None, "bias", (1, CLASSES, 1), {"weight": "skipped"})
    ((_, gradients),) = layer_gradients(model, rows, "classification", [layer])
    a, d = gradients[layer.name]
    torch.testing.assert_close((d.mT @ a).sum(1).flatten(), loss_gradient(model, rows)["bias"], rtol=1e-5, atol=1e-6)


def test_a_shared_parameter_is_skipped_under_any_of_its_names() -> None:
    _, rows = build("linear", torch.float32)
    layers, uncovered = find_layers(Tied(), rows, skip=["second"])
    assert [layer.name for layer in layers] == ["first", "head"]
    assert uncovered == {"first.weight": "skipped", "second.bias": "skipped"}
    assert layers[0].weight is None


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
    next(layer_gradients(model, rows, "classification", find_layers(model, rows).layers, 4))


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
