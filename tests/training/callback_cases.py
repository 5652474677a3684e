"""What both callbacks are tested with: two networks, rows for them, and what must be left as it was."""

from __future__ import annotations

import torch
from torch import nn
from training_cases import CLASSES, rows_of

from unlearn.data import Rows


class WithBatchNorm(nn.Module):
    """A network whose buffers a second forward pass would move; called as the Trainer calls models."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, CLASSES)
            )

    def forward(self, input: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.body(input)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def named_rows(n: int = 22) -> Rows:
    """Rows whose inputs have a name; the last batch of six is smaller."""
    rows = rows_of(n)
    inputs, labels = rows.batch(torch.arange(n))
    assert isinstance(inputs, torch.Tensor)
    return Rows.from_tensors({"input": inputs}, labels, ids=rows.ids)


def hooks_of(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """How many hooks a model and its optimizer have."""
    count = sum(len(module._forward_hooks) for module in model.modules())
    if optimizer is not None:
        count += len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
    return count
