"""Small data and networks, and training written out by hand as the slow oracle."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from unlearn.data import Rows
from unlearn.training import TrainSettings

N, CLASSES = 20, 3
SGD = TrainSettings(lr=0.1, momentum=0.9, weight_decay=0.01, schedule="cosine", epochs=3, batch_size=6)
ADAM = TrainSettings(optimizer="adam", lr=0.01, weight_decay=0.01, betas=(0.8, 0.99), eps=1e-6, epochs=3, batch_size=6)
SETTINGS = {"sgd": SGD, "adam": ADAM}


def rows_of(n: int = N) -> Rows:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 4, generator=generator)
    return Rows.from_tensors(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0), ids=[f"r{i}" for i in range(n)])


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def torch_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "adam":
        return torch.optim.Adam(
            model.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.SGD(
        model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def plain_loop(
    model: nn.Module,
    rows: Rows,
    batches: Sequence[Sequence[str]],
    rates: Sequence[float],
    settings: TrainSettings,
    after_step: Callable[[int, nn.Module, torch.optim.Optimizer, Tensor, Tensor], None] | None = None,
) -> nn.Module:
    """A loop as a user writes it; rows that are not there leave their places empty."""
    model = copy.deepcopy(model)
    optimizer = torch_optimizer(model, settings)
    for step, (ids, rate) in enumerate(zip(batches, rates, strict=True)):
        left = [row for row in ids if row in rows]
        optimizer.param_groups[0]["lr"] = rate
        logits = labels = torch.zeros(0)
        if left:
            inputs, labels = rows.batch(rows.positions(left))
            logits = model(inputs)
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
        else:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        if after_step is not None:
            after_step(step, model, optimizer, logits.detach(), labels)
    return model


def same(one: nn.Module, two: nn.Module) -> bool:
    """Whether all weights are equal bit by bit."""
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
