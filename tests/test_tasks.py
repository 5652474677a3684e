"""Tasks against autograd: loss, output gradient, output Fisher, divergence; margins and phi by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

from unlearn.errors import InputError
from unlearn.tasks import Classification, Regression, Task, get_task, margins, phi

B, C = 6, 4
LOGITS = 3 * torch.randn(B, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CASES: dict[str, tuple[Task, Tensor, Tensor]] = {
    "classification": (Classification(), LOGITS, torch.tensor([0, 1, 2, 3, 0, 1])),
    "regression": (Regression(), LOGITS, LOGITS.flip(0) + 1),
    "regression, one output": (Regression(), LOGITS[:, :1], LOGITS[:, 1]),
}
each_case = pytest.mark.parametrize(("task", "outputs", "labels"), CASES.values(), ids=CASES.keys())


def loss_of_one(task: Task) -> Any:
    return lambda z, y: task.loss(z[None], y[None])[0]


@each_case
def test_loss_is_row_by_row(task: Task, outputs: Tensor, labels: Tensor):
    # rejects a mean over the batch, and half the squared error averaged over outputs
    one_by_one = torch.stack([task.loss(outputs[i : i + 1], labels[i : i + 1])[0] for i in range(B)])
    torch.testing.assert_close(task.loss(outputs, labels), one_by_one, rtol=1e-12, atol=0)
    if task.name == "classification":
        by_hand = torch.stack([outputs[i].logsumexp(0) - outputs[i, labels[i]] for i in range(B)])
    else:
        by_hand = torch.stack([((outputs[i] - labels[i]) ** 2).sum() / 2 for i in range(B)])
    torch.testing.assert_close(one_by_one, by_hand, rtol=1e-12, atol=1e-14)


@each_case
def test_output_gradient_is_autograds(task: Task, outputs: Tensor, labels: Tensor):
    expected = vmap(grad(loss_of_one(task)))(outputs, labels)
    torch.testing.assert_close(task.output_gradient(outputs, labels), expected, rtol=1e-12, atol=1e-14)


@each_case
def test_fisher_root_and_product_are_the_hessian_of_the_loss_in_the_outputs(
    task: Task, outputs: Tensor, labels: Tensor
):
    # rejects the empirical Fisher, and a root whose columns are rows
    expected = vmap(hessian(loss_of_one(task)))(outputs, labels)
    root = task.fisher_root(outputs)
    torch.testing.assert_close(torch.einsum("kbc,kbd->bcd", root, root), expected, rtol=1e-12, atol=1e-14)
    tangents = LOGITS.roll(1, 0)[:, : outputs.shape[1]]
    product = torch.einsum("bcd,bd->bc", expected, tangents)
    torch.testing.assert_close(task.fisher_product(outputs, tangents), product, rtol=1e-12, atol=1e-14)


@each_case
def test_divergence_has_its_minimum_at_the_reference_and_the_fisher_as_hessian(
    task: Task, outputs: Tensor, labels: Tensor
):
    # rejects KL(p || reference), whose value elsewhere differs, and a divergence of scale 2
    def one(z: Tensor, reference: Tensor) -> Tensor:
        return task.divergence(reference[None], z[None])[0]

    assert torch.allclose(task.divergence(outputs, outputs), torch.zeros(B, dtype=torch.float64), atol=1e-14)
    torch.testing.assert_close(vmap(grad(one))(outputs, outputs), torch.zeros_like(outputs), rtol=0, atol=1e-14)
    curvature = vmap(hessian(one))(outputs, outputs)
    torch.testing.assert_close(curvature, vmap(hessian(loss_of_one(task)))(outputs, labels), rtol=1e-10, atol=1e-12)
    moved = outputs.roll(1, 0)
    if task.name == "classification":
        p, q = outputs.softmax(1), moved.softmax(1)
        torch.testing.assert_close(task.divergence(outputs, moved), (p * (p / q).log()).sum(1))
    else:
        torch.testing.assert_close(task.divergence(outputs, moved), ((outputs - moved) ** 2).sum(1) / 2)


@each_case
def test_sampled_gradients_have_the_fisher_as_mean_outer_product(task: Task, outputs: Tensor, labels: Tensor):
    # rejects labels drawn uniformly, the given label, or the arg max
    draws = 20_000
    ids = [f"row-{i}" for i in range(draws)]
    for z in outputs[:2]:
        g = task.sampled_gradient(z.expand(draws, -1), 0, ids)
        fisher = torch.einsum("kbc,kbd->cd", *[task.fisher_root(z[None])] * 2)
        error = (g.T @ g / draws - fisher).abs().max()
        assert float(error) < 5 * float(fisher.abs().max().sqrt()) / math.sqrt(draws)
        assert float(g.mean(0).abs().max()) < 5 / math.sqrt(draws)


@each_case
def test_sampled_gradients_depend_on_seed_and_row_id_alone(task: Task, outputs: Tensor, labels: Tensor):
    # rejects draws by position in the batch
    ids = [f"row-{i}" for i in range(400)]
    z = outputs[:1].expand(400, -1)
    whole = task.sampled_gradient(z, 7, ids)
    assert torch.equal(task.sampled_gradient(z[:50], 7, ids[200:250]), whole[200:250])
    assert torch.equal(task.sampled_gradient(z, 7, ids[::-1]), whole.flip(0))
    assert not torch.equal(task.sampled_gradient(z, 8, ids), whole)


def test_the_outputs_of_a_row_are_sampled_independently():
    # rejects one normal draw for all outputs of a row
    g = Regression().sampled_gradient(torch.zeros(4000, 3), 0, [str(i) for i in range(4000)])
    assert torch.corrcoef(g.T).fill_diagonal_(0).abs().max() < 0.06
    assert torch.isfinite(g).all()


def test_regression_outputs_without_a_dimension_of_outputs():
    task, z, y = Regression(), torch.tensor([1.0, 3.0]), torch.tensor([0.0, 5.0])
    assert task.loss(z, y).tolist() == [0.5, 2.0]
    assert task.loss(z[:, None], y).tolist() == [0.5, 2.0]  # rejects broadcasting (2, 1) - (2,) to (2, 2)
    assert task.output_gradient(z[:, None], y).tolist() == [[1.0], [-2.0]]
    assert task.fisher_root(z).shape == (1, 2)


def test_check_says_what_does_not_fit():
    task, y = Classification(), torch.tensor([0, 1])
    z = torch.zeros(2, 3)
    task.check(z, y)
    with pytest.raises(InputError, match=r"shape \(2, 3, 1\); classification needs \(rows, classes\)"):
        task.check(z[..., None], y)
    with pytest.raises(InputError, match=r"float32; classification needs integers .*task='regression'"):
        task.check(z, y.float())
    with pytest.raises(InputError, match="label 3 is outside the model's 3 classes"):
        task.check(z, y + 2)
    with pytest.raises(InputError, match="label -1 is outside"):
        task.check(z, y - 1)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="NaN or infinite"):
            task.check(z + bad, y)
        with pytest.raises(InputError, match="NaN or infinite"):
            Regression().check(z + bad, z)
    with pytest.raises(InputError, match="int64; regression needs floating"):
        Regression().check(z[:, :1], y)
    with pytest.raises(InputError, match=r"shape \(2, 3\), labels \(3, 2\)"):
        Regression().check(z, z.T)


def test_tasks_by_name_and_a_users_own():
    own = Regression()
    assert get_task(own) is own
    assert get_task("classification").name == "classification"
    with pytest.raises(InputError, match="did you mean 'regression'"):
        get_task("regresion")


def test_margins_by_hand():
    # rejects the largest logit of all, which gives 0 for every row the model is right about
    z = torch.tensor([[3.0, 1.0, 2.5], [3.0, 1.0, 2.5], [-1.0, -1.0, -5.0]])
    assert margins(z, torch.tensor([0, 1, 0])).tolist() == [0.5, -2.0, 0.0]


def test_phi_by_hand_and_for_two_classes():
    z = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]], dtype=torch.float64).log()
    expected = torch.tensor([math.log(0.3 / 0.7), math.log(0.7 / 0.3)], dtype=torch.float64)
    torch.testing.assert_close(phi(z, torch.tensor([2, 0])), expected)
    two = torch.tensor([[2.0, -1.0]])
    assert phi(two, torch.tensor([0])).item() == 3.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_phi_of_extreme_logits_is_finite_and_right(dtype: torch.dtype):
    # rejects log p - log(1 - p), which is infinite from p = 1 - 6e-8 on in float32
    z = torch.tensor([[60.0, 0.0, 0.0], [1000.0, 0.0, -1000.0]], dtype=dtype)
    torch.testing.assert_close(
        phi(z, torch.tensor([0, 0])), torch.tensor([60 - math.log(2), 1000.0], dtype=dtype), rtol=1e-6, atol=0
    )
    assert phi(z, torch.tensor([1, 2])).tolist() == [-60.0, -2000.0]
