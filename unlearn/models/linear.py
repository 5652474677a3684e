"""A linear head in float64, without bias, over rows scaled to length 1 where that is asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LinearHead(nn.Module):
    """Outputs x W' of flattened inputs, in float64.

    Attributes:
        weight: shape (outputs, inputs), float64.
        unit_rows: whether each row is divided by its length first; a row of zeros stays.
    """

    def __init__(self, inputs: int, outputs: int, unit_rows: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=torch.float64))
        self.unit_rows = unit_rows
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def features(self, inputs: Tensor) -> Tensor:
        """Return what the weights are multiplied with, shape (rows, inputs)."""
        rows = inputs.flatten(1).to(self.weight.dtype)
        return unit_length(rows) if self.unit_rows else rows

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs, shape (rows, outputs)."""
        return self.features(inputs) @ self.weight.T


def unit_length(rows: Tensor) -> Tensor:
    """Return each row divided by its length; a row of zeros stays. Other rows play no part in it.

    >>> unit_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    lengths = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(lengths > 0, lengths, torch.ones_like(lengths))


def linear(inputs: int = 784, outputs: int = 10, unit_rows: bool = False) -> LinearHead:
    """Return a linear head.

    Args:
        inputs: numbers in one flattened input.
        outputs: scores; 1 for two classes.
        unit_rows: divide each row by its length first.

    >>> linear(2, 1, unit_rows=True)(torch.tensor([[3.0, 4.0]])).shape
    torch.Size([1, 1])
    """
    return LinearHead(inputs, outputs, unit_rows)
