import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from detect_cases import CASES, gradients, model_of, rows_of

from unlearn.curvature import Basis, fit_curvature
from unlearn.curvature.units import UnitActivity, largest_units
from unlearn.data import Rows
from unlearn.detect import gif_scores
from unlearn.errors import InputError, StaleCurvatureError
from unlearn.tasks import get_task

RATIOS = [0.1, 0.34, 0.7, 1.0]


def dense_operator(block, damping):
    """H_d of one layer, its groups on the diagonal; the damping is split as in arXiv 1503.05671, section 6.3."""
    parts = []
    for A, S in zip(block.input_factor, block.output_factor, strict=True):
        pi = ((A.trace() / len(A)) / (S.trace() / len(S))).sqrt()
        eye_A, eye_S = (torch.eye(len(x), dtype=x.dtype) for x in (A, S))
        parts.append(torch.kron(S + math.sqrt(damping) / pi * eye_S, A + pi * math.sqrt(damping) * eye_A))
    return torch.block_diag(*parts)


def seen_at_units(model, curvature, rows):
    """Mean over positions of what units give before the non-linearity and of the gradient there, by forward hooks."""
    found = {}
    for layer in curvature.layers:
        kept = []

        def keep(module, args, output, kept=kept):
            output.retain_grad()
            kept.append(output)
            return output.clone()

        handle = model.get_submodule(layer.name).register_forward_hook(keep)
        inputs, labels = rows.batch(torch.arange(len(rows)))
        get_task("classification").loss(model(inputs), labels).sum().backward()
        handle.remove()
        model.zero_grad()
        output = kept[0]
        for name, x in (("outputs", output.detach()), ("gradients", output.grad)):
            by_position = x.flatten(2) if layer.kind == "Conv2d" else x.reshape(len(x), -1, x.shape[-1]).mT
            found[layer.name, name] = by_position.mean(2)
    return found


def dense(model, rows, curvature, ratio, select, scope, damping, formula="gif"):
    """One least-squares problem for each row and layer, with all coordinates."""
    seen, values = seen_at_units(model, curvature, rows), np.zeros(len(rows))
    for z, vector in enumerate(gradients(model, rows)):
        for block in curvature.blocks.values():
            layer = block.layer
            groups, outputs, inputs = layer.shape
            g = layer.block(vector).flatten()
            H = dense_operator(block, damping)
            mean = seen[layer.name, select]
            mean = mean[z] if scope == "row" else mean.mean(0)
            order = mean.abs().sort(descending=True, stable=True).indices  # dead ReLU units tie at 0
            units = order[: math.ceil(ratio * groups * outputs - 1e-9)]
            S = (units[:, None] * inputs + torch.arange(inputs)).flatten()
            if formula == "gif":
                x = torch.linalg.lstsq(H[:, S], g[:, None], driver="gelsd").solution[:, 0]
            elif formula == "frozen":
                x = torch.linalg.solve(H[S][:, S], g[S])
            else:
                x = torch.linalg.solve(H, g)[S]
            values[z] += float(g[S] @ x)
    return values


@pytest.mark.parametrize("scope", ["row", "data"])
@pytest.mark.parametrize("select", ["outputs", "gradients"])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("case", CASES)
def test_equals_dense_least_squares(case, ratio, select, scope):
    # rejects S chosen in each group apart, means of absolute values, unsquared Q, and undamped factors
    model, rows = model_of(case), rows_of(6)
    curvature = fit_curvature(model, rows, kind="kfac")
    scores = gif_scores(
        model, rows, curvature=curvature, ratio=ratio, select=select, scope=scope, damping=0.03, weight_decay=0.02
    )
    expected = dense(model, rows, curvature, ratio, select, scope, 0.05)
    np.testing.assert_allclose(scores.values, expected, rtol=1e-8, atol=1e-10)
    assert scores.method == "gif"


@pytest.mark.parametrize("scope", ["row", "data"])
@pytest.mark.parametrize("method", ["frozen", "projected"])
@pytest.mark.parametrize("case", CASES)
def test_neighbours_equal_dense_solves(case, method, scope):
    # rejects B^2 in place of B, C^-1/2 in place of C^-1, and pinv of the columns
    model, rows = model_of(case), rows_of(6)
    curvature = fit_curvature(model, rows)
    scores = gif_scores(model, rows, curvature=curvature, ratio=0.4, scope=scope, method=method, damping=0.05)
    expected = dense(model, rows, curvature, 0.4, "outputs", scope, 0.05, method)
    np.testing.assert_allclose(scores.values, expected, rtol=1e-8, atol=1e-10)
    assert scores.method == f"gif-{method}"


@pytest.mark.parametrize("case", ["mlp", "grouped", "tokens"])
def test_full_is_every_method_with_all_units(case):
    model, rows = model_of(case), rows_of(6)
    curvature = fit_curvature(model, rows)
    values = [
        gif_scores(model, rows, curvature=curvature, ratio=1.0, method=method, damping=0.05).values
        for method in ("gif", "frozen", "projected", "full")
    ]
    for other in values[1:]:
        np.testing.assert_allclose(other, values[0], rtol=1e-8)


@pytest.mark.parametrize("method", ["gif", "frozen", "projected", "full"])
@pytest.mark.parametrize(("inputs", "outputs"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("case", ["mlp", "grouped", "tokens"])
def test_a_basis_of_none_is_a_diagonal_factor(case, inputs, outputs, method):
    # embeddings have a diagonal A, norms and bare parameters a diagonal S: the same numbers as a basis of unit vectors
    model, rows = model_of(case), rows_of(6)
    curvature = fit_curvature(model, rows)

    def changed(unit):
        """The curvature with unit vectors in place of some bases, as None or as a matrix."""
        blocks = {}
        for name, block in curvature.blocks.items():
            g, o, i = block.layer.shape
            new = [None if unit is None else unit(size).expand(g, size, size) for size in (i, o)]
            basis = Basis(new[0] if inputs else block.basis.inputs, new[1] if outputs else block.basis.outputs)
            blocks[name] = replace(block, basis=basis)
        return replace(curvature, blocks=blocks)

    found, expected = (
        gif_scores(
            model, rows, curvature=changed(unit), ratio=1.0 if method == "full" else 0.4, method=method, damping=0.05
        )
        for unit in (None, lambda size: torch.eye(size, dtype=torch.float64))
    )
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-9, atol=1e-12)


def test_a_layer_without_a_module_has_no_bias_of_its_own():
    # bare parameters are layers whose name is that of a parameter; a frozen bias of a module still counts
    model, rows = model_of("frozen-bias"), rows_of()
    (layer, _) = fit_curvature(model, rows).layers
    a, d = torch.randn(1, 2, 1, 12, dtype=torch.float64), torch.randn(1, 2, 1, 7, dtype=torch.float64)
    activity = UnitActivity(model, "outputs")
    plain = a[0, :, 0] @ model[0].weight.detach().T
    torch.testing.assert_close(activity(layer, a, d), plain + model[0].bias.detach())
    torch.testing.assert_close(activity(replace(layer, name="0.weight"), a, d), plain)
    torch.testing.assert_close(UnitActivity(model, "gradients")(layer, a, d), d[0, :, 0])


def test_is_none_of_its_neighbours():
    # frozen H[S, S]^-1 g_S and projected (H^-1 g)_S are other numbers on the same operator
    model, rows = model_of("mlp"), rows_of(6)
    curvature = fit_curvature(model, rows)
    values = gif_scores(model, rows, curvature=curvature, ratio=0.34, damping=0.05).values
    for formula in ("frozen", "projected"):
        other = dense(model, rows, curvature, 0.34, "outputs", "row", 0.05, formula)
        assert np.abs(values / other - 1).min() > 0.01
    np.testing.assert_allclose(values, dense(model, rows, curvature, 0.34, "outputs", "row", 0.05), rtol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_all_units_give_the_full_form(case):
    # S = everything: pinv(H_d) is the inverse, and g^T H_d^-1 g is positive
    model, rows = model_of(case), rows_of(6)
    curvature = fit_curvature(model, rows)
    scores = gif_scores(model, rows, curvature=curvature, ratio=1.0, damping=0.05)
    full = np.zeros(6)
    for z, vector in enumerate(gradients(model, rows)):
        for block in curvature.blocks.values():
            g = block.layer.block(vector).flatten()
            full[z] += float(g @ torch.linalg.solve(dense_operator(block, 0.05), g))
    np.testing.assert_allclose(scores.values, full, rtol=1e-9)
    assert (scores.values > 0).all()
    assert scores.options["negative_share"] == 0


def test_the_budget_is_rounded_up():
    # 7 hidden units: 0.01 -> 1, 1/7 -> 1, just above -> 2; 0.07 of 100 is 7, although 0.07 * 100 > 7 in floats
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(3, 7, generator=draw)
    assert [largest_units(values, ratio).shape[1] for ratio in (0.01, 1 / 7, 1 / 7 + 0.01, 0.99, 1.0)] == [
        1,
        1,
        2,
        7,
        7,
    ]
    assert largest_units(torch.randn(1, 100, generator=draw), 0.07).shape[1] == 7
    assert largest_units(torch.tensor([[1.0, -3.0, 2.0, 3.0]]), 0.5).tolist() == [[1, 3]]
    assert largest_units(torch.zeros(1, 4), 0.5).tolist() == [[0, 1]]


@pytest.mark.parametrize("scope", ["row", "data"])
@pytest.mark.parametrize("case", ["mlp", "cnn", "grouped"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_changes_nothing(case, scope, batch_size):
    # units chosen by the mean of a batch would be other units for each batch size
    model, rows = model_of(case), rows_of()
    curvature = fit_curvature(model, rows)
    whole, parts = (
        gif_scores(model, rows, curvature=curvature, ratio=0.3, scope=scope, batch_size=size)
        for size in (11, batch_size)
    )
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-9, atol=1e-12)


def test_small_chunks_change_nothing(monkeypatch):
    model, rows = model_of("mlp"), rows_of()
    curvature = fit_curvature(model, rows)
    whole = gif_scores(model, rows, curvature=curvature, ratio=0.3)
    monkeypatch.setattr("unlearn.detect.gif._CHUNK_BYTES", 1)
    np.testing.assert_allclose(gif_scores(model, rows, curvature=curvature, ratio=0.3).values, whole.values, rtol=1e-10)


def test_negative_scores_are_counted():
    # the score is signed: an absolute value or a square would hide it
    for seed in range(20):
        model, rows = model_of("mlp", seed=seed), rows_of(40)
        scores = gif_scores(model, rows, ratio=0.2, damping=1e-4)
        share = (scores.values < 0).mean()
        assert scores.options["negative_share"] == share
        if share > 0:
            return
    pytest.fail("no negative score in 20 models")


def test_options_are_reported():
    model, rows = model_of("mlp"), rows_of()
    curvature = fit_curvature(model, rows)
    options = gif_scores(model, rows, curvature=curvature, select="gradients", weight_decay=0.1).options
    assert {name: options[name] for name in ("ratio", "select", "scope", "kind", "weight_decay")} == {
        "ratio": 0.05,
        "select": "gradients",
        "scope": "row",
        "kind": "ekfac",
        "weight_decay": 0.1,
    }
    assert options["damping"] == pytest.approx(0.1 * curvature.mean_eigenvalue)
    assert options["damping_share"] == pytest.approx(0.1)


def test_kfac_and_ekfac_curvature_give_the_same_scores():
    # the closed form has K-FAC factors only: EK-FAC eigenvalues must not leak in
    model, rows = model_of("mlp"), rows_of()
    kfac, ekfac = (
        gif_scores(model, rows, curvature=fit_curvature(model, rows, kind=kind), damping=0.1)
        for kind in ("kfac", "ekfac")
    )
    np.testing.assert_allclose(kfac.values, ekfac.values, rtol=1e-12)


def test_float32_is_near_float64():
    wide, narrow = model_of("cnn"), model_of("cnn", torch.float32)
    wide.load_state_dict(narrow.state_dict())
    expected = gif_scores(wide, rows_of(), ratio=0.4, damping=0.05).values
    found = gif_scores(narrow, rows_of(dtype=torch.float32), ratio=0.4, damping=0.05).values
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_unit_that_never_acts_is_no_matter():
    # a dead layer has factors of 0: its part is 0, and pi is not 0 / 0
    model, rows = model_of("mlp"), rows_of()
    with torch.no_grad():
        model[4].weight.zero_()
    scores = gif_scores(model, rows, ratio=0.3, damping=0.1)
    assert np.isfinite(scores.values).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, "ratio is 0.0"),
        ({"ratio": 1.01}, "ratio is 1.01"),
        ({"ratio": float("nan")}, "ratio is nan"),
        ({"select": "output"}, "did you mean 'outputs'"),
        ({"scope": "rows"}, "did you mean 'row'"),
        ({"damping": -1.0}, "damping is -1.0"),
        ({"method": "frosen"}, "did you mean 'frozen'"),
        ({"method": "full"}, "method 'full' freezes nothing and ratio is 0.05; give ratio=1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        gif_scores(model_of("mlp"), rows_of(), **options)


def test_refusals():
    model, rows = model_of("mlp"), rows_of()
    with pytest.raises(InputError, match="fit kind='ekfac' or 'kfac'"):
        gif_scores(model, rows, curvature=fit_curvature(model, rows, kind="diagonal"))
    curvature = fit_curvature(model, rows)
    with pytest.raises(StaleCurvatureError, match="belongs to weights"):
        gif_scores(model_of("mlp", seed=4), rows, curvature=curvature)
    more = Rows.from_tensors(rows.batch(torch.arange(11))[0], rows.labels + 1)
    with pytest.raises(InputError, match="label 3 is outside the model's 3 classes"):
        gif_scores(model, more, curvature=curvature)
