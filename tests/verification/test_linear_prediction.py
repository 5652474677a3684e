"""What the curvature foretells of a change, against dense and exact answers in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unlearn.curvature import fit_curvature
from unlearn.data import Rows
from unlearn.repair import Changes
from unlearn.repair.newton import load_weights
from unlearn.tasks import get_task
from unlearn.verification.linear_prediction import agreement_of, output_change, predicted_step

DECAY, DAMPING = 0.01, 0.2
CHANGES = {
    "remove": Changes(removed=("3", "5")),
    "relabel": Changes(relabelled={"1": 2, "8": 0}),
    "mixed": Changes(removed=("4",), relabelled={"2": 0}),
}


def case() -> tuple[nn.Module, Rows]:
    generator = torch.Generator().manual_seed(2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
    inputs = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    return model, Rows.from_tensors(inputs, torch.arange(12) % 3, classes=3)


def row_gradient(model: nn.Module, rows: Rows, row: str, label: int) -> Tensor:
    inputs, _ = rows[rows.ids.index(row)]
    loss = nn.functional.cross_entropy(model(inputs[None]), torch.tensor([label]))
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("kind", CHANGES)
def test_the_step_solves_the_newton_equation_of_math_md_3(kind: str) -> None:
    """Rejects the wrong sign, a sum in place of the mean, and weight decay left out of either side."""
    model, rows = case()
    changes = CHANGES[kind]
    curvature = fit_curvature(model, rows, fisher="exact")
    step = predicted_step(
        model, rows, changes, curvature, task=get_task("classification"), weight_decay=DECAY, damping=DAMPING
    )
    product = curvature.matvec(step)
    left = torch.cat([(product[name] + (DECAY + DAMPING) * step[name]).reshape(-1) for name in step])
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    old = dict(zip(rows.ids, rows.labels.tolist(), strict=True))
    right = torch.zeros_like(left)
    for row in changes.removed:
        right += row_gradient(model, rows, row, old[row]) + DECAY * theta
    for row, label in changes.relabelled.items():
        right += row_gradient(model, rows, row, old[row]) - row_gradient(model, rows, row, int(label))
    torch.testing.assert_close(left, right / (len(rows) - len(changes.removed)), rtol=1e-9, atol=1e-12)


def test_the_output_change_is_exact_where_outputs_are_linear_in_the_weights() -> None:
    model, rows = case()
    step = {name: torch.full_like(p, 0.3) for name, p in model.named_parameters()}
    moved = load_weights(model, {name: p.detach() + step[name] for name, p in model.named_parameters()})
    inputs, _ = rows.batch(torch.arange(len(rows)))
    torch.testing.assert_close(output_change(model, rows, step), (moved(inputs) - model(inputs)).detach())


def test_the_output_change_of_a_net_is_its_derivative() -> None:
    _, rows = case()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)).double().train()
    step = {name: torch.ones_like(p) for name, p in net.named_parameters()}
    found = output_change(net, rows, step)
    assert net.training
    net.eval()
    h = 1e-6
    ends = [load_weights(net, {n: p.detach() + s * h * step[n] for n, p in net.named_parameters()}) for s in (1, -1)]
    inputs, _ = rows.batch(torch.arange(len(rows)))
    torch.testing.assert_close(found, ((ends[0](inputs) - ends[1](inputs)) / (2 * h)).detach(), rtol=1e-6, atol=1e-7)


def test_agreement_by_hand() -> None:
    predicted = torch.tensor([[2.0, 0.0], [0.0, 0.0]])  # centred: 1 -1, 0 0
    actual = torch.tensor([[9.0, 8.0], [-1.0, 1.0]])  # centred: .5 -.5, -1 1
    found = agreement_of(predicted, actual)
    assert found.slope == pytest.approx(0.5)
    assert found.cosine == pytest.approx(1 / (2 * 2.5) ** 0.5)
    assert (found.predicted, found.actual) == pytest.approx(((2 / 4) ** 0.5, (2.5 / 4) ** 0.5))
    assert agreement_of(predicted, torch.ones(2, 2)).cosine == 0
    assert agreement_of(predicted, -predicted).slope == pytest.approx(-1)
