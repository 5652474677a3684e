import copy

import numpy as np
import pytest
import torch
from detect_cases import CASES, gradients, model_of, rows_of
from torch import nn

from unlearn.curvature import (
    ConjugateGradientSolver,
    DenseSolver,
    IdentitySolver,
    dot,
    fit_curvature,
    gauss_newton,
    weights_digest,
)
from unlearn.data import Rows, load_data, symmetric_noise
from unlearn.detect import ranking_quality, self_influence
from unlearn.errors import InputError, RecordError, StaleCurvatureError
from unlearn.models import build_model
from unlearn.tasks import Classification
from unlearn.training import TrainingRecord, TrainSettings, train


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
        "cost_epochs": 1.0,
    }
    np.testing.assert_allclose(scores.values, slow(model, rows, curvature, 0.5 + 0.1 * mean), rtol=1e-10)


def test_curvature_is_fitted_where_missing():
    model, rows = model_of("mlp"), rows_of()
    fitted = self_influence(model, rows, curvature=fit_curvature(model, rows))
    np.testing.assert_array_equal(self_influence(model, rows).values, fitted.values)
    assert self_influence(model, rows).options["cost_epochs"] == 3.0
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


SOLVERS = {"identity": 1e-10, "cg": 1e-5, "pcg": 1e-5, "dense": 1e-10, "lissa": 0.1, "kfac": 1e-10, "diagonal": 1e-10}


@pytest.mark.parametrize("kind", SOLVERS)
def test_any_solver_gives_one_solve_for_each_row(kind):
    # rejects another solver than the one named, its damping without weight decay, and gradients of other rows
    model, rows = model_of("mlp"), rows_of(5)
    scores = self_influence(model, rows, solver=kind, damping=0.3, weight_decay=0.2)
    found, p = gradients(model, rows), sum(w.numel() for w in model.parameters())
    if kind in ("kfac", "diagonal"):
        expected = slow(model, rows, fit_curvature(model, rows, kind=kind), 0.5)
    else:
        G = torch.zeros(p, p, dtype=torch.float64) if kind == "identity" else DenseSolver(model, rows).matrix
        H = G + 0.5 * torch.eye(p, dtype=torch.float64)
        flat = torch.stack([torch.cat([part.flatten() for part in g.values()]) for g in found])
        expected = (flat * torch.linalg.solve(H, flat.T).T).sum(1).numpy()
    np.testing.assert_allclose(scores.values, expected, rtol=SOLVERS[kind])
    assert scores.options["kind"] == kind
    assert scores.options["damping"] == 0.3


def test_a_solver_that_is_given_is_the_one_that_is_named():
    model, rows = model_of("mlp"), rows_of(5)
    for given, name in ((DenseSolver(model, rows), "dense"), (IdentitySolver(), "identity")):
        by_name = self_influence(model, rows, solver=name, damping=0.3)
        by_object = self_influence(model, rows, solver=given, damping=0.3)
        np.testing.assert_array_equal(by_object.values, by_name.values)
    curvature = fit_curvature(model, rows)
    np.testing.assert_array_equal(
        self_influence(model, rows, solver=curvature).values, self_influence(model, rows, curvature=curvature).values
    )


def test_cost_is_counted():
    model, rows = model_of("mlp"), rows_of(5)
    p = sum(w.numel() for w in model.parameters())
    solver = ConjugateGradientSolver(gauss_newton(model, rows))
    solver.solve(gradients(model, rows)[0], damping=0.3)
    before = solver.cost  # spent elsewhere, so not counted
    costs = {
        "given": (fit_curvature(model, rows), 1),
        "ekfac": ("ekfac", 3),
        "kfac": ("kfac", 2),
        "identity": ("identity", 1),
        "dense": ("dense", 1 + p * 4 / 3),
    }
    for given, epochs in costs.values():
        cost = self_influence(model, rows, solver=given, damping=0.3).options["cost_epochs"]
        assert cost == pytest.approx(epochs)
    cost = self_influence(model, rows, solver=solver, damping=0.3).options["cost_epochs"]
    assert cost == pytest.approx(1 + (solver.cost - before) / 15)
    assert cost > 5


class Recurrent(nn.Module):
    """A module whose weights are used in no plain product."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNN(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.cell(x.reshape(len(x), 4, 3))[1][0])


def test_other_solvers_take_any_module():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Recurrent().double()
    rows = rows_of(3)
    scores = self_influence(model, rows, solver="identity", damping=0.5)
    np.testing.assert_allclose(scores.values, [dot(g, g) / 0.5 for g in gradients(model, rows)], rtol=1e-10)


@pytest.mark.parametrize("solver", ["ekfac", "dense"])
@pytest.mark.parametrize("relative", ["gradient", "parameters"])
def test_relative_scores_by_hand(relative, solver):
    # rejects ||g|| in place of g^T g, g^T H^-1 g in place of ||H^-1 g||, and squares of it
    model, rows = model_of("mlp"), rows_of(5)
    made = fit_curvature(model, rows) if solver == "ekfac" else DenseSolver(model, rows)
    scores = self_influence(model, rows, solver=made, relative=relative, damping=0.05)
    for value, g in zip(scores.values, gradients(model, rows), strict=True):
        x = made.solve(g, damping=0.05)
        by = dot(g, g) if relative == "gradient" else dot(x, x) ** 0.5
        assert value == pytest.approx(dot(g, x) / by, rel=1e-9)
    assert scores.method == f"self-influence-{relative}"


@pytest.fixture
def recorded(tmp_path):
    rows, settings = rows_of(), TrainSettings(lr=0.1, epochs=3, batch_size=4, schedule="step", step_epochs=1)
    model, record = train(model_of("mlp"), rows, settings, folder=tmp_path, snapshot_epochs=[0, 1, 2])
    snapshots = {}
    for step in (3, 6, 9):
        snapshots[step] = copy.deepcopy(model)
        record.snapshot(step).restore(snapshots[step])
    return model, rows, record, snapshots


def test_snapshots_with_factors_of_each(recorded):
    # rejects a sum, learning rates as weights, final factors or final gradients, and the weights before training
    model, rows, record, snapshots = recorded
    scores = self_influence(model, rows, record=record, weight_decay=0.01)
    parts = [self_influence(there, rows, weight_decay=0.01) for there in snapshots.values()]
    np.testing.assert_allclose(scores.values, np.mean([part.values for part in parts], 0), rtol=1e-10)
    assert scores.method == "self-influence-snapshots"
    assert scores.options["snapshots"] == [3, 6, 9]
    assert scores.options["damping"] == [part.options["damping"] for part in parts]
    assert scores.options["cost_epochs"] == 9
    two = self_influence(model, rows, record=record, steps=[9, 3], solver="dense", damping=0.1)
    pair = [self_influence(snapshots[step], rows, solver="dense", damping=0.1) for step in (3, 9)]
    np.testing.assert_allclose(two.values, np.mean([part.values for part in pair], 0), rtol=1e-10)
    assert two.options["cost_epochs"] == pytest.approx(sum(part.options["cost_epochs"] for part in pair))


def test_snapshots_with_shared_factors(recorded):
    model, rows, record, snapshots = recorded
    curvature = fit_curvature(model, rows)
    scores = self_influence(model, rows, record=record, curvature=curvature, damping=0.05)
    parts = [[dot(g, curvature.solve(g, damping=0.05)) for g in gradients(there, rows)] for there in snapshots.values()]
    np.testing.assert_allclose(scores.values, np.mean(parts, 0), rtol=1e-10)
    assert scores.options["cost_epochs"] == 3
    digest = weights_digest(model)
    with pytest.raises(StaleCurvatureError, match="belongs to weights"):
        self_influence(snapshots[3], rows, record=record, curvature=curvature)
    assert weights_digest(model) == digest


def test_records_that_do_not_serve(recorded):
    model, rows, record, _ = recorded
    with pytest.raises(InputError, match="there is none; give record= too"):
        self_influence(model, rows, steps=[3])
    with pytest.raises(InputError, match="name at least one snapshot"):
        self_influence(model, rows, record=record, steps=[])
    with pytest.raises(RecordError, match=r"recorded at 4; there are \[3, 6, 9\]"):
        self_influence(model, rows, record=record, steps=[4])
    with pytest.raises(RecordError, match="no snapshots after the first step"):
        self_influence(model, rows, record=TrainingRecord(optimizer="sgd", lr=0.1, steps=9))


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
        ({"relative": "loss"}, "unknown relative 'loss'; known: gradient, parameters"),
        ({"solver": "dens", "damping": 0.1}, "did you mean 'dense'"),
        ({"solver": 3}, "solver is int; give a name such as 'cg', or an object with solve"),
        ({"solver": "cg"}, "solver 'cg' knows no mean eigenvalue"),
        ({"solver": "cg", "damping": -0.1}, "damping is -0.1"),
        ({"solver": "kfac", "batch_size": 0}, "batch_size is 0"),
        ({"solver": "identity", "damping": 0.0}, "damping is 0 and the identity solver"),
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


def test_curvature_and_solver_are_one_thing():
    model, rows = model_of("mlp"), rows_of()
    with pytest.raises(InputError, match="two names of one thing; pass one of them"):
        self_influence(model, rows, curvature=fit_curvature(model, rows), solver="dense")


class NoLoss(Classification):
    """A task whose loss is not finite."""

    def loss(self, outputs, labels):
        return super().loss(outputs, labels) * float("nan")

    def output_gradient(self, outputs, labels):
        return super().output_gradient(outputs, labels) * float("nan")


def test_rows_that_have_no_loss_are_refused():
    model, rows = model_of("mlp"), rows_of()
    inputs, labels = rows.batch(torch.arange(11))
    broken = (inputs.index_fill(0, torch.tensor([4]), float("nan")), labels)
    for solver in (fit_curvature(model, rows), "identity"):
        with pytest.raises(InputError, match="inputs of data are NaN or infinite in rows 4"):
            self_influence(model, broken, solver=solver, damping=0.1)
        with pytest.raises(InputError, match=r"labels are torch\.float64; classification needs integers"):
            self_influence(model, (inputs, labels.double()), solver=solver, damping=0.1)
        with pytest.raises(InputError, match="score 'self-influence' of row '1-0' is nan; check its input"):
            self_influence(model, rows, solver=solver, damping=0.1, task=NoLoss())
    with torch.no_grad():
        model[4].bias.fill_(float("inf"))
    with pytest.raises(InputError, match="outputs are NaN or infinite; its weights or inputs are damaged"):
        self_influence(model, rows, solver="identity", damping=0.1)


def test_classes_must_fit_the_model():
    rows = rows_of()
    more = Rows.from_tensors(rows.batch(torch.arange(11))[0], rows.labels + 1)
    model = model_of("mlp")
    with pytest.raises(InputError, match="label 3 is outside the model's 3 classes"):
        self_influence(model, more, curvature=fit_curvature(model, rows))
