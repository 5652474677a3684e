"""Rows and the true residual of a certified head, in extended precision and with the noise at hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unlearn.data import Rows
from unlearn.training import SignedRows

W = 1e-2


def blobs(n: int = 60, inputs: int = 5, classes: int = 3, seed: int = 0) -> Rows:
    """Overlapping classes in rows of length at most 1, float64."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centers = torch.randn(classes, inputs, generator=generator, dtype=torch.float64)
    features = centers[labels] + torch.randn(n, inputs, generator=generator, dtype=torch.float64)
    return Rows.from_tensors(features / features.norm(dim=1).max(), labels, classes=classes, name="blobs")


def signed(rows: Rows) -> SignedRows:
    inputs, labels = rows.batch(torch.arange(len(rows)))
    assert isinstance(inputs, Tensor)
    assert rows.classes
    return SignedRows.of(inputs.double(), labels, rows.classes)


def true_gradient(rows: SignedRows, weight: Tensor, weight_decay: float, noise: Tensor) -> np.ndarray:
    """Gradient of the perturbed objective by its definition, in 80 bits; nothing of the package but the rows."""
    x, y, theta, b = (t.numpy().astype(np.longdouble) for t in (rows.features, rows.signs, weight, noise))
    slopes = -y / (1 + np.exp(np.minimum(y * (x @ theta.T), 11_000)))
    return slopes.T @ x + np.longdouble(weight_decay) * len(x) * theta + b


def true_residual(rows: SignedRows, weight: Tensor, weight_decay: float, noise: Tensor) -> float:
    gradient = true_gradient(rows, weight, weight_decay, noise)
    return float(np.sqrt((gradient * gradient).sum()))
