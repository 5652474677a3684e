"""What a task is: a loss of a model's outputs, and its curvature in output space.

For the tasks of this package the Gauss-Newton matrix is the Fisher matrix, so everything that curvature needs from a
loss is said here in terms of outputs; nothing here knows of parameters. Curvature methods take labels to know which
outputs count (padding has none) and, for a user's own loss, where its Hessian is taken; the Fisher of a task of this
package does not depend on the labels that count.

Axes: b rows, ... outputs of a row, k columns of a square root.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unlearn.data import draws
from unlearn.errors import InputError


class Task(Protocol):
    """A loss with its output-space derivatives; every method works row by row."""

    name: str

    def check(self, outputs: Tensor, labels: Tensor) -> None:
        """Raise InputError where outputs and labels do not fit each other."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Loss of each row, shape (b,)."""

    def output_gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Gradient of each row's loss in its outputs, shape (b, ...)."""

    def fisher_root(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Columns v_k with sum_k v_k v_k^T = the output Fisher of each row, shape (k, b, ...)."""

    def sampled_gradient(self, outputs: Tensor, labels: Tensor, seed: int, ids: Sequence[str]) -> Tensor:
        """A vector drawn by (seed, row id) whose mean outer product is the output Fisher, shape (b, ...)."""

    def fisher_product(self, outputs: Tensor, labels: Tensor, tangents: Tensor) -> Tensor:
        """Output Fisher of each row times its tangent, shape (b, ...)."""

    def divergence(self, reference: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """Bregman divergence of each row from reference outputs, shape (b,); its Hessian there is the Fisher."""


def check_finite(outputs: Tensor) -> None:
    """Refuse outputs that are NaN or infinite."""
    if not torch.isfinite(outputs).all():
        raise InputError(
            "the model's outputs are NaN or infinite; its weights or inputs are damaged, or its activations pass 65504 "
            "in float16: take torch.bfloat16"
        )


def uniform(outputs: Tensor, seed: int, ids: Sequence[str], stream: str, count: int | None = None) -> Tensor:
    """Return uniform draws by (seed, row id), shape (b,), or ``count`` independent ones, (b, count)."""
    if count is None:
        return torch.from_numpy(draws.uniform(seed, ids, stream)).to(outputs)
    columns = [draws.uniform(seed, ids, f"{stream}-{k}") for k in range(count)]
    return torch.from_numpy(np.stack(columns, 1)).to(outputs)
