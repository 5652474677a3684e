"""Half precision: forward and backward passes in bfloat16 or float16, everything that is made of them wider."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import unlearn
from unlearn.curvature import fit_curvature, gauss_newton, layer_gradients, loss_gradient
from unlearn.data import Rows, load_data, symmetric_noise
from unlearn.errors import FolderError, InputError
from unlearn.models import build_model
from unlearn.predict import predict
from unlearn.repair import Changes, apply_changes, restricted_edit
from unlearn.repair.batch_norm import re_estimate
from unlearn.repair.trajectory import Segment, Trajectory
from unlearn.repair.unrolled import Unrolled
from unlearn.tasks import get_task
from unlearn.training import Snapshot, TrainSettings, train

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
both = pytest.mark.parametrize("dtype", HALF.values(), ids=list(HALF))


def mlp(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 3))


def cnn() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Unflatten(1, (2, 3, 2)), nn.Conv2d(2, 5, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(60, 3)
        )


def rows_of(n: int = 40) -> Rows:
    """Inputs that bfloat16 and float16 hold exactly."""
    draw = torch.Generator().manual_seed(2)
    inputs = torch.randint(-8, 9, (n, 12), generator=draw) / 4
    return Rows.from_tensors(inputs, torch.randint(3, (n,), generator=draw), classes=3)


def narrowed(rows: Rows, dtype: torch.dtype) -> Rows:
    inputs, labels = rows.batch(torch.arange(len(rows)))
    assert isinstance(inputs, Tensor)
    return Rows.from_tensors(inputs.to(dtype), labels, classes=rows.classes)


@both
def test_factors_are_sums_in_float32_over_passes_in_half_precision(dtype: torch.dtype) -> None:
    """The slow loop: autocast by hand, sums in float64. Rejects sums of half precision, and passes of float32."""
    model, rows = nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 2)), rows_of(300)
    inputs, _ = rows.batch(torch.arange(300))
    with torch.autocast("cpu", dtype):
        before = model[0](inputs)
        hidden = model[1](before)
        outputs = model[2](hidden).float()
    columns = [torch.autograd.grad(outputs[:, c].sum(), before, retain_graph=True)[0] for c in range(2)]
    assert hidden.dtype == columns[0].dtype == dtype
    S = sum(d.double().T @ d.double() for d in columns) / 300
    a = torch.cat([hidden.double(), torch.ones(300, 1)], 1)
    regression = Rows.from_tensors(inputs, torch.zeros(300, 2))
    with unlearn.half_precision(dtype):
        blocks = fit_curvature(model, regression, task="regression", fisher="exact", batch_size=7).blocks
    for found, wanted in ((blocks["0"].output_factor, S), (blocks["2"].input_factor, a.T @ a / 300)):
        assert found is not None
        assert found.dtype == torch.float32
        torch.testing.assert_close(found[0].double(), wanted.detach(), rtol=1e-5, atol=1e-6)


@both
def test_a_sum_of_many_rows_does_not_stall(dtype: torch.dtype) -> None:
    """A total of bfloat16 stays at 256 when ones are added to it, one of float16 at 2048."""
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.zeros_(model.weight)
    rows = Rows.from_tensors(torch.ones(2500, 1, dtype=dtype), -torch.ones(2500, 1))
    found = loss_gradient(model, rows, task="regression", batch_size=1)["weight"]
    assert found.dtype == torch.float32
    assert found.item() == 2500


class Sums(nn.Module):
    """A weight that a forward pass uses many times."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.one(x) for _ in range(300)]).float().sum(0)


def test_uses_of_a_weight_add_up_in_its_own_type() -> None:
    """Autocast keeps a cast weight for its next uses, and then their gradients are summed in bfloat16: 256 here."""
    model = Sums()
    nn.init.zeros_(model.one.weight)
    with unlearn.half_precision(torch.bfloat16):
        found = loss_gradient(model, Rows.from_tensors(torch.ones(1, 1), -torch.ones(1, 1)), task="regression")
    assert found["one.weight"].item() == 300


def test_what_a_norm_multiplies_its_weight_with_is_float32() -> None:
    model, rows = nn.Sequential(nn.Linear(12, 7), nn.LayerNorm(7), nn.Linear(7, 2)).bfloat16(), rows_of()
    inputs, _ = rows.batch(torch.arange(len(rows)))
    rows = Rows.from_tensors(inputs.bfloat16(), torch.zeros(len(rows), 2))
    before = model[0](inputs.bfloat16())
    after = model[1](before)
    outputs = model[2](after)
    (d,) = torch.autograd.grad(outputs.float().square().sum() / 2, after)
    wanted = d.double() * torch.nn.functional.layer_norm(before.double(), (7,))
    layers = fit_curvature(model, rows, task="regression").layers
    _, found = next(layer_gradients(model, rows, "regression", layers))
    torch.testing.assert_close(found["1"][1][0, :, 0, :7].double(), wanted.detach(), rtol=1e-5, atol=1e-6)


SCORES: dict[str, Callable[[nn.Module, Rows], Any]] = {
    "self-influence": lambda m, r: unlearn.self_influence(m, r, weight_decay=0.01),
    "influence": lambda m, r: unlearn.influence(m, r, r.at(torch.arange(3)), weight_decay=0.01),
    "gif": lambda m, r: unlearn.gif_scores(m, r, ratio=1, weight_decay=0.01),
    "harm": lambda m, r: unlearn.harm(m, r, r.at(torch.arange(9)), weight_decay=0.01),
    "loss": lambda m, r: unlearn.detect.loss(m, r),
    "outlier gradients": lambda m, r: unlearn.outlier_gradients(m, r, detector="l2"),
    "sketches": lambda m, r: unlearn.gradient_sketches(m, r, size=32).values,
}


@both
@pytest.mark.parametrize("what", SCORES)
@pytest.mark.parametrize("make", [mlp, cnn])
def test_scores_in_half_precision_are_near_those_of_float32(
    make: Callable[[], nn.Module], what: str, dtype: torch.dtype
) -> None:
    """In passes of a float32 model, and of one whose weights are half precision, on rows of its type."""
    model, rows = make(), rows_of()

    def values(model: nn.Module, rows: Rows) -> Tensor:
        found = SCORES[what](model, rows)
        return torch.as_tensor(getattr(found, "values", found) if not isinstance(found, Tensor) else found)

    wanted, narrow = values(model, rows), copy.deepcopy(model).to(dtype)
    with unlearn.half_precision(dtype):
        found = values(model, rows)
    assert not torch.equal(found, wanted)  # or the passes were of float32
    for near in (found, values(narrow, narrowed(rows, dtype))):
        assert near.dtype == wanted.dtype
        assert float((near - wanted).norm() / wanted.norm()) < (0.03 if dtype == torch.bfloat16 else 0.01)
    assert all(p.dtype == dtype for p in narrow.parameters())
    assert not narrow._forward_pre_hooks


def test_what_was_run_in_half_precision_says_so() -> None:
    model, rows = mlp(), rows_of()
    assert fit_curvature(model, rows).options["precision"] is None
    assert "precision" not in unlearn.self_influence(model, rows).options
    with unlearn.half_precision(torch.bfloat16):
        curvature = fit_curvature(model, rows)
        scores = [unlearn.detect.loss(model, rows), unlearn.outlier_gradients(model, rows, detector="l1")]
        scores += [score(model, rows, curvature=curvature) for score in (unlearn.self_influence, unlearn.gif_scores)]
        scores += [unlearn.harm(model, rows, rows, solver=curvature)]
        sketches = unlearn.gradient_sketches(model, rows, size=8)
    assert {score.options["precision"] for score in scores} == {"torch.bfloat16"} == {sketches.options["precision"]}
    assert curvature.options["precision"] == "torch.bfloat16"
    assert "precision" not in unlearn.self_influence(model, rows, curvature=curvature).options  # these are of float32


def test_one_output_a_row_in_float16() -> None:
    model = nn.Sequential(nn.Linear(12, 1), nn.Flatten(0))
    inputs, _ = rows_of().batch(torch.arange(40))
    rows = Rows.from_tensors(inputs, torch.zeros(40))
    wanted = unlearn.self_influence(model, rows, task="regression").values
    with unlearn.half_precision(torch.float16):
        found = unlearn.self_influence(model, rows, task="regression").values
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=1e-4 * wanted.max())


def test_what_is_kept_in_a_folder_is_not_mixed_with_another_precision(tmp_path: Path) -> None:
    rows, settings = rows_of(), TrainSettings(epochs=2, batch_size=20)
    model, record = train(mlp(), rows, settings, folder=tmp_path / "run", snapshot_epochs=range(3))
    known = Trajectory(model, record, rows, get_task("classification"), tmp_path / "factors")
    segment = Segment(0, 4, 2)
    for fitted in (40, 40):
        known.curvature(segment, known.halfway(segment))
        assert known.fitted == fitted
    curvature = fit_curvature(model, rows)
    unlearn.score_shards("self-influence", model, rows, tmp_path / "scores", curvature=curvature)
    with unlearn.half_precision(torch.bfloat16):
        assert known.curvature(segment, known.halfway(segment)).options["precision"] == "torch.bfloat16"
        with pytest.raises(FolderError, match="scores"):
            unlearn.score_shards("self-influence", model, rows, tmp_path / "scores", curvature=curvature)


@pytest.mark.parametrize("weights", [False, True])
def test_gradients_of_sure_rows_do_not_vanish_in_float16(weights: bool) -> None:
    """Row 0 has an output gradient of 2e-9, and float16 ends at 6e-8. Rejects passes without a scale for each row."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    for layer in model:
        nn.init.eye_(layer.weight)
    rows = Rows.from_tensors(torch.tensor([[20.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    layers = fit_curvature(model, rows).layers

    def gradients(model: nn.Module, rows: Rows) -> dict[str, tuple[Tensor, Tensor]]:
        return next(layer_gradients(model, rows, "classification", layers))[1]

    wanted = gradients(model, rows)
    sure = rows.at(torch.tensor([0]))
    total = loss_gradient(model, sure)
    if weights:
        model = model.half()
        rows, sure = narrowed(rows, torch.float16), narrowed(sure, torch.float16)
        found, whole = gradients(model, rows), loss_gradient(model, sure)
    else:
        with unlearn.half_precision(torch.float16):
            found, whole = gradients(model, rows), loss_gradient(model, sure)
    for name, (a, d) in wanted.items():
        assert 0 < float(d[0, 0].abs().max()) < 6e-8
        torch.testing.assert_close(found[name], (a, d), rtol=2e-3, atol=1e-12)
    for name, part in total.items():
        torch.testing.assert_close(whole[name], part, rtol=2e-3, atol=1e-12)


def test_overflow_in_float16_is_named() -> None:
    rows = rows_of()
    large = mlp()
    with torch.no_grad():
        large[3].weight.mul_(1e5)
    with (
        unlearn.half_precision(torch.float16),
        pytest.raises(InputError, match=r"65504 in float16: take torch.bfloat16"),
    ):
        unlearn.self_influence(large, rows)
    steep = nn.Sequential(nn.Linear(12, 7), nn.Linear(7, 3))
    with torch.no_grad():
        steep[1].weight.fill_(6e4).mul_(torch.tensor([1.0, -1.0, 1.0])[:, None])
        for p in (*steep[0].parameters(), steep[1].bias):
            p.zero_()
    layers = fit_curvature(steep, rows).layers
    second = rows.only([row for row, y in zip(rows.ids, rows.labels, strict=True) if y == 1])
    with unlearn.half_precision(torch.float16):
        with pytest.raises(InputError, match=r"gradients at layer '0' pass 65504, the largest float16; use torch.bf"):
            list(layer_gradients(steep, second, "classification", layers))
        with pytest.raises(InputError, match=r"loss gradients pass 65504"):
            loss_gradient(steep, second)


REFUSED: dict[str, tuple[Callable[[nn.Module, Rows], Any], str]] = {
    "training": (lambda m, r: train(m, r, TrainSettings(epochs=1)), "training is not run in torch.bfloat16; leave"),
    "optimum": (lambda m, r: unlearn.train_to_optimum(m, r, weight_decay=0.1), "training to an optimum is not run"),
    "verdict": (lambda m, r: unlearn.compare_models(m, [m, m], r), "a verdict is not run in torch.bfloat16; leave"),
    "certified head": (
        lambda m, r: unlearn.train_certified_head(r, weight_decay=0.1, sigma=1, epsilon=1, delta=1e-4, unit_rows=True),
        "a certified head is not run in torch.bfloat16; leave",
    ),
    "audit": (lambda m, r: unlearn.membership_audit(m, r, ["0"]), "a membership audit is not run"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_run_in_half_precision_is_refused(what: str) -> None:
    run, message = REFUSED[what]
    with unlearn.half_precision(torch.bfloat16), pytest.raises(InputError, match=message):
        run(mlp(), rows_of())


def test_float16_is_refused_where_sums_have_no_scale() -> None:
    model, rows = mlp(), rows_of()
    operator, v = gauss_newton(model, rows), {name: p.detach() for name, p in model.named_parameters()}
    options: dict[str, Any] = {"damping": 0.1, "weight_decay": 0.01}
    with unlearn.half_precision(torch.float16):
        with pytest.raises(
            InputError, match=r"exact Gauss-Newton products are not run in torch.float16; take torch.bf"
        ):
            operator.matvec(v)
        with pytest.raises(InputError, match=r"edits are not run in torch.float16"):
            apply_changes(model, rows, Changes(("0",)), **options)
        with pytest.raises(InputError, match=r"edits are not run in torch.float16"):
            restricted_edit(model, rows, Changes(("0",)), **options)


def test_other_types_and_torchs_own_autocast_are_refused() -> None:
    """Around the package autocast would round its sums and solves as well."""
    with pytest.raises(InputError, match=r"asked for in torch.float32; give torch.bfloat16 or torch.float16"):
        unlearn.half_precision(torch.float32).__enter__()
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(InputError, match=r"use unlearn.half_precision\(torch.bf"),
    ):
        fit_curvature(mlp(), rows_of())
    assert torch.equal(predict(mlp(), rows_of()), predict(mlp(), rows_of()))


def test_rows_of_another_type_than_the_weights_are_explained() -> None:
    model, rows = mlp().bfloat16(), rows_of()
    with pytest.raises(
        InputError, match=r"weights are torch.bfloat16, inputs torch.float32, .* use unlearn.half_precis"
    ):
        fit_curvature(model, rows)
    with unlearn.half_precision(torch.bfloat16):  # as it says
        found = unlearn.self_influence(model, rows).values
    wanted = unlearn.self_influence(model, narrowed(rows, torch.bfloat16)).values
    assert abs(found / wanted - 1).max() < 0.1


def test_products_of_a_model_in_half_precision_are_those_of_its_copy_in_float32() -> None:
    """Rejects tangents and sums of half precision, with which conjugate gradients end early."""
    narrow, rows = mlp().bfloat16(), rows_of()
    wide = copy.deepcopy(narrow).float()
    v = {name: torch.randn(p.shape) for name, p in wide.named_parameters()}
    found, wanted = gauss_newton(narrow, narrowed(rows, torch.bfloat16)).matvec(v), gauss_newton(wide, rows).matvec(v)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_products_in_bfloat16_are_near() -> None:
    model, rows = mlp(), rows_of()
    v = {name: torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) for name, p in model.named_parameters()}
    wanted = gauss_newton(model, rows).matvec(v)
    with unlearn.half_precision(torch.bfloat16):
        found = gauss_newton(model, rows).matvec(v)
    error, size = (
        torch.cat([x[n].flatten() - y * wanted[n].flatten() for n in v]) for x, y in ((found, 1), (wanted, 0))
    )
    assert 0 < float(error.norm() / size.norm()) < 0.03
    assert all(part.dtype == torch.float32 for part in found.values())


def test_an_edit_of_weights_in_half_precision_is_that_of_float32_rounded_once() -> None:
    """Rejects an edit computed in the type of the weights, and one that is rounded on the way."""
    narrow, rows = mlp().bfloat16(), rows_of()
    wide = copy.deepcopy(narrow).float()
    options: dict[str, Any] = {"method": "full", "damping": 0.05, "weight_decay": 0.01}
    changes = Changes(("0",), {"3": (int(rows.labels[3]) + 1) % 3})
    found = restricted_edit(narrow, narrowed(rows, torch.bfloat16), changes, **options)
    wanted = restricted_edit(wide, rows, changes, **options)
    for one, other in zip(found.model.parameters(), wanted.model.parameters(), strict=True):
        assert torch.equal(one, other.bfloat16())
    (note,) = found.notes
    change = torch.cat([(a - b).flatten() for a, b in zip(wanted.model.parameters(), wide.parameters(), strict=True)])
    error = torch.cat([(a - a.bfloat16()).flatten() for a in wanted.model.parameters()])
    still = sum(int((a == b).sum()) for a, b in zip(found.model.parameters(), narrow.parameters(), strict=True))
    assert (
        f"moves them by {100 * float(error.detach().norm() / change.detach().norm()):.0f} % of the length of the change"
        in note
    )
    assert f"{still} of {len(change)} changed weights are as they were; edit a copy in float32" in note


def test_a_moved_snapshot_is_rounded_once() -> None:
    """1 + 2^-8 lies half-way between two numbers: a change rounded first, then added, goes the other way."""
    change = {"w": torch.tensor([2.0**-8 + 1e-5])}
    unrolled = Unrolled(change, change, None, 1.0, 0, 0)  # type: ignore[arg-type]
    one = torch.ones(1, dtype=torch.bfloat16)
    moved = unrolled.on(Snapshot({"w": one}, {"momentum_buffer/w": one}))
    assert moved.weights["w"].item() == moved.optimizer["momentum_buffer/w"].item() == 1 + 2.0**-7


@pytest.mark.parametrize("half", ["weights", "passes"])
def test_every_edit_is_made_in_bfloat16(half: str, tmp_path: Any) -> None:
    """Newton, unrolled, and with replayed steps, which are run in the type that they were recorded in."""
    rows = rows_of(120)
    start = mlp()
    if half == "weights":
        start, rows = start.bfloat16(), narrowed(rows, torch.bfloat16)
    settings = TrainSettings(epochs=3, batch_size=20, lr=0.1)
    model, record = train(start, rows, settings, folder=tmp_path, snapshot_epochs=range(4))
    few, many, edits = Changes(("0", "1", "2")), Changes(tuple(map(str, range(20)))), {}
    for name, changes, options in (
        ("newton", few, {"budget": 0, "method": "newton"}),
        ("unrolled", few, {"budget": 0}),
        ("replay", few, {}),
        ("head", many, {"budget": 0}),
    ):
        if half == "weights":
            edits[name] = apply_changes(model, rows, changes, record=record, **options)  # type: ignore[arg-type]
        else:
            with unlearn.half_precision(torch.bfloat16):
                edits[name] = apply_changes(model, rows, changes, record=record, **options)  # type: ignore[arg-type]
    said = "rounded to bfloat16" if half == "weights" else "passes of the edit were run in bfloat16"
    for name, edit in edits.items():
        assert not edit.failed, name
        assert edit.after["changed_loss"] > edit.before["changed_loss"], name
        assert any(said in note for note in edit.notes), name
    assert edits["head"].head == "3"


@both
def test_the_bars_of_the_benchmark_on_digits(dtype: torch.dtype) -> None:
    """The reduced case of ``python -m benchmarks.precision``: rank, error and AUROC against float64."""
    rows = symmetric_noise(load_data("digits").at(torch.arange(400)), rate=0.1, seed=0)
    model, _ = train(build_model("mlp", inputs=64, classes=10, widths=[16], seed=0), rows, TrainSettings(epochs=8))
    inputs, labels = rows.batch(torch.arange(400))
    assert isinstance(inputs, Tensor)
    wide = Rows.from_tensors(inputs.double(), labels, ids=rows.ids, classes=10)
    rank, error = (0.99, 0.05) if dtype == torch.bfloat16 else (0.999, 0.01)
    for score in (unlearn.self_influence, unlearn.gif_scores):
        wanted = score(copy.deepcopy(model).double(), wide).values
        with unlearn.half_precision(dtype):
            found = score(model, rows).values
        assert spearmanr(found, wanted).statistic >= rank
        assert np.linalg.norm(found - wanted) <= error * np.linalg.norm(wanted)
        wrong = (rows.truth != rows.labels).numpy()  # type: ignore[union-attr]
        assert abs(roc_auc_score(wrong, found) - roc_auc_score(wrong, wanted)) <= 0.005


def test_running_statistics_in_bfloat16_are_sums_in_float32() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2)).bfloat16()
    inputs = torch.full((600, 2), 1.0)
    inputs[0] = 601.0
    rows = Rows.from_tensors(inputs.bfloat16(), torch.zeros(600, dtype=torch.long))
    re_estimate(model, rows, batch_size=2)
    assert model[0].running_mean.tolist() == [2.0, 2.0]  # the mean of 600 rows, 300 batches
