"""Training settings: optimizer, learning-rate schedule, epochs, batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from unlearn.errors import InputError, did_you_mean

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "cosine", "step")


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained; the objective is the mean loss plus ``weight_decay / 2 * ||theta||^2``.

    Attributes:
        optimizer: ``sgd`` (with momentum) or ``adam`` (weight decay inside the gradient, as in ``torch.optim.Adam``).
        lr: learning rate of the first step.
        momentum: of SGD.
        weight_decay: w of the objective.
        betas: of Adam.
        eps: of Adam.
        schedule: ``constant``; ``cosine``, from ``lr`` down to nearly 0 at the last step; ``step``, times
            ``step_factor`` after every ``step_epochs`` epochs.
        step_epochs: period of the schedule ``step``.
        step_factor: factor of the schedule ``step``.
        epochs: passes over the rows.
        batch_size: rows of one step.

    Raises:
        InputError: a value that can not be meant.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: Literal["constant", "cosine", "step"] = "constant"
    step_epochs: int = 10
    step_factor: float = 0.1
    epochs: int = 15
    batch_size: int = 128

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"unknown optimizer {self.optimizer!r}; {did_you_mean(self.optimizer, OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"unknown schedule {self.schedule!r}; {did_you_mean(self.schedule, SCHEDULES)}")
        for name in ("lr", "epochs", "batch_size", "step_epochs", "step_factor", "eps"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; give a number above 0")
        for name, value in (("momentum", self.momentum), ("beta1", self.betas[0]), ("beta2", self.betas[1])):
            if not 0 <= value < 1:
                raise InputError(f"{name} is {value}; give a number from 0 to below 1")
        if not self.weight_decay >= 0:
            raise InputError(f"weight_decay is {self.weight_decay}; give 0 or more")

    def steps_per_epoch(self, rows: int) -> int:
        """Steps of one epoch; the last batch of an epoch may be smaller."""
        return math.ceil(rows / self.batch_size)

    def rates(self, rows: int) -> list[float]:
        """Learning rate of every step.

        >>> TrainSettings(lr=1.0, schedule="step", step_epochs=1, epochs=2, batch_size=2).rates(4)
        [1.0, 1.0, 0.1, 0.1]
        """
        per_epoch = self.steps_per_epoch(rows)
        steps = self.epochs * per_epoch
        if self.schedule == "cosine":
            return [self.lr * 0.5 * (1 + math.cos(math.pi * t / steps)) for t in range(steps)]
        if self.schedule == "step":
            return [self.lr * self.step_factor ** (t // per_epoch // self.step_epochs) for t in range(steps)]
        return [self.lr] * steps

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over the model's trainable parameters."""
        return build_optimizer(
            model,
            self.optimizer,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            betas=self.betas,
            eps=self.eps,
        )


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
) -> torch.optim.Optimizer:
    """Return ``torch.optim.SGD`` or ``torch.optim.Adam`` over the trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    common: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    if name == "adam":
        return torch.optim.Adam(parameters, betas=betas, eps=eps, **common)
    return torch.optim.SGD(parameters, momentum=momentum, **common)
