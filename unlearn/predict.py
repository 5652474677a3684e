"""Outputs of a model on rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from unlearn.data import DEFAULT_BATCH, Rows
from unlearn.inputs import call_model
from unlearn.modes import evaluation

OUTPUT_BYTES = 2 * 2**20


def rows_within(model: nn.Module, data: Rows, batch_size: int) -> int:
    """Return ``batch_size``, or fewer rows where the outputs of so many take more than ``OUTPUT_BYTES``.

    A row of a language model has a vocabulary at each of its positions, so a batch of sequences is one of positions.
    Where a row has one label its outputs are few; else the outputs of the first row are looked at.

    >>> model, labels = nn.Linear(1, 2**20), torch.zeros(3, 2**20)
    >>> rows_within(model, Rows.from_tensors(torch.ones(3, 1), labels), 256)
    1
    """
    if data.labels.ndim < 2 or batch_size < 2:
        return batch_size
    with evaluation(model), torch.no_grad():
        _, inputs, _ = next(data.batches(1, next(model.parameters()).device))
        row = call_model(model, inputs).nbytes
    return max(1, min(batch_size, OUTPUT_BYTES // max(1, row)))


def outputs_of(
    model: nn.Module, data: Rows, *, batch_size: int = DEFAULT_BATCH
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (positions, outputs, labels) of batches in evaluation mode, on the CPU; the model is left as found.

    >>> model, rows = nn.Linear(2, 3), Rows.from_tensors(torch.eye(2), torch.tensor([0, 1]))
    >>> [(tuple(outputs.shape), labels.tolist()) for _, outputs, labels in outputs_of(model, rows, batch_size=1)]
    [((1, 3), [0]), ((1, 3), [1])]
    """
    device = next(model.parameters()).device
    for positions, inputs, labels in data.batches(rows_within(model, data, batch_size), device):
        with evaluation(model), torch.no_grad():
            outputs = call_model(model, inputs).cpu()
        yield positions, outputs, labels.cpu()


def predict(model: nn.Module, data: Rows, *, batch_size: int = DEFAULT_BATCH) -> Tensor:
    """Return the model's outputs in evaluation mode, on the CPU, shape (n, ...); the model is left as found.

    >>> model = nn.Linear(2, 3)
    >>> tuple(predict(model, Rows.from_tensors(torch.eye(2), torch.tensor([0, 1]))).shape)
    (2, 3)
    """
    return torch.cat([outputs for _, outputs, _ in outputs_of(model, data, batch_size=batch_size)])
