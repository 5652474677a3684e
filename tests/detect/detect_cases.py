"""Small models of every layer kind, and gradients by autograd, without the layer taps that the scores use."""

import torch
from torch import nn

from unlearn.curvature import loss_gradient
from unlearn.data import Rows

CLASSES = 3


class Tokens(nn.Module):
    """A Linear layer that meets four positions in each row."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(3, 5), nn.Linear(20, CLASSES)

    def forward(self, x):
        return self.head(self.first(x.reshape(len(x), 4, 3)).tanh().flatten(1))


def _frozen_bias():
    model = nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, CLASSES))
    model[0].bias.requires_grad_(False)
    return model


def _images(*layers):
    return nn.Sequential(nn.Unflatten(1, (2, 3, 2)), *layers)


CASES = {
    "mlp": lambda: nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)),
    "frozen-bias": _frozen_bias,
    "cnn": lambda: _images(nn.Conv2d(2, 5, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(60, CLASSES)),
    "grouped": lambda: _images(nn.Conv2d(2, 6, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES)),
    "depthwise": lambda: _images(nn.Conv2d(2, 2, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(4, CLASSES)),
    "one-position": lambda: _images(nn.Conv2d(2, 6, (3, 2), groups=2), nn.Flatten(), nn.Linear(6, CLASSES)),
    "tokens": Tokens,
}


def model_of(case, dtype=torch.float64, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CASES[case]().to(dtype)


def rows_of(n=11, dtype=torch.float64, seed=1):
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 12, generator=draw, dtype=torch.float64).to(dtype)
    labels = torch.randint(CLASSES, (n,), generator=draw)
    return Rows.from_tensors(inputs, labels, ids=[f"{seed}-{i}" for i in range(n)], classes=CLASSES)


def gradients(model, rows, task="classification"):
    """Return each row's loss gradient as a vector, one backward pass each."""
    return [loss_gradient(model, rows.at(torch.tensor([i])), task=task) for i in range(len(rows))]
