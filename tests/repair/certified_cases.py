"""Rows for certified removal; the truth is the one of ``benchmarks.certified``."""

from __future__ import annotations

import torch

from benchmarks.certified import signed, true_gradient, true_residual
from unlearn.data import Rows

__all__ = ["W", "blobs", "signed", "true_gradient", "true_residual"]

W = 1e-2


def blobs(n: int = 60, inputs: int = 5, classes: int = 3, seed: int = 0) -> Rows:
    """Overlapping classes in rows of length at most 1, float64."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centers = torch.randn(classes, inputs, generator=generator, dtype=torch.float64)
    features = centers[labels] + torch.randn(n, inputs, generator=generator, dtype=torch.float64)
    return Rows.from_tensors(features / features.norm(dim=1).max(), labels, classes=classes, name="blobs")
