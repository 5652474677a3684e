"""A user's own loss.

Axes: b rows, c outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

from unlearn.errors import InputError
from unlearn.tasks.task import check_finite, uniform


class OwnLoss:
    """A task made of a loss: its output derivatives are taken by autograd, row by row.

    The Gauss-Newton matrix takes the Hessian of the loss in the outputs, at the given labels (for a loss that is no
    negative log-likelihood there is no Fisher matrix to sample labels from). It must be positive semidefinite; where
    the loss is not convex in the outputs, give a curvature that is, such as the one of the convex loss beside it.

    Args:
        loss: (outputs (b, ...), labels (b, ...)) -> loss of each row (b,), of torch operations.
        curvature: (outputs, labels) -> (b, c, c) over the flattened outputs of a row; the Hessian if None.
        name: what the task is called in records and reports.

    >>> huber = OwnLoss(lambda z, y: torch.nn.functional.huber_loss(z, y, reduction="none").sum(1), name="huber")
    >>> z, y = torch.tensor([[0.5, 3.0]]), torch.zeros(1, 2)
    >>> huber.loss(z, y).tolist(), huber.output_gradient(z, y).tolist()
    ([2.625], [[0.5, 1.0]])
    >>> huber.fisher_product(z, y, torch.ones(1, 2)).tolist()
    [[1.0, 0.0]]
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        curvature: Callable[[Tensor, Tensor], Tensor] | None = None,
        name: str = "own-loss",
    ) -> None:
        self.name = name
        self._loss = loss
        self._curvature = curvature

    def check(self, outputs: Tensor, labels: Tensor) -> None:
        """Finite outputs, and one finite loss for each row."""
        check_finite(outputs)
        values = self.loss(outputs, labels)
        if values.shape != (len(outputs),):
            raise InputError(
                f"the loss {self.name!r} has shape {tuple(values.shape)} for {len(outputs)} rows; give one number for "
                'each row (reduction="none", summed over outputs)'
            )
        if not torch.isfinite(values).all():
            raise InputError(f"the loss {self.name!r} is NaN or infinite for these outputs and labels; check them")

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        found: Tensor = self._loss(outputs, labels)
        return found

    def _one(self, output: Tensor, label: Tensor) -> Tensor:
        return self._loss(output[None], label[None]).sum()

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Its gradient in the outputs."""
        found: Tensor = vmap(grad(self._one))(outputs.contiguous(), labels.contiguous())
        return found

    def output_hessian(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The curvature in the outputs, shape (b, c, c).

        Raises:
            InputError: it has another shape, is not finite or not positive semidefinite.
        """
        c = outputs[0].numel()
        if self._curvature is None:
            found: Tensor = vmap(hessian(self._one))(outputs.contiguous(), labels.contiguous()).reshape(-1, c, c)
        else:
            found = self._curvature(outputs, labels)
        if found.shape != (len(outputs), c, c) or not torch.isfinite(found).all():
            raise InputError(
                f"the curvature of {self.name!r} has shape {tuple(found.shape)}, or is not finite; give finite "
                f"{(len(outputs), c, c)}"
            )
        return found

    def fisher_root(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Eigenvectors times the roots of their eigenvalues."""
        values, vectors = torch.linalg.eigh(self.output_hessian(outputs, labels))
        lowest = float(values.min())
        if lowest < -1e3 * torch.finfo(values.dtype).eps * max(1.0, float(values.max())):
            raise InputError(
                f"the Hessian of {self.name!r} in the outputs has the eigenvalue {lowest:.3g}: the loss is not convex "
                "there; pass curvature= with a positive semidefinite one"
            )
        roots: Tensor = vectors * values.clamp(min=0).sqrt()[:, None]
        return roots.permute(2, 0, 1).reshape(-1, *outputs.shape)

    def sampled_gradient(self, outputs: Tensor, labels: Tensor, seed: int, ids: Sequence[str]) -> Tensor:
        """The columns of the root, summed with signs drawn for each row and column."""
        roots = self.fisher_root(outputs, labels)
        signs = torch.where(uniform(outputs, seed, ids, "fisher-sign", len(roots)) < 0.5, -1.0, 1.0).to(outputs)
        found: Tensor = torch.einsum("kb...,bk->b...", roots, signs)
        return found

    def fisher_product(self, outputs: Tensor, labels: Tensor, tangents: Tensor) -> Tensor:
        """The curvature times the tangents."""
        product = self.output_hessian(outputs, labels) @ tangents.reshape(len(tangents), -1, 1)
        return product.reshape_as(tangents)

    def divergence(self, reference: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss minus its linearisation at the reference; half the curvature's form where one is given."""
        step = (outputs - reference).flatten(1)
        if self._curvature is not None:
            return 0.5 * (step[:, None] @ self.output_hessian(reference, labels) @ step[:, :, None]).flatten()
        slope = (self.output_gradient(reference, labels).flatten(1) * step).sum(1)
        return self.loss(outputs, labels) - self.loss(reference, labels) - slope
