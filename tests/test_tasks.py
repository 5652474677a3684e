"""Tasks against autograd: loss, output gradient, output Fisher, divergence; margins and phi by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

from unlearn.errors import InputError
from unlearn.tasks import (
    Classification,
    LanguageModelling,
    OwnLoss,
    Regression,
    Sigmoid,
    Task,
    get_task,
    margins,
    phi,
)

B, C = 6, 4
LOGITS = 3 * torch.randn(B, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def weighted(z: Tensor, y: Tensor) -> Tensor:
    return (1 + y) * torch.nn.functional.cross_entropy(z, y, reduction="none")


CASES: dict[str, tuple[Task, Tensor, Tensor]] = {
    "classification": (Classification(), LOGITS, torch.tensor([0, 1, 2, 3, 0, 1])),
    "regression": (Regression(), LOGITS, LOGITS.flip(0) + 1),
    "regression, one output": (Regression(), LOGITS[:, :1], LOGITS[:, 1]),
    "binary": (Sigmoid("binary"), LOGITS[:, 0], torch.tensor([0, 1, 1, 0, 0, 1])),
    "multi-label": (Sigmoid("multi-label"), LOGITS, (LOGITS.flip(0) > 0).double()),
    "tokens": (
        LanguageModelling(),
        LOGITS[:, None] * torch.tensor([1.0, -0.5, 2.0])[:, None],
        torch.tensor([[0, 1, 2], [3, -100, -100], [-100, 2, 1], [1, 1, 1], [0, -100, 3], [2, 2, -100]]),
    ),
    "own loss": (OwnLoss(weighted), LOGITS, torch.tensor([0, 1, 2, 3, 0, 1])),
}
BY_HAND = {
    "classification": lambda z, y: z.logsumexp(0) - z[y],
    "regression": lambda z, y: ((z - y) ** 2).sum() / 2,
    "binary": lambda z, y: (1 + z.exp()).log() - y * z,
    "multi-label": lambda z, y: ((1 + z.exp()).log() - y * z).sum(),
    "language-modelling": lambda z, y: torch.stack(
        [z[t].logsumexp(0) - z[t, k] for t, k in enumerate(y) if k >= 0]
    ).mean(),
    "own-loss": lambda z, y: (1 + y) * (z.logsumexp(0) - z[y]),
}
each_case = pytest.mark.parametrize(("task", "outputs", "labels"), CASES.values(), ids=CASES.keys())


def loss_of_one(task: Task) -> Any:
    return lambda z, y: task.loss(z[None], y[None])[0]


@each_case
def test_loss_is_row_by_row(task: Task, outputs: Tensor, labels: Tensor):
    # rejects a mean over the batch, and half the squared error averaged over outputs
    one_by_one = torch.stack([task.loss(outputs[i : i + 1], labels[i : i + 1])[0] for i in range(B)])
    torch.testing.assert_close(task.loss(outputs, labels), one_by_one, rtol=1e-12, atol=0)
    by_hand = torch.stack([BY_HAND[task.name](outputs[i], labels[i]) for i in range(B)])
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
    c = outputs[0].numel()
    expected = vmap(hessian(loss_of_one(task)))(outputs, labels).reshape(B, c, c)
    root = task.fisher_root(outputs, labels).reshape(-1, B, c)
    torch.testing.assert_close(torch.einsum("kbc,kbd->bcd", root, root), expected, rtol=1e-11, atol=1e-13)
    tangents = outputs.roll(1, 0)
    product = (expected @ tangents.reshape(B, c, 1)).reshape(outputs.shape)
    torch.testing.assert_close(task.fisher_product(outputs, labels, tangents), product, rtol=1e-11, atol=1e-13)


@each_case
def test_divergence_has_its_minimum_at_the_reference_and_the_fisher_as_hessian(
    task: Task, outputs: Tensor, labels: Tensor
):
    # rejects KL(p || reference), whose value elsewhere differs, and a divergence of scale 2
    def one(z: Tensor, reference: Tensor, y: Tensor) -> Tensor:
        return task.divergence(reference[None], z[None], y[None])[0]

    nothing = torch.zeros(B, dtype=torch.float64)
    torch.testing.assert_close(task.divergence(outputs, outputs, labels), nothing, rtol=0, atol=1e-13)
    slope = vmap(grad(one))(outputs, outputs, labels)
    torch.testing.assert_close(slope, torch.zeros_like(outputs), rtol=0, atol=1e-13)
    curvature = vmap(hessian(one))(outputs, outputs, labels)
    torch.testing.assert_close(curvature, vmap(hessian(loss_of_one(task)))(outputs, labels), rtol=1e-9, atol=1e-12)
    moved = outputs.roll(1, 0)
    found = task.divergence(outputs, moved, labels)
    if task.name == "classification":
        p, q = outputs.softmax(1), moved.softmax(1)
        torch.testing.assert_close(found, (p * (p / q).log()).sum(1))
    elif task.name == "regression":
        torch.testing.assert_close(found, ((outputs - moved) ** 2).sum(1) / 2)
    elif task.name == "multi-label":
        p, q = outputs.sigmoid(), moved.sigmoid()
        torch.testing.assert_close(found, (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1))
    assert (found >= 0).all()


@each_case
def test_sampled_gradients_have_the_fisher_as_mean_outer_product(task: Task, outputs: Tensor, labels: Tensor):
    # rejects labels drawn uniformly, the given label, or the arg max
    draws = 20_000
    ids = [f"row-{i}" for i in range(draws)]
    for z, y in zip(outputs[:2], labels[:2], strict=True):
        g = task.sampled_gradient(z.expand(draws, *z.shape), y.expand(draws, *y.shape), 0, ids).reshape(draws, -1)
        root = task.fisher_root(z[None], y[None]).reshape(-1, g.shape[1])
        fisher = root.T @ root
        error = (g.T @ g / draws - fisher).abs().max()
        assert float(error) < 5 * float(fisher.abs().max().sqrt()) / math.sqrt(draws)
        assert float(g.mean(0).abs().max()) < 5 / math.sqrt(draws)


@each_case
def test_sampled_gradients_depend_on_seed_and_row_id_alone(task: Task, outputs: Tensor, labels: Tensor):
    # rejects draws by position in the batch
    ids = [f"row-{i}" for i in range(400)]
    z, y = outputs[:1].expand(400, *outputs.shape[1:]), labels[:1].expand(400, *labels.shape[1:])
    whole = task.sampled_gradient(z, y, 7, ids)
    assert torch.equal(task.sampled_gradient(z[:50], y[:50], 7, ids[200:250]), whole[200:250])
    assert torch.equal(task.sampled_gradient(z, y, 7, ids[::-1]), whole.flip(0))
    assert not torch.equal(task.sampled_gradient(z, y, 8, ids), whole)


def test_a_given_curvature_takes_the_place_of_the_hessian():
    # the loss is concave where the residual is large; the curvature of the squared error beside it is not
    def robust(z: Tensor, y: Tensor) -> Tensor:
        return torch.log1p((z - y).square()).sum(1)

    z, y = torch.tensor([[0.1, 3.0]]), torch.zeros(1, 2)
    with pytest.raises(InputError, match=r"has the eigenvalue -0\.\d+: the loss is not convex there; pass curvature="):
        OwnLoss(robust).fisher_root(z, y)
    H = torch.diag_embed(2 / (1 + z**2))
    task = OwnLoss(robust, curvature=lambda z, y: torch.diag_embed(2 / (1 + (z - y) ** 2)))
    root = task.fisher_root(z, y)
    torch.testing.assert_close(torch.einsum("kbc,kbd->bcd", root, root), H)
    step = torch.tensor([[1.0, -2.0]])
    torch.testing.assert_close(task.divergence(z, z + step, y), (step**2 / (1 + z**2)).sum(1))
    with pytest.raises(InputError, match=r"has shape \(1, 2\), or is not finite; give finite \(1, 2, 2\)"):
        OwnLoss(robust, curvature=lambda z, y: z).fisher_root(z, y)
    with pytest.raises(InputError, match=r"has shape \(\) for 1 rows; give one number for each row"):
        OwnLoss(lambda z, y: z.sum()).check(z, y)


def test_labels_that_do_not_fit_yes_or_no_or_tokens_are_named():
    z = torch.zeros(2, 3)
    with pytest.raises(InputError, match=r"shape \(2, 3\), labels \(2,\); multi-label needs one label from 0 to 1"):
        get_task("multi-label").check(z, torch.zeros(2))
    with pytest.raises(InputError, match="label 2 is not between 0 and 1; binary needs 0 or 1"):
        get_task("binary").check(torch.zeros(2), torch.tensor([0, 2]))
    tokens, z = get_task("language-modelling"), torch.zeros(2, 3, 5)
    for labels, message in (
        (torch.zeros(2, dtype=torch.long), r"needs \(rows, positions, vocabulary\) and \(rows, positions\)"),
        (torch.zeros(2, 3), "labels are torch.float32; language modelling needs integers"),
        (torch.full((2, 3), 5), "label 5 is outside the vocabulary of 5; use -100"),
        (torch.tensor([[0, 0, 0], [-100, -100, -100]]), "a row has no position that counts"),
    ):
        with pytest.raises(InputError, match=message):
            tokens.check(z, labels)


def test_the_outputs_of_a_row_are_sampled_independently():
    # rejects one normal draw for all outputs of a row
    g = Regression().sampled_gradient(torch.zeros(4000, 3), torch.zeros(4000, 3), 0, [str(i) for i in range(4000)])
    assert torch.corrcoef(g.T).fill_diagonal_(0).abs().max() < 0.06
    assert torch.isfinite(g).all()


def test_regression_outputs_without_a_dimension_of_outputs():
    task, z, y = Regression(), torch.tensor([1.0, 3.0]), torch.tensor([0.0, 5.0])
    assert task.loss(z, y).tolist() == [0.5, 2.0]
    assert task.loss(z[:, None], y).tolist() == [0.5, 2.0]  # rejects broadcasting (2, 1) - (2,) to (2, 2)
    assert task.output_gradient(z[:, None], y).tolist() == [[1.0], [-2.0]]
    assert task.fisher_root(z, y).shape == (1, 2)


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
