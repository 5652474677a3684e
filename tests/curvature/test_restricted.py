"""Steps of selected coordinates against dense matrices in float64."""

import pytest
import torch
from curvature_cases import build

from unlearn.curvature import DenseSolver, fit_curvature, gauss_newton, loss_gradient
from unlearn.curvature.damped_factors import damped_factors
from unlearn.curvature.layers import find_layers
from unlearn.curvature.restricted import restricted_step
from unlearn.curvature.units import common_units, unit_selection
from unlearn.errors import ConvergenceError, InputError

METHODS = ["gif", "frozen", "projected", "full"]
TIGHT = {"tolerance": 1e-13, "iterations": 5000}


def flat(vector):
    return torch.cat([part.reshape(-1) for part in vector.values()])


def columns(operator, like):
    """The matrix of an operator, column by column."""
    found = []
    for name, part in like.items():
        for k in range(part.numel()):
            unit = {other: torch.zeros_like(value) for other, value in like.items()}
            unit[name].view(-1)[k] = 1
            found.append(flat(operator.matvec(unit)))
    return torch.stack(found, 1)


def dense_step(H, g, S, method):
    x = torch.zeros_like(g)
    if method == "gif":
        x[S] = torch.linalg.lstsq(H[:, S], g[:, None], driver="gelsd").solution[:, 0]
    elif method == "frozen":
        x[S] = torch.linalg.solve(H[S][:, S], g[S])
    elif method == "projected":
        x[S] = torch.linalg.solve(H, g)[S]
    else:
        x = torch.linalg.solve(H, g)
    return x


def some_coordinates(vector, share=0.3):
    """Any coordinates, parts of units among them."""
    draw = torch.Generator().manual_seed(3)
    return {name: torch.rand(part.shape, generator=draw) < share for name, part in vector.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["exact", "ekfac", "kfac", "diagonal"])
def test_equals_a_dense_step(kind, method):
    # rejects H[S, S] or H[S, :] in place of H[:, S], a damping of the least squares, and steps of frozen coordinates
    model, rows = build("linear")
    g = loss_gradient(model, rows)
    operator = gauss_newton(model, rows) if kind == "exact" else fit_curvature(model, rows, kind=kind)
    H = columns(operator, g) + 0.05 * torch.eye(flat(g).numel(), dtype=torch.float64)
    selection = some_coordinates(g)
    expected = dense_step(H, flat(g), flat(selection), method)
    given = None if method == "full" else selection
    found = restricted_step(operator, g, given, damping=0.05, method=method, **TIGHT)
    torch.testing.assert_close(flat(found.step), expected, rtol=1e-8, atol=1e-10)
    residual = float((H @ expected - flat(g)).norm() / flat(g).norm())
    assert found.residual == pytest.approx(residual, rel=1e-6, abs=1e-9)
    assert found.products >= 1


@pytest.mark.parametrize("case", ["linear", "linear-no-bias", "conv-groups"])
def test_lsmr_equals_the_closed_form_of_whole_units(case):
    # pinv(B[:, R]) g C^-1 on H_d = B (x) C, the K-FAC damping inside the factors (arXiv 1503.05671, section 6.3)
    model, rows = build(case)
    g = loss_gradient(model, rows)
    H = damped_factors(fit_curvature(model, rows), 0.05)
    units = common_units(model, rows, H.layers, ratio=0.4)
    found = restricted_step(H, g, unit_selection(H.layers, units), **TIGHT)
    for name, block in H.blocks.items():
        groups, outputs, inputs = block.layer.shape
        B, C, g_mat = block.output_factor, block.input_factor, block.layer.block(g)
        x = torch.zeros(groups * outputs, inputs, dtype=torch.float64)
        for k in range(groups):
            R = [int(unit) % outputs for unit in units[name].flatten() if int(unit) // outputs == k]
            if R:
                inside = torch.linalg.pinv(B[k][:, R]) @ g_mat[k] @ torch.linalg.inv(C[k])
                x[[k * outputs + r for r in R]] = inside
        step = block.layer.block(found.step)
        torch.testing.assert_close(step, x.reshape(step.shape), rtol=1e-8, atol=1e-10)


def test_damped_factors_are_a_kronecker_product_and_no_scalar():
    model, rows = build("linear")
    curvature = fit_curvature(model, rows)
    H, g = damped_factors(curvature, 0.04), loss_gradient(model, rows)
    for name, block in curvature.blocks.items():
        A, S = block.input_factor[0], block.output_factor[0]
        pi = ((A.trace() / len(A)) / (S.trace() / len(S))).sqrt()
        B = S + 0.2 / pi * torch.eye(len(S), dtype=S.dtype)
        C = A + 0.2 * pi * torch.eye(len(A), dtype=A.dtype)
        product = B @ block.layer.block(g)[0] @ C
        torch.testing.assert_close(block.layer.block(H.matvec(g))[0], product, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(H.blocks[name].output_factor[0], B, rtol=1e-10, atol=1e-13)
    assert H.kind == "kfac"


@pytest.mark.parametrize("method", ["gif", "frozen", "projected"])
def test_everything_selected_is_the_full_step(method):
    model, rows = build("linear")
    g, G = loss_gradient(model, rows), gauss_newton(model, rows)
    everything = {name: torch.ones_like(part, dtype=torch.bool) for name, part in g.items()}
    exact = DenseSolver(model, rows).solve(g, damping=0.05)
    found = restricted_step(G, g, everything, damping=0.05, method=method, **TIGHT)
    torch.testing.assert_close(flat(found.step), flat(exact), rtol=1e-8, atol=1e-10)
    assert found.residual < 1e-8


def test_gif_cancels_more_than_its_neighbours():
    # what the least squares is for: the smallest residual over all coordinates among all steps in S
    model, rows = build("linear")
    g, G = loss_gradient(model, rows), gauss_newton(model, rows)
    selection = some_coordinates(g)
    residuals = [
        restricted_step(G, g, selection, damping=0.05, method=method, **TIGHT).residual for method in METHODS[:3]
    ]
    assert residuals[0] < min(residuals[1:]) - 1e-3


def test_products_are_those_of_the_operator():
    model, rows = build("linear")
    g, G = loss_gradient(model, rows), gauss_newton(model, rows)
    found = restricted_step(G, g, some_coordinates(g), damping=0.05)
    assert G.cost == 4 * len(rows) * found.products


def test_short_of_the_tolerance_is_an_error():
    model, rows = build("linear")
    g, G = loss_gradient(model, rows), gauss_newton(model, rows)
    selection = some_coordinates(g)
    with pytest.raises(ConvergenceError, match=r"LSMR stopped after 2 iterations above tolerance 1e-10 \(the last"):
        restricted_step(G, g, selection, damping=1e-3, tolerance=1e-10, iterations=2)
    for method in ("frozen", "projected"):
        with pytest.raises(ConvergenceError, match="conjugate gradients stopped after 2 iterations"):
            restricted_step(G, g, selection, damping=1e-3, method=method, tolerance=1e-10, iterations=2)


def test_a_zero_gradient_has_a_zero_step():
    model, rows = build("linear")
    g = {name: torch.zeros_like(part) for name, part in loss_gradient(model, rows).items()}
    found = restricted_step(gauss_newton(model, rows), g, some_coordinates(g), damping=0.1)
    assert not flat(found.step).any()
    assert found.residual == 0


def test_refusals():
    model, rows = build("linear")
    g, G = loss_gradient(model, rows), gauss_newton(model, rows)
    none = {name: torch.zeros_like(part, dtype=torch.bool) for name, part in g.items()}
    some = some_coordinates(g)
    first = next(iter(g))
    cases = [
        ({"selection": none}, "the selection is empty"),
        ({"selection": {}}, "the selection is empty"),
        ({"selection": None}, "method 'gif' moves selected coordinates only"),
        ({"selection": some, "method": "full"}, "a full step freezes nothing"),
        ({"selection": some, "method": "frosen"}, "did you mean 'frozen'"),
        ({"selection": {"weigth": some[first]}}, "names 'weigth', no part of the vector"),
        ({"selection": {first: some[first].double()}}, "is torch.float64 of shape .*; give torch.bool of shape"),
        ({"selection": {first: some[first][:1]}}, r"give torch.bool of shape \(4, 5\)"),
        ({"selection": some, "damping": -1.0}, "damping is -1.0"),
        ({"selection": some, "tolerance": 1.0}, "tolerance is 1.0 and iterations 1000"),
        ({"selection": some, "iterations": 0}, "iterations 0"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            restricted_step(G, g, **options)
    with pytest.raises(InputError, match="NaN or infinite"):
        restricted_step(G, {**g, first: g[first] * float("nan")}, some)
    skipped = fit_curvature(model, rows, skip="0")
    with pytest.raises(InputError, match="give the covered ones only"):
        restricted_step(skipped, g, some)
    with pytest.raises(InputError, match="lacks; fit kind='ekfac' or 'kfac'"):
        damped_factors(fit_curvature(model, rows, kind="diagonal"), 0.1)


def test_units_are_rows_of_weight_and_bias():
    model, rows = build("conv-groups")
    layers = find_layers(model, rows).layers
    masks = unit_selection(layers, {layers[0].name: [1, 2]})  # one unit of each group
    weight, bias = (masks[name] for name in layers[0].parameters)
    assert weight.flatten(1).all(1).tolist() == weight.flatten(1).any(1).tolist() == [False, True, True, False]
    assert bias.tolist() == [False, True, True, False]
    assert not any(masks[name].any() for name in layers[1].parameters)
    with pytest.raises(InputError, match="it has the units 0 to 3"):
        unit_selection(layers, {layers[0].name: [4]})
    with pytest.raises(InputError, match="which is not covered"):
        unit_selection(layers, {"nothing": [0]})
    for options, message in (({"ratio": 0.0}, "ratio is 0.0"), ({"select": "output"}, "did you mean 'outputs'")):
        with pytest.raises(InputError, match=message):
            common_units(model, None, layers, **options)
