"""Outputs of a model on rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unlearn.data import DEFAULT_BATCH, Rows
from unlearn.inputs import call_model
from unlearn.modes import evaluation


def predict(model: nn.Module, data: Rows, *, batch_size: int = DEFAULT_BATCH) -> Tensor:
    """Return the model's outputs in evaluation mode, on the CPU, shape (n, ...); the model is left as found.

    >>> model = nn.Linear(2, 3)
    >>> tuple(predict(model, Rows.from_tensors(torch.eye(2), torch.tensor([0, 1]))).shape)
    (2, 3)
    """
    device = next(model.parameters()).device
    with evaluation(model), torch.no_grad():
        return torch.cat([call_model(model, inputs).cpu() for _, inputs, _ in data.batches(batch_size, device)])
