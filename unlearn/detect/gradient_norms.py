"""Norms of per-sample gradients from their factors.

A sample's gradient in a layer is sum_t d_t a_t^T. With one position it is an outer product, and its norm is the product
of the factors' norms; with several it is formed for a few samples at a time.

Axes: g group, b sample, t position, i inputs, o outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unlearn.curvature import Basis


def absolute_sums(a: Tensor, d: Tensor) -> Tensor:
    """Return the sum of absolute values (the L1 norm) of each sample's gradient, shape (b,), in float64.

    >>> a, d = torch.tensor([[[[3.0, -4.0]]]]), torch.tensor([[[[1.0, -2.0]]]])
    >>> absolute_sums(a, d).tolist(), squared_norms(a, d).tolist()
    ([21.0], [125.0])
    """
    if a.shape[2] == 1:
        return (a.abs().double().sum((2, 3)) * d.abs().double().sum((2, 3))).sum(0)
    return torch.cat([part.abs().sum((2, 3), dtype=torch.float64).sum(0) for part in Basis().gradients(a, d)])


def squared_norms(a: Tensor, d: Tensor) -> Tensor:
    """Return the squared L2 norm of each sample's gradient, shape (b,), in float64.

    Args:
        a: inputs, (g, b, t, i).
        d: output gradients, (g, b, t, o).
    """
    if a.shape[2] == 1:
        return (a.double().square().sum((2, 3)) * d.double().square().sum((2, 3))).sum(0)
    return torch.cat([part.square().sum((2, 3), dtype=torch.float64).sum(0) for part in Basis().gradients(a, d)])
