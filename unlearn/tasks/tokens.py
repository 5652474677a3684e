"""Language modelling: a softmax at every position of a sequence.

Axes: b rows, t positions, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from unlearn.data.tokens import IGNORED
from unlearn.errors import InputError
from unlearn.tasks.softmax import Classification
from unlearn.tasks.task import check_finite, uniform


class LanguageModelling:
    """Cross-entropy of the positions of a row, their mean; outputs are logits (b, t, v), labels int64 (b, t).

    The label of a position is the token that its output predicts: for a causal model shift the tokens by one
    beforehand. Positions with label -100 (padding, prompts) count neither in the loss nor in the curvature. A row
    weighs the same however long it is. Labels of positions are drawn independently, each from the model's output there.

    >>> task = LanguageModelling()
    >>> z = torch.tensor([[[0.0, 0.0], [5.0, 1.0]]])
    >>> task.loss(z, torch.tensor([[1, -100]])).tolist() == [torch.tensor(2.0).log().item()]
    True
    """

    name = "language-modelling"
    _each = Classification()

    def check(self, outputs: Tensor, labels: Tensor) -> None:
        """Outputs (b, t, v), labels (b, t), integers from 0 to below v or -100, at least one of them counted in a row.

        Raises:
            InputError: what does not fit.
        """
        if outputs.ndim != 3 or outputs.shape[:2] != labels.shape:
            raise InputError(
                f"the model's outputs have shape {tuple(outputs.shape)}, labels {tuple(labels.shape)}; "
                "language modelling needs (rows, positions, vocabulary) and (rows, positions)"
            )
        if labels.is_floating_point():
            raise InputError(f"labels are {labels.dtype}; language modelling needs integers")
        counted = labels != IGNORED
        outside = labels[counted & ((labels < 0) | (labels >= outputs.shape[2]))]
        if len(outside):
            raise InputError(
                f"label {int(outside[0])} is outside the vocabulary of {outputs.shape[2]}; use {IGNORED} for "
                "positions that do not count"
            )
        if not counted.any(1).all():
            raise InputError(f"a row has no position that counts: all its labels are {IGNORED}; leave it out")
        check_finite(outputs)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean of -log p_y over the positions that count."""
        each = F.cross_entropy(outputs.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
        return (each * _shares(labels, outputs)).sum(1)

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(p - e_y) / positions."""
        return _minus_one_at(outputs.softmax(2), labels.clamp(min=0)) * _shares(labels, outputs)[:, :, None]

    def fisher_root(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The columns of each position's softmax, one position at a time: t times v columns."""
        b, t, v = outputs.shape
        each = self._each.fisher_root(outputs.flatten(0, 1), labels.flatten()).reshape(v, b, t, v)
        each = each * _shares(labels, outputs).sqrt()[:, :, None]
        places = torch.eye(t, dtype=outputs.dtype, device=outputs.device)
        return (each[:, None] * places[None, :, None, :, None]).flatten(0, 1)

    def sampled_gradient(self, outputs: Tensor, labels: Tensor, seed: int, ids: Sequence[str]) -> Tensor:
        """(p - e_s) / sqrt(positions): the Fisher of independent positions is the mean of theirs, not of its square."""
        u = uniform(outputs, seed, ids, "fisher-label", outputs.shape[1])
        drawn = torch.searchsorted(outputs.softmax(2).cumsum(2), u[:, :, None]).squeeze(2)
        gradient = _minus_one_at(outputs.softmax(2), drawn.clamp(max=outputs.shape[2] - 1))
        return gradient * _shares(labels, outputs).sqrt()[:, :, None]

    def fisher_product(self, outputs: Tensor, labels: Tensor, tangents: Tensor) -> Tensor:
        """(p * t - p (p . t)) / positions."""
        p = outputs.softmax(2)
        product = p * (tangents - (p * tangents).sum(2, keepdim=True))
        return product * _shares(labels, outputs)[:, :, None]

    def divergence(self, reference: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean of KL(p_reference || p) over the positions that count."""
        p, q = reference.log_softmax(2), outputs.log_softmax(2)
        return (F.kl_div(q, p, reduction="none", log_target=True).sum(2) * _shares(labels, outputs)).sum(1)


def _minus_one_at(probabilities: Tensor, tokens: Tensor) -> Tensor:
    """Return p - e_y; a one-hot vocabulary of int64 for each position would take twice the memory of p."""
    return probabilities.scatter_add(2, tokens[:, :, None], -torch.ones_like(probabilities[:, :, :1]))


def _shares(labels: Tensor, like: Tensor) -> Tensor:
    """Return 1 / positions where a position counts and 0 where not, (b, t)."""
    counted = (labels != IGNORED).to(like.dtype)
    return counted / counted.sum(1, keepdim=True)
