"""Tasks: a loss of a model's outputs, and its curvature in output space.

For softmax cross-entropy and for half the squared error the Gauss-Newton matrix is the Fisher matrix, so everything
that curvature needs from a loss is said here in terms of outputs; nothing here knows of parameters.

Axes: b rows, c outputs, k columns of a square root.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from unlearn.data import draws
from unlearn.errors import InputError, did_you_mean


class Task(Protocol):
    """A loss with its output-space derivatives; every method works row by row."""

    name: str

    def check(self, outputs: Tensor, labels: Tensor) -> None:
        """Raise InputError where outputs and labels do not fit each other."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Loss of each row, shape (b,)."""

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Gradient of each row's loss in its outputs, shape (b, c)."""

    def fisher_root(self, outputs: Tensor) -> Tensor:
        """Columns v_k with sum_k v_k v_k^T = the output Fisher of each row, shape (k, b, c)."""

    def sampled_gradient(self, outputs: Tensor, seed: int, ids: Sequence[str]) -> Tensor:
        """Loss gradient at a label drawn from the model by (seed, row id), shape (b, c)."""

    def fisher_product(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        """Output Fisher of each row times its tangent, shape (b, c)."""

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """Bregman divergence of each row from reference outputs, shape (b,); its Hessian there is the Fisher."""


class Classification:
    """Softmax cross-entropy; outputs are logits (b, c), labels int64 (b,).

    >>> task = Classification()
    >>> z = torch.tensor([[2.0, 0.0, 0.0]])
    >>> v = task.fisher_root(z)[:, 0]
    >>> p = z.softmax(1)[0]
    >>> torch.allclose(v.T @ v, p.diag() - p.outer(p))
    True
    """

    name = "classification"

    def check(self, outputs: Tensor, labels: Tensor) -> None:
        """Outputs (b, c) with finite values, labels integer, from 0 to below c."""
        if outputs.ndim != 2:
            raise InputError(
                f"the model's outputs have shape {tuple(outputs.shape)}; classification needs (rows, classes)"
            )
        if labels.is_floating_point():
            raise InputError(
                f"labels are {labels.dtype}; classification needs integers (for numbers pass task='regression')"
            )
        if not torch.isfinite(outputs).all():
            raise InputError("the model's outputs are NaN or infinite; its weights or inputs are damaged")
        for label in (int(labels.min()), int(labels.max())):
            if not 0 <= label < outputs.shape[1]:
                raise InputError(f"label {label} is outside the model's {outputs.shape[1]} classes")

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """-log p_y."""
        return F.cross_entropy(outputs, labels, reduction="none")

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """P - e_y."""
        return outputs.softmax(1) - F.one_hot(labels, outputs.shape[1])

    def fisher_root(self, outputs: Tensor) -> Tensor:
        """sqrt(p_k) (p - e_k), one column for each class."""
        p = outputs.softmax(1)
        eye = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
        return p.T.sqrt()[:, :, None] * (p[None] - eye[:, None])

    def sampled_gradient(self, outputs: Tensor, seed: int, ids: Sequence[str]) -> Tensor:
        """P - e_s with s drawn from p."""
        p = outputs.softmax(1)
        u = torch.from_numpy(draws.uniform(seed, ids, "fisher-label")).to(p)
        label = torch.searchsorted(p.cumsum(1), u[:, None]).squeeze(1).clamp(max=p.shape[1] - 1)
        return self.output_gradient(outputs, label)

    def fisher_product(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        """P * t - p (p . t)."""
        p = outputs.softmax(1)
        return p * (tangents - (p * tangents).sum(1, keepdim=True))

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """KL(p_reference || p)."""
        return F.kl_div(outputs.log_softmax(1), reference.log_softmax(1), reduction="none", log_target=True).sum(1)


class Regression:
    """Half the squared error, summed over outputs; outputs (b, c) or (b,), labels of the same size.

    >>> Regression().loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])).tolist()
    [2.5]
    """

    name = "regression"

    def check(self, outputs: Tensor, labels: Tensor) -> None:
        """Outputs and labels of one size with finite values, labels floating."""
        if not labels.is_floating_point():
            raise InputError(f"labels are {labels.dtype}; regression needs floating point numbers")
        if outputs.numel() != labels.numel() or len(outputs) != len(labels):
            raise InputError(
                f"the model's outputs have shape {tuple(outputs.shape)}, labels {tuple(labels.shape)}; make them equal"
            )
        if not torch.isfinite(outputs).all():
            raise InputError("the model's outputs are NaN or infinite; its weights or inputs are damaged")

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Half the squared distance."""
        return 0.5 * (outputs - labels.reshape(outputs.shape)).square().reshape(len(outputs), -1).sum(1)

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Output minus label."""
        return outputs - labels.reshape(outputs.shape)

    def fisher_root(self, outputs: Tensor) -> Tensor:
        """The unit vectors: the output Fisher is the identity."""
        flat = outputs.reshape(len(outputs), -1)
        eye = torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)
        return eye[:, None].expand(-1, len(flat), -1).reshape(-1, *outputs.shape)

    def sampled_gradient(self, outputs: Tensor, seed: int, ids: Sequence[str]) -> Tensor:
        """Standard normal draws, one for each output."""
        flat = outputs.reshape(len(outputs), -1)
        u = [torch.from_numpy(draws.uniform(seed, ids, f"fisher-output-{c}")) for c in range(flat.shape[1])]
        tiny = 2.0**-54
        normal: Tensor = torch.special.ndtri(torch.stack(u, 1).clamp(tiny, 1 - tiny))
        return normal.to(outputs).reshape(outputs.shape)

    def fisher_product(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        """The tangents: the output Fisher is the identity."""
        return tangents

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """Half the squared distance."""
        return self.loss(outputs, reference)


_TASKS: dict[str, Task] = {"classification": Classification(), "regression": Regression()}


def get_task(task: str | Task) -> Task:
    """Return a task by name (``classification``, ``regression``), or the given task itself.

    Raises:
        InputError: unknown name.
    """
    if not isinstance(task, str):
        return task
    if task not in _TASKS:
        raise InputError(f"unknown task {task!r}; {did_you_mean(task, _TASKS)}")
    return _TASKS[task]


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label minus the largest other logit, shape (b,) (AUM, arXiv 2001.10528, eq. 1).

    >>> margins(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0])).tolist()
    [1.0]
    """
    given = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    return given.squeeze(1) - others


def phi(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-odds of the label, log p_y / (1 - p_y), computed from logits without cancellation, shape (b,).

    >>> z = torch.tensor([[1.0, 0.0, 0.0]])
    >>> p = z.softmax(1)[0, 0]
    >>> torch.allclose(phi(z, torch.tensor([0])), (p / (1 - p)).log())
    True
    """
    given = logits.gather(1, labels[:, None]).squeeze(1)
    return given - logits.scatter(1, labels[:, None], float("-inf")).logsumexp(1)
