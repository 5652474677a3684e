"""What an attacker reads off a model for single rows: phi, loss, norm of the loss gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from unlearn.curvature import find_layers, layer_gradients
from unlearn.data import Rows
from unlearn.detect.gradient_norms import squared_norms
from unlearn.predict import predict
from unlearn.tasks import get_task, phi

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Signals:
    """Numbers of one model on n rows, at their given labels.

    Attributes:
        phi: log-odds of the label, (n,).
        loss: cross-entropy, (n,).
        gradient_norm: L2 norm of the loss gradient in all trained weights, (n,).
    """

    phi: Floats
    loss: Floats
    gradient_norm: Floats


def read_signals(model: nn.Module, rows: Rows) -> Signals:
    """Read the signals of each row; costs a forward and a backward pass.

    Raises:
        InputError: outputs that are not finite, or a label that the model does not have.

    >>> model = nn.Linear(2, 2)
    >>> found = read_signals(model, Rows.from_tensors(torch.eye(2), torch.tensor([0, 1])))
    >>> bool(np.allclose(np.log(np.expm1(found.loss)), -found.phi))                 # loss = log(1 + exp(-phi))
    True
    """
    task = get_task("classification")
    logits = predict(model, rows).double()
    task.check(logits, rows.labels)
    squares = torch.zeros(len(rows), dtype=torch.float64)
    for positions, gradients in layer_gradients(model, rows, task, find_layers(model, rows).layers):
        squares[positions] = torch.stack([squared_norms(a, d).cpu() for a, d in gradients.values()]).sum(0)
    return Signals(
        phi=phi(logits, rows.labels).numpy(),
        loss=task.loss(logits, rows.labels).numpy(),
        gradient_norm=squares.sqrt().numpy(),
    )
