"""Regression with half the squared error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearn.errors import InputError
from unlearn.tasks.task import check_finite, uniform


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
        check_finite(outputs)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Half the squared distance."""
        return 0.5 * (outputs - labels.reshape(outputs.shape)).square().reshape(len(outputs), -1).sum(1)

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Output minus label."""
        return outputs - labels.reshape(outputs.shape)

    def fisher_root(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The unit vectors: the output Fisher is the identity."""
        flat = outputs.reshape(len(outputs), -1)
        eye = torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)
        return eye[:, None].expand(-1, len(flat), -1).reshape(-1, *outputs.shape)

    def sampled_gradient(self, outputs: Tensor, labels: Tensor, seed: int, ids: Sequence[str]) -> Tensor:
        """Standard normal draws, one for each output."""
        flat = outputs.reshape(len(outputs), -1).double()
        tiny = 2.0**-54
        u = uniform(flat, seed, ids, "fisher-output", flat.shape[1])
        normal: Tensor = torch.special.ndtri(u.clamp(tiny, 1 - tiny))
        return normal.to(outputs).reshape(outputs.shape)

    def fisher_product(self, outputs: Tensor, labels: Tensor, tangents: Tensor) -> Tensor:
        """The tangents: the output Fisher is the identity."""
        return tangents

    def divergence(self, reference: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """Half the squared distance."""
        return self.loss(outputs, reference)
