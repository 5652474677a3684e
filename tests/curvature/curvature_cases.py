"""Small networks, one for each layer kind, and slow dense oracles built from autograd alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unlearn.curvature import Curvature, Layer
from unlearn.curvature.layers import find_layers
from unlearn.data import Rows
from unlearn.tasks import Task, get_task

N = 9
CLASSES = 3


class TokenClassifier(nn.Module):
    """Linear layers over a sequence dimension, averaged before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Linear(3, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.token(x)).mean(1))


def conv(size: int, channels: int = 2, **options: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = nn.Conv2d(channels, 4, **{"kernel_size": 3, **options})
        flat = layer(torch.zeros(1, channels, size, size)).numel()
        return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(flat, CLASSES))

    return make


# name: (network, shape of an input, what the case is there for)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES)),
        (5,),
        "one position: the route without (b, o, i)",
    ),
    "linear-no-bias": (
        lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, CLASSES)),
        (5,),
        "no column of ones",
    ),
    "linear-in-place": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.LeakyReLU(0.3, inplace=True), nn.Linear(6, CLASSES)),
        (5,),
        "the output is overwritten after the layer; its gradient must be the one before",
    ),
    "linear-sequence": (TokenClassifier, (5, 3), "a gradient is a sum over positions, more of them than inputs"),
    "conv-stride": (conv(5, stride=2), (2, 5, 5), "few positions: inputs are rotated before the sum"),
    "conv-many-positions": (conv(6, kernel_size=1), (2, 6, 6), "36 positions, 3 inputs: rotated after the sum"),
    "conv-padding": (conv(4, padding=(1, 2)), (2, 4, 4), "padding differs by side"),
    "conv-dilation": (conv(6, dilation=2), (2, 6, 6), "patches with gaps"),
    "conv-groups": (conv(4, groups=2, stride=2, padding=1), (2, 4, 4), "two blocks in one layer"),
    "conv-no-bias": (conv(4, bias=False), (2, 4, 4), "patches without ones"),
    "conv-same": (conv(4, kernel_size=(2, 3), padding="same"), (2, 4, 4), "an even kernel pads one side only"),
    "conv-valid": (conv(4, padding="valid"), (2, 4, 4), "the other padding that is a word"),
}


def build(case: str, dtype: torch.dtype = torch.float64, n: int = N) -> tuple[nn.Module, Rows]:
    """Return the network of a case and n rows with ids that are not their numbers."""
    make, shape, _ = CASES[case]
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().to(dtype)
    inputs = torch.randn(n, *shape, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    return model, Rows.from_tensors(inputs, labels, ids=[f"row-{k}" for k in range(n)], classes=CLASSES)


def vector_of(model: nn.Module, seed: int = 2) -> dict[str, Tensor]:
    """Return a random vector in parameter space."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
        for name, p in model.named_parameters()
    }


def flat(vector: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in vector.values()])


def row_gradients(model: nn.Module, layers: list[Layer], x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    """Return one row's gradient blocks (g, o, i) by layer, from a backward pass of this row alone."""
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(model(x[None]), list(parameters.values()), cotangent[None])
    vector = dict(zip(parameters, found, strict=True))
    return {layer.name: layer.block(vector) for layer in layers}


def fisher_columns(model: nn.Module, rows: Rows, task: Task, fisher: str, seed: int = 0) -> Tensor:
    """Return the output gradients that a Fisher matrix is the mean outer product of, shape (c, b, outputs)."""
    outputs = model(rows.batch(torch.arange(len(rows)))[0]).detach()
    if fisher == "exact":
        return task.fisher_root(outputs)
    return task.sampled_gradient(outputs, seed, rows.ids)[None]


def gradient_table(model: nn.Module, rows: Rows, columns: Tensor) -> dict[str, Tensor]:
    """Return every (column, row) gradient block, shape (c * b, g, o, i), by layer."""
    layers = find_layers(model).layers
    inputs = rows.batch(torch.arange(len(rows)))[0]
    table = [
        row_gradients(model, layers, inputs[b], columns[c, b]) for c in range(len(columns)) for b in range(len(rows))
    ]
    return {layer.name: torch.stack([entry[layer.name] for entry in table]) for layer in layers}


def kronecker(s: Tensor, a: Tensor) -> Tensor:
    """Kronecker product for blocks flattened row by row, one for each group: shape (g, o * i, o * i)."""
    return torch.stack([torch.kron(s[g], a[g]) for g in range(len(s))])


def dense_blocks(curvature: Curvature, matrices: dict[str, Tensor], vector: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return dense matrices (g, o * i, o * i) times a vector."""
    result: dict[str, Tensor] = {}
    for layer in curvature.layers:
        block = layer.block(vector)
        product = (matrices[layer.name] @ block.reshape(len(block), -1, 1)).reshape(block.shape)
        result.update(layer.vector(product))
    return result


CLASSIFICATION = get_task("classification")
REGRESSION = get_task("regression")
