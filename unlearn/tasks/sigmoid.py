"""Yes or no: one logit for each question."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from unlearn.errors import InputError
from unlearn.tasks.task import check_finite, uniform


class Sigmoid:
    """Binary cross-entropy, summed over the questions of a row; outputs are logits (b,) or (b, c).

    Labels are 0 or 1, or probabilities between them, of the same size.

    >>> task = Sigmoid("binary")
    >>> z, y = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    >>> torch.allclose(task.output_gradient(z, y), z.sigmoid() - y)
    True
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, outputs: Tensor, labels: Tensor) -> None:
        """Outputs and labels of one size with finite values, labels from 0 to 1."""
        if outputs.numel() != labels.numel() or len(outputs) != len(labels):
            raise InputError(
                f"the model's outputs have shape {tuple(outputs.shape)}, labels {tuple(labels.shape)}; {self.name} "
                "needs one label from 0 to 1 for each output"
            )
        low, high = float(labels.min()), float(labels.max())
        if not 0 <= low <= high <= 1:
            wrong = high if high > 1 else low
            raise InputError(f"label {wrong:g} is not between 0 and 1; {self.name} needs 0 or 1 for each output")
        check_finite(outputs)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Sum of -y log p - (1 - y) log(1 - p)."""
        targets = labels.reshape(outputs.shape).to(outputs.dtype)
        each = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return each.reshape(len(outputs), -1).sum(1)

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """P - y."""
        return outputs.sigmoid() - labels.reshape(outputs.shape).to(outputs.dtype)

    def fisher_root(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """sqrt(p (1 - p)) of one output in each column: the output Fisher is diagonal."""
        roots = _variance(outputs).sqrt().reshape(len(outputs), -1)
        return torch.diag_embed(roots).transpose(0, 1).reshape(-1, *outputs.shape)

    def sampled_gradient(self, outputs: Tensor, labels: Tensor, seed: int, ids: Sequence[str]) -> Tensor:
        """P - s with s drawn from p, independently for each output."""
        flat = outputs.reshape(len(outputs), -1)
        drawn = uniform(flat, seed, ids, "fisher-output", flat.shape[1]) < flat.sigmoid()
        return (flat.sigmoid() - drawn.to(flat.dtype)).reshape(outputs.shape)

    def fisher_product(self, outputs: Tensor, labels: Tensor, tangents: Tensor) -> Tensor:
        """P (1 - p) t."""
        return _variance(outputs) * tangents

    def divergence(self, reference: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """KL of the Bernoulli distributions, summed over outputs."""
        p = reference.sigmoid()
        return self.loss(outputs, p) - self.loss(reference, p)


def _variance(outputs: Tensor) -> Tensor:
    return outputs.sigmoid() * (-outputs).sigmoid()
