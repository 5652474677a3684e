"""Classification: softmax cross-entropy, and what is read off logits beside the loss.

Axes: b rows, c classes, k columns of a square root.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from unlearn.errors import InputError
from unlearn.tasks.task import check_finite, uniform


class Classification:
    """Softmax cross-entropy; outputs are logits (b, c), labels int64 (b,).

    >>> task = Classification()
    >>> z = torch.tensor([[2.0, 0.0, 0.0]])
    >>> v = task.fisher_root(z, torch.tensor([0]))[:, 0]
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
        check_finite(outputs)
        for label in (int(labels.min()), int(labels.max())):
            if not 0 <= label < outputs.shape[1]:
                raise InputError(f"label {label} is outside the model's {outputs.shape[1]} classes")

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """-log p_y."""
        return F.cross_entropy(outputs, labels, reduction="none")

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """P - e_y."""
        return outputs.softmax(1) - F.one_hot(labels, outputs.shape[1])

    def fisher_root(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """sqrt(p_k) (p - e_k), one column for each class."""
        p = outputs.softmax(1)
        eye = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
        return p.T.sqrt()[:, :, None] * (p[None] - eye[:, None])

    def sampled_gradient(self, outputs: Tensor, labels: Tensor, seed: int, ids: Sequence[str]) -> Tensor:
        """P - e_s with s drawn from p."""
        p = outputs.softmax(1)
        u = uniform(p, seed, ids, "fisher-label")
        drawn = torch.searchsorted(p.cumsum(1), u[:, None]).squeeze(1).clamp(max=p.shape[1] - 1)
        return self.output_gradient(outputs, drawn)

    def fisher_product(self, outputs: Tensor, labels: Tensor, tangents: Tensor) -> Tensor:
        """P * t - p (p . t)."""
        p = outputs.softmax(1)
        return p * (tangents - (p * tangents).sum(1, keepdim=True))

    def divergence(self, reference: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """KL(p_reference || p)."""
        return kl_divergence(reference, outputs)


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(p_reference || p) of each row of logits, in nats, shape (b,).

    >>> kl_divergence(torch.zeros(1, 2), torch.zeros(1, 2)).tolist()
    [0.0]
    """
    return F.kl_div(logits.log_softmax(1), reference.log_softmax(1), reduction="none", log_target=True).sum(1)


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
