"""The Newton step against dense solves, and the line search that may refuse it."""

from __future__ import annotations

import math

import pytest
import torch
from repair_cases import (
    TINY_CHANGES,
    dense_gauss_newton,
    flat,
    gradient_size,
    right_hand_side,
    same_bits,
    tiny,
    weights_of,
)
from test_edited_objective import DAMPING, DECAY, KINDS, metric, objective_of
from torch import Tensor, nn

from unlearn.curvature import fit_curvature
from unlearn.data import Rows
from unlearn.predict import predict
from unlearn.repair import Changes, apply_changes
from unlearn.repair import newton_edit as newton_module
from unlearn.repair.newton import newton_steps
from unlearn.repair.objective import EditedObjective


def converged_step(model: nn.Module, rows: Rows, changes: Changes, damping: float | dict[str, Tensor]) -> Tensor:
    """Return the step of converged conjugate gradients, at full length."""
    objective = objective_of(model, rows, changes, damping)
    weights, steps = newton_steps(objective, fit_curvature(model, rows), iterations=300, tolerance=1e-12)
    assert len(steps) == 1
    assert steps[0].residual < 1e-12
    return (flat(weights) - weights_of(model)) / steps[0].length


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_metric", [False, True])
def test_step_is_the_dense_solve(kind: str, with_metric: bool) -> None:
    """(G_edited + w + d)^-1 b: w and d each once, G of the edited rows without either."""
    model, rows = tiny()
    changes, damping = TINY_CHANGES[kind], metric(model) if with_metric else DAMPING
    d = flat(damping) if isinstance(damping, dict) else torch.full_like(weights_of(model), damping)
    edited, right = dense_gauss_newton(model, changes.apply(rows)), right_hand_side(model, rows, changes, DECAY)
    found = converged_step(model, rows, changes, damping)
    wanted = torch.linalg.solve(edited + (DECAY + d).diag(), right)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)
    wrong = {
        "no decay": edited + d.diag(),
        "decay twice": edited + (2 * DECAY + d).diag(),
        "no damping": edited + DECAY * torch.eye(len(d), dtype=d.dtype),
        "rows before the change": dense_gauss_newton(model, rows) + (DECAY + d).diag(),
    }
    if not changes.removed:
        del wrong["rows before the change"]  # labels play no part in G
    for name, matrix in wrong.items():
        assert float((torch.linalg.solve(matrix, right) - wanted).norm() / wanted.norm()) > 1e-3, name


def test_numbers_of_a_step() -> None:
    model, rows = tiny()
    changes = TINY_CHANGES["relabel"]
    objective = objective_of(model, rows, changes, 2.0)
    weights, (step,) = newton_steps(objective, fit_curvature(model, rows), iterations=300, tolerance=1e-12)
    matrix = dense_gauss_newton(model, rows) + (DECAY + 2.0) * torch.eye(len(weights_of(model)), dtype=torch.float64)
    right = right_hand_side(model, rows, changes, DECAY)
    assert (step.length, step.accepted, step.damping, step.weight_decay) == (1.0, True, 2.0, DECAY)
    assert step.gradient_norm == pytest.approx(float(right.norm()))
    assert step.predicted == pytest.approx(-0.5 * float(right @ torch.linalg.solve(matrix, right)))
    assert step.actual == pytest.approx(objective.value(weights) - objective.value(objective.start))
    assert step.step_norm == pytest.approx(float((flat(weights) - weights_of(model)).norm()))


def test_cost_of_a_step_by_hand() -> None:
    model, rows = tiny()
    objective = objective_of(model, rows, TINY_CHANGES["mixed"], 2.0)
    _, (step,) = newton_steps(objective, fit_curvature(model, rows), iterations=3, tolerance=0.0)
    n, m = 10, 4  # rows left, rows changed
    assert step.length == 1.0  # one evaluation of E
    assert step.cost == m + 3 * m + 3 * 4 * n + n + (n + m)


@pytest.mark.parametrize("iterations", [1, 3])
def test_truncated_solve_promises_what_the_quadratic_model_says(iterations: int) -> None:
    model, rows = tiny()
    changes = TINY_CHANGES["remove"]
    objective = objective_of(model, rows, changes, 2.0)
    weights, (step,) = newton_steps(objective, fit_curvature(model, rows), iterations=iterations, tolerance=0.0)
    s = flat(weights) - weights_of(model)
    d = (DECAY + 2.0) * torch.eye(len(s), dtype=torch.float64)
    matrix = dense_gauss_newton(model, changes.apply(rows)) + d
    right = right_hand_side(model, rows, changes, DECAY)
    assert step.iterations == iterations
    assert step.predicted == pytest.approx(float(0.5 * s @ matrix @ s - right @ s))


def test_direction_of_removal_and_of_relabelling() -> None:
    model, rows = tiny()
    before = predict(model, rows)

    def loss(of: nn.Module, row: str, label: int) -> float:
        return float(-predict(of, rows.only([row])).log_softmax(1)[0, label])

    removed = apply_changes(model, rows, TINY_CHANGES["remove"], damping=DAMPING, weight_decay=0.0)
    assert removed.after["changed_loss"] > removed.before["changed_loss"]
    relabelled = apply_changes(model, rows, TINY_CHANGES["relabel"], damping=DAMPING, weight_decay=0.0)
    for row, label in TINY_CHANGES["relabel"].relabelled.items():
        old = float(-before[rows.ids.index(row)].log_softmax(0)[int(label)])
        assert loss(relabelled.model, row, int(label)) < old
    mixed = apply_changes(model, rows, TINY_CHANGES["mixed"], damping=DAMPING, weight_decay=0.0)
    labels = {row: int(rows.only([row]).labels) for row in TINY_CHANGES["mixed"].removed}
    assert sum(loss(mixed.model, *pair) for pair in labels.items()) > sum(loss(model, *pair) for pair in labels.items())


def test_unfinished_training_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the changed rows' terms: the full gradient of a model far from its optimum would be fine-tuning."""
    model, rows = tiny(n=40)
    changes = Changes(removed=("row-11",))
    monkeypatch.setattr(newton_module, "ITERATIONS", 300)
    edit = apply_changes(model, rows, changes, damping=DAMPING, weight_decay=DECAY)
    found = weights_of(edit.model) - weights_of(model)
    eye = torch.eye(len(found), dtype=torch.float64)
    matrix = dense_gauss_newton(model, changes.apply(rows)) + (DECAY + DAMPING) * eye
    right = right_hand_side(model, rows, changes, DECAY)
    wanted = torch.linalg.solve(matrix, right)
    assert float((found - wanted).norm() / wanted.norm()) < 0.02
    assert gradient_size(model, changes.apply(rows), DECAY) > 5 * float(right.norm())


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e9])
def test_step_that_is_never_accepted_leaves_the_weights(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    model, rows = tiny()
    monkeypatch.setattr(EditedObjective, "value", lambda self, weights: value)
    edit = apply_changes(model, rows, TINY_CHANGES["remove"], damping=DAMPING, weight_decay=DECAY, steps=3)
    assert same_bits(edit.model, model)
    (step,) = edit.steps
    assert (step.accepted, step.length, step.step_norm, step.actual, step.predicted) == (False, 0.0, 0.0, 0.0, 0.0)
    assert edit.before == edit.after
    assert len(edit.notes) == 1
    assert "Newton step 1 was not accepted" in edit.notes[0]


@pytest.mark.parametrize("first", [math.inf, math.nan, 1e9])
def test_refused_full_length_is_shortened(monkeypatch: pytest.MonkeyPatch, first: float) -> None:
    model, rows = tiny()
    value, calls = EditedObjective.value, []

    def first_is_bad(self: EditedObjective, weights: dict[str, Tensor]) -> float:
        calls.append(1)
        return first if len(calls) == 1 else value(self, weights)

    full = apply_changes(model, rows, TINY_CHANGES["relabel"], damping=2.0, weight_decay=DECAY)
    monkeypatch.setattr(EditedObjective, "value", first_is_bad)
    edit = apply_changes(model, rows, TINY_CHANGES["relabel"], damping=2.0, weight_decay=DECAY)
    assert full.steps[0].length == 1.0
    (step,) = edit.steps
    assert step.accepted
    assert step.length == pytest.approx(0.1)
    moved, whole = (weights_of(e.model) - weights_of(model) for e in (edit, full))
    torch.testing.assert_close(moved, step.length * whole)
    assert step.predicted == pytest.approx(2 * full.steps[0].predicted * (step.length - 0.5 * step.length**2))


def test_a_later_step_that_is_refused_keeps_the_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny()
    value, calls = EditedObjective.value, []

    def only_the_first(self: EditedObjective, weights: dict[str, Tensor]) -> float:
        calls.append(1)
        return value(self, weights) if len(calls) == 1 else math.inf

    one = apply_changes(model, rows, TINY_CHANGES["relabel"], damping=2.0, weight_decay=DECAY)
    monkeypatch.setattr(EditedObjective, "value", only_the_first)
    edit = apply_changes(model, rows, TINY_CHANGES["relabel"], damping=2.0, weight_decay=DECAY, steps=4)
    assert [step.accepted for step in edit.steps] == [True, False]
    assert same_bits(edit.model, one.model)
    assert "step 2" in edit.notes[0]


def test_a_solve_that_found_nothing_is_not_accepted() -> None:
    """A preconditioner that is not positive definite stops the solve at 0; this once counted as a step taken."""
    model, rows = tiny()
    objective = objective_of(model, rows, TINY_CHANGES["remove"])

    class Broken:
        def solve(self, vector: dict[str, Tensor], *, damping: float) -> dict[str, Tensor]:
            return {name: -part for name, part in vector.items()}

    weights, (step,) = newton_steps(objective, Broken())  # type: ignore[arg-type]
    assert step.breakdown is not None
    assert not step.accepted
    assert torch.equal(flat(weights), weights_of(model))


def test_falls_below_the_rounding_of_float32_are_not_taken_for_refusals() -> None:
    """The promise of a confident row is less than float32 resolves of E: noise shortened its step, or refused it."""
    model, rows = tiny("linear", n=200)
    model = model.float()
    inputs = rows.batch(torch.arange(200))[0].float()
    with torch.no_grad():
        for p in model.parameters():
            p *= 6
        labels = model(inputs).argmax(1)
    rows = Rows.from_tensors(inputs, labels, classes=3)
    losses = nn.functional.cross_entropy(model(inputs), labels, reduction="none")
    row = str(int(losses.argsort()[5]))
    edit = apply_changes(model, rows, Changes(removed=(row,)), damping=0.01, weight_decay=0.0)
    assert float(losses[int(row)]) < 1e-2
    assert -1e-7 < edit.steps[0].predicted < 0
    assert edit.steps[0].length == 1.0
    assert edit.steps[0].actual == edit.steps[0].predicted  # not measured
    assert not same_bits(edit.model, model)


@pytest.mark.parametrize(("share", "accepted"), [(0.0, False), (0.05, False), (0.2, True)])
def test_a_fall_must_be_a_tenth_of_the_promise(monkeypatch: pytest.MonkeyPatch, share: float, accepted: bool) -> None:
    """At full length the promise is half the slope; E that stays as it is, is no success."""
    model, rows = tiny()
    changes = TINY_CHANGES["relabel"]
    promise = apply_changes(model, rows, changes, damping=2.0, weight_decay=DECAY).steps[0].predicted
    monkeypatch.setattr(EditedObjective, "value", lambda self, weights: self.at_start()[0] + share * promise)
    (step,) = apply_changes(model, rows, changes, damping=2.0, weight_decay=DECAY).steps
    assert (step.length == 1.0) == accepted
