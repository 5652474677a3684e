"""The edited objective against sums written out row by row."""

from __future__ import annotations

import pytest
import torch
from repair_cases import (
    TINY_CHANGES,
    dense_gauss_newton,
    flat,
    gradient_size,
    right_hand_side,
    row_gradient,
    tiny,
    training_objective,
    weights_of,
)
from torch import Tensor, nn
from torch.func import functional_call

from unlearn.data import Rows
from unlearn.repair import Changes
from unlearn.repair.newton import load_weights
from unlearn.repair.objective import Damping, EditedObjective
from unlearn.tasks import get_task
from unlearn.training import train_to_optimum

DECAY, DAMPING = 0.03, 0.2
KINDS = list(TINY_CHANGES)


def objective_of(
    model: nn.Module, rows: Rows, changes: Changes, damping: Damping = DAMPING, **options: object
) -> EditedObjective:
    names = [name for name, _ in model.named_parameters()]
    return EditedObjective(model, rows, changes, get_task("classification"), names, DECAY, damping, **options)  # type: ignore[arg-type]


def elsewhere(objective: EditedObjective, size: float = 0.3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        name: value + size * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in objective.start.items()
    }


def metric(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {name: 0.1 + torch.rand(p.shape, generator=generator, dtype=p.dtype) for name, p in model.named_parameters()}


def slow_objective(
    model: nn.Module, rows: Rows, changes: Changes, damping: Damping, weights: dict[str, Tensor], kept: Rows
) -> Tensor:
    """E as its docstring has it, one row at a time; changed rows by the gradient of their loss in outputs."""
    left = len(rows) - len(changes.removed)

    def outputs(x: Tensor) -> Tensor:
        return functional_call(model, weights, (x[None],))[0]

    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(kept)):
        old = model(kept[i][0][None])[0].detach().log_softmax(0)
        total = total + (old.exp() * (old - outputs(kept[i][0]).log_softmax(0))).sum() / len(kept)
    for row in changes.ids:
        x, y = rows[rows.ids.index(row)]
        p = model(x[None])[0].detach().softmax(0)
        hot = torch.eye(3, dtype=p.dtype)
        new = p - hot[int(changes.relabelled[row])] if row in changes.relabelled else torch.zeros_like(p)
        total = total + (new - (p - hot[y])) @ outputs(x) / left
    for name, start in model.named_parameters():
        step = weights[name] - start.detach()
        d = damping[name] if isinstance(damping, dict) else damping
        total = total + 0.5 * DECAY * step.square().sum() + 0.5 * (d * step.square()).sum()
        total = total - len(changes.removed) * DECAY / left * (start.detach() * step).sum()
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_first_gradient_is_the_right_hand_side_of_math_3(kind: str) -> None:
    model, rows = tiny()
    changes = TINY_CHANGES[kind]
    _, gradient = objective_of(model, rows, changes).at_start()
    torch.testing.assert_close(flat(gradient), -right_hand_side(model, rows, changes, DECAY), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_first_gradient_is_that_of_the_edited_training_less_the_unfinished_part(kind: str) -> None:
    """grad J_edited - (n / n') grad J: were J at its optimum, all of grad J_edited."""
    model, rows = tiny()
    changes = TINY_CHANGES[kind]
    left = len(rows) - len(changes.removed)

    def gradient(data: Rows) -> Tensor:
        found = torch.autograd.grad(training_objective(model, data, DECAY), list(model.parameters()))
        return torch.cat([part.reshape(-1) for part in found])

    wanted = gradient(changes.apply(rows)) - len(rows) / left * gradient(rows)
    torch.testing.assert_close(flat(objective_of(model, rows, changes).at_start()[1]), wanted, rtol=1e-10, atol=1e-13)
    all_of_it = gradient(changes.apply(rows))  # fine-tuning would follow this
    assert float((wanted - all_of_it).norm()) > 0.1 * float(all_of_it.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_right_hand_sides_are_told_apart(kind: str) -> None:
    """Divided by n, without the pull of w, or with the sign of a subtraction: none is within 1 %."""
    model, rows = tiny()
    changes = TINY_CHANGES[kind]
    found = -flat(objective_of(model, rows, changes).at_start()[1])
    right = right_hand_side(model, rows, changes, DECAY)
    wrong = {"sign": -right}
    if changes.removed:
        wrong["n"] = right * (len(rows) - len(changes.removed)) / len(rows)
        wrong["pull"] = right_hand_side(model, rows, changes, 0.0)
    for name, vector in wrong.items():
        assert float((found - vector).norm() / right.norm()) > 0.01, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sample", [None, 7])
@pytest.mark.parametrize("with_metric", [False, True])
def test_value_and_gradient_everywhere(kind: str, sample: int | None, with_metric: bool) -> None:
    model, rows = tiny()
    changes, damping = TINY_CHANGES[kind], metric(model) if with_metric else DAMPING
    objective = objective_of(model, rows, changes, damping, sample=sample)
    assert len(objective.rows) == (sample or len(objective.edited))
    assert set(objective.rows.ids).isdisjoint(changes.removed)
    weights = {name: value.requires_grad_() for name, value in elsewhere(objective).items()}
    wanted = slow_objective(model, rows, changes, damping, weights, objective.rows)
    value, gradient = objective.value_and_gradient(weights)
    assert value == pytest.approx(wanted.item(), rel=1e-11)
    assert objective.value(weights) == pytest.approx(wanted.item(), rel=1e-11)
    slow = torch.autograd.grad(wanted, list(weights.values()))
    torch.testing.assert_close(flat(gradient), torch.cat([part.reshape(-1) for part in slow]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_matter(kind: str, batch_size: int) -> None:
    """E once took c_i from the weights it was first evaluated at, so it was another one before ``at_start``."""
    model, rows = tiny()
    one = objective_of(model, rows, TINY_CHANGES[kind], batch_size=batch_size)
    two = objective_of(model, rows, TINY_CHANGES[kind])
    one.at_start()
    assert one.value(elsewhere(one)) == pytest.approx(two.value(elsewhere(two)), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("full", [False, True])
def test_at_start_is_the_value_there(kind: str, full: bool) -> None:
    model, rows = tiny()
    objective = objective_of(model, rows, TINY_CHANGES[kind], full=full)
    value, gradient = objective.at_start()
    again, gradient_again = objective.value_and_gradient(objective.start)
    assert objective.value(objective.start) == pytest.approx(value, rel=1e-12)
    assert again == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(flat(gradient), flat(gradient_again), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_hessian_of_a_linear_model_is_the_gauss_newton_matrix_and_decay_and_damping(kind: str) -> None:
    model, rows = tiny("linear")
    changes, damping = TINY_CHANGES[kind], metric(model)
    objective = objective_of(model, rows, changes, damping)
    size, columns = 1e-5, []
    for k in range(len(weights_of(model))):
        gradients = []
        for sign in (1, -1):
            moved = flat(objective.start)
            moved[k] += sign * size
            weights = dict(
                zip(objective.names, moved.split([v.numel() for v in objective.start.values()]), strict=True)
            )
            shaped = {name: part.reshape(objective.start[name].shape) for name, part in weights.items()}
            gradients.append(flat(objective.value_and_gradient(shaped)[1]))
        columns.append((gradients[0] - gradients[1]) / (2 * size))
    diagonal = DECAY + flat(damping)
    wanted = dense_gauss_newton(model, changes.apply(rows)) + diagonal.diag()
    torch.testing.assert_close(torch.stack(columns, 1), wanted, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_full_is_the_edited_training_objective(kind: str) -> None:
    model, rows = tiny()
    changes = TINY_CHANGES[kind]
    objective = objective_of(model, rows, changes, 0.0, full=True)
    weights = elsewhere(objective)
    moved = load_weights(model, weights)
    value, gradient = objective.value_and_gradient(weights)
    assert value == pytest.approx(training_objective(moved, changes.apply(rows), DECAY).item(), rel=1e-12)
    assert float(flat(gradient).norm()) == pytest.approx(gradient_size(moved, changes.apply(rows), DECAY), rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_model_at_its_optimum_has_the_edited_training_objective_up_to_a_constant(kind: str) -> None:
    start, rows = tiny("linear")
    changes = TINY_CHANGES[kind]
    model, _ = train_to_optimum(start, rows, weight_decay=DECAY, gradient_tolerance=1e-9)
    objective = objective_of(model, rows, changes, 0.0)
    weights = elsewhere(objective)
    edited = changes.apply(rows)
    rise = training_objective(load_weights(model, weights), edited, DECAY) - training_objective(model, edited, DECAY)
    assert objective.value(weights) - objective.at_start()[0] == pytest.approx(rise.item(), rel=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_cost_is_counted_in_row_passes(full: bool) -> None:
    """Gradient of the m changed rows 3 m; E: forward over rows and changed rows; the outputs at theta_0 once."""
    model, rows = tiny()
    changes = TINY_CHANGES["mixed"]  # m = 4, 2 removed
    objective = objective_of(model, rows, changes, full=full)
    objective.at_start()
    assert objective.cost == (3 * 10 if full else 4 + 3 * 4)
    objective.cost = 0
    objective.value(objective.start)
    assert objective.cost == (10 if full else 10 + 10 + 4)
    objective.cost = 0
    objective.value_and_gradient(objective.start)
    assert objective.cost == (3 * 10 if full else 3 * (10 + 4))


def test_regression_follows_the_difference_of_labels() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    inputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = Rows.from_tensors(inputs, inputs.sum(1))
    changes = Changes(removed=("4",), relabelled={"2": 1.5})
    names = [name for name, _ in model.named_parameters()]
    objective = EditedObjective(model, rows, changes, get_task("regression"), names, DECAY, DAMPING)
    total = row_gradient(model, *rows[4], task="regression") + DECAY * weights_of(model)
    total = total + row_gradient(model, *rows[2], task="regression")
    total = total - row_gradient(model, rows[2][0], torch.tensor(1.5).double(), task="regression")
    torch.testing.assert_close(flat(objective.at_start()[1]), -total / 8, rtol=1e-10, atol=1e-13)
