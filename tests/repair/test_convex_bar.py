"""At an optimum with damping 0 the edit is retraining (the issue's bar "convex")."""

from __future__ import annotations

import copy

import pytest
import torch
from repair_cases import gradient_size, training_objective, weights_of
from torch import Tensor, nn

from unlearn.data import Rows, load_data
from unlearn.repair import Changes, apply_changes
from unlearn.training import TrainingRecord, train_to_optimum

DECAY = 1e-2
COUNT = 455


@pytest.fixture(scope="module")
def logistic() -> tuple[nn.Module, Rows, TrainingRecord]:
    table = load_data("breast-cancer")
    inputs, labels = table.batch(torch.arange(COUNT))
    rows = Rows.from_tensors(inputs.double(), labels, ids=table.ids[:COUNT], classes=2)
    model, record = _optimum(rows)
    return model, rows, record


def _start(rows: Rows) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(rows[0][0].numel(), rows.classes or 1).double()


def _optimum(rows: Rows) -> tuple[nn.Module, TrainingRecord]:
    return train_to_optimum(_start(rows), rows, weight_decay=DECAY, gradient_tolerance=1e-8)


def _retrained(rows: Rows) -> nn.Module:
    """L-BFGS from fresh weights, then two Newton steps with the dense Hessian: L-BFGS alone stops at 1e-9."""
    model = _optimum(rows)[0]
    names = [name for name, _ in model.named_parameters()]

    def objective(*weights: Tensor) -> Tensor:
        inputs, labels = rows.batch(torch.arange(len(rows)))
        outputs = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (inputs,))
        return nn.functional.cross_entropy(outputs, labels) + 0.5 * DECAY * sum(w.square().sum() for w in weights)

    for _ in range(2):
        weights = tuple(p.detach() for p in model.parameters())
        blocks = torch.autograd.functional.hessian(objective, weights)
        hessian = torch.cat(
            [torch.cat([b.reshape(w.numel(), -1) for b in row], 1) for w, row in zip(weights, blocks, strict=True)]
        )
        parts = torch.autograd.grad(training_objective(model, rows, DECAY), list(model.parameters()))
        gradient = torch.cat([part.reshape(-1) for part in parts])
        step = torch.linalg.solve(hessian, gradient).split([w.numel() for w in weights])
        with torch.no_grad():
            for p, part in zip(model.parameters(), step, strict=True):
                p -= part.reshape(p.shape)
    return model


def _changes(rows: Rows, count: int, kind: str) -> Changes:
    chosen = [rows.ids[i] for i in torch.randperm(COUNT, generator=torch.Generator().manual_seed(count))[:count]]
    removed = {"remove": count, "relabel": 0, "mixed": count // 2}[kind]
    flipped = {row: 1 - int(rows.only([row]).labels) for row in chosen[removed:]}
    return Changes(tuple(chosen[:removed]), flipped)


# measured: at most 5e-15
@pytest.mark.parametrize(
    ("count", "kind"),
    [(1, "remove"), (1, "relabel")] + [(count, kind) for count in (20, 200) for kind in ("remove", "relabel", "mixed")],
)
def test_logistic_regression_is_retrained(
    logistic: tuple[nn.Module, Rows, TrainingRecord], count: int, kind: str
) -> None:
    model, rows, record = logistic
    changes = _changes(rows, count, kind)
    edit = apply_changes(model, rows, changes, record=record)
    wanted, before = weights_of(_retrained(changes.apply(rows))), weights_of(model)
    error = float((weights_of(edit.model) - wanted).norm() / wanted.norm())
    assert error < 1e-6
    assert float((before - wanted).norm() / wanted.norm()) > 1e-4  # or nothing was asked for
    assert edit.notes == ()
    assert gradient_size(edit.model, edit.edited_data, DECAY) < 1e-9


def test_weight_decay_acts_on_biases_too(logistic: tuple[nn.Module, Rows, TrainingRecord]) -> None:
    """The oracle decays all weights; an edit without decay on biases would end elsewhere."""
    model, rows, record = logistic
    changes = _changes(rows, 20, "remove")
    edited = apply_changes(model, rows, changes, record=record).model
    bias = edited.get_parameter("bias").detach()
    inputs, labels = changes.apply(rows).batch(torch.arange(COUNT - 20))
    mean_gradient = (edited(inputs).softmax(1) - nn.functional.one_hot(labels)).mean(0).detach()
    torch.testing.assert_close(mean_gradient, -DECAY * bias, rtol=1e-6, atol=1e-9)
    assert float(bias.abs().max()) > 1e-3


def test_full_length_steps_that_overshoot_are_shortened(logistic: tuple[nn.Module, Rows, TrainingRecord]) -> None:
    model, rows, record = logistic
    edit = apply_changes(model, rows, _changes(rows, 20, "relabel"), record=record)
    lengths = [step.length for step in edit.steps]
    assert min(lengths) < 0.9
    assert lengths[-1] == 1.0
    assert all(step.actual <= 0 for step in edit.steps)


def _line(decay: float) -> tuple[nn.Module, Rows, TrainingRecord]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 6, generator=generator, dtype=torch.float64) + 0.5
    labels = inputs.sum(1) + torch.randn(80, generator=generator, dtype=torch.float64)
    rows = Rows.from_tensors(inputs, labels)
    model, record = train_to_optimum(nn.Linear(6, 1).double(), rows, weight_decay=decay, task="regression")
    return model, rows, record


def _normal_equations(rows: Rows, decay: float) -> Tensor:
    inputs, labels = rows.batch(torch.arange(len(rows)))
    x = torch.cat([inputs, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    gram = x.T @ x / len(rows) + decay * torch.eye(x.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, x.T @ labels / len(rows))


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("kind", ["remove", "relabel", "mixed"])
def test_least_squares_in_one_step(kind: str, count: int, decay: float) -> None:
    model, rows, record = _line(decay)
    removed = {"remove": count, "relabel": 0, "mixed": count // 2}[kind]
    ids = [str(3 * i) for i in range(count)]
    changes = Changes(tuple(ids[:removed]), dict.fromkeys(ids[removed:], 5.0))
    edit = apply_changes(model, rows, changes, record=record, task="regression", steps=1)
    assert len(edit.steps) == 1
    wanted = _normal_equations(changes.apply(rows), decay)
    assert float((weights_of(edit.model) - wanted).norm() / wanted.norm()) < 1e-8
    assert float((weights_of(model) - wanted).norm() / wanted.norm()) > 1e-4


@pytest.mark.parametrize("kind", ["remove", "relabel"])
def test_deep_net_reaches_a_stationary_point_of_the_edited_objective(kind: str) -> None:
    table = load_data("breast-cancer")
    inputs, labels = table.batch(torch.arange(120))
    rows = Rows.from_tensors(inputs[:, :8].double(), labels, classes=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    model, record = train_to_optimum(start, rows, weight_decay=0.05, gradient_tolerance=1e-7)
    ids = [str(i) for i in range(0, 60, 20)]
    changes = Changes(tuple(ids)) if kind == "remove" else Changes((), {i: 1 - int(labels[int(i)]) for i in ids})
    edit = apply_changes(copy.deepcopy(model), rows, changes, record=record)
    before = gradient_size(model, edit.edited_data, 0.05)
    after = gradient_size(edit.model, edit.edited_data, 0.05)
    assert before > 1e-3
    assert after < 1e-6 * before, [step.to_dict() for step in edit.steps]


def test_damping_0_away_from_an_optimum_is_said(logistic: tuple[nn.Module, Rows, TrainingRecord]) -> None:
    _, rows, record = logistic
    edit = apply_changes(_start(rows), rows, _changes(rows, 20, "remove"), record=record)
    assert len(edit.steps) == 1
    assert "not at an optimum" in edit.notes[0]
