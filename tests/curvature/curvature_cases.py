"""Small networks, one for each layer kind, and slow dense oracles built from autograd alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unlearn.curvature import Curvature, Layer
from unlearn.curvature.layers import find_layers
from unlearn.data import Rows
from unlearn.modes import evaluation
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


class Twice(nn.Module):
    """A layer applied twice, to different positions, and a weight that two modules share, with biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.head = nn.Linear(3, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(self.body(x).tanh()[:, :2]).tanh()
        return self.head(self.second(self.first(h).tanh()).tanh().mean(1))


class Tokens(nn.Module):
    """Embeddings of tokens and of places, a norm, and a head that shares the tokens' weight where asked to."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(CLASSES, 4, padding_idx=0), nn.Embedding(5, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, CLASSES, bias=False)
        if tied:
            self.head.weight = self.token.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x) + self.place(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(h).tanh().mean(1))


class Attending(nn.Module):
    """A transformer's layer: packed projections inside a function, rows in the second dimension."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, **options)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class CrossAttending(nn.Module):
    """Attention to something else than the query: the packed projection sees two inputs."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.query, self.attention = nn.Linear(4, 4), nn.MultiheadAttention(4, 2, batch_first=True, **options)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.query(x[:, :2]), x, x)[0].mean(1))


class Separate(nn.Module):
    """Attention whose keys are of another size: its projections are weights of their own, with one bias in common."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.attention = nn.Linear(3, 4), nn.MultiheadAttention(4, 2, batch_first=True, kdim=3, vdim=3)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.query(x), x, x)[0].mean(1))


class Bare(nn.Module):
    """Parameters that belong to no layer, and a weight that is used as a matrix and in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(5)), nn.Parameter(torch.zeros(()))
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x * self.scale + self.shift).tanh()
        return self.head(h) * (1 + self.body.weight.square().sum() / 9)


class Transposed(nn.Module):
    """GPT-2's way to write a linear layer: weight (inputs, outputs), rows and positions made one dimension."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return out.view(*x.shape[:-1], -1)


class Recurrent(nn.Module):
    """A layer that torch can not vectorise over rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 2, batch_first=True), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Folded(nn.Module):
    """Rows folded into another dimension: which entry belongs to which row can not be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(1, 2), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.reshape(-1, 1)).tanh().reshape(-1, 10))


class RowsLast(nn.Module):
    """As many positions as rows, in the dimension where rows usually are."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Linear(3, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.token(x.transpose(0, 1))).mean(0))


def norms() -> nn.Module:
    net = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm1d(4),
        nn.Tanh(),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.RMSNorm(12),
        nn.Linear(12, CLASSES),
    )
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    for module in net:
        if hasattr(module, "running_mean") or isinstance(module, (nn.GroupNorm, nn.RMSNorm)):
            nn.init.normal_(module.weight)
    return net


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
    "conv-circular": (conv(4, padding=1, padding_mode="circular"), (2, 4, 4), "padded before the convolution"),
    "norms": (norms, (2, 6), "conv1d; columns of batch, group and root-mean-square norms"),
    "twice": (Twice, (5, 3), "calls of a layer, and of two modules that share a weight, are positions"),
    "embedding": (lambda: Tokens(tied=False), (4,), "unit vectors as inputs, padding; places have no rows; layer norm"),
    "embedding-tied": (lambda: Tokens(tied=True), (4,), "embedding and head in one weight: a column"),
    "attention": (Attending, (5, 4), "the packed projection has no module; rows are its second dimension"),
    "attention-pre-norm": (lambda: Attending(norm_first=True, bias=False), (5, 4), "no biases"),
    "cross-attention": (CrossAttending, (5, 4), "the packed projection sees queries and keys"),
    "cross-attention-bias": (lambda: CrossAttending(add_bias_kv=True), (5, 4), "bare biases of keys and values"),
    "attention-separate": (
        Separate,
        (5, 3),
        "projections of their own share one bias",
    ),
    "transposed": (
        lambda: nn.Sequential(Transposed(3, 4), nn.Tanh(), Transposed(4, 2), nn.Flatten(), nn.Linear(10, CLASSES)),
        (5, 3),
        "GPT-2's Conv1D: rows and positions in one dimension, weights (i, o)",
    ),
    "transposed-one-position": (
        lambda: nn.Sequential(Transposed(3, 4), nn.Tanh(), Transposed(4, CLASSES)),
        (3,),
        "the same without positions",
    ),
    "flattened": (
        lambda: nn.Sequential(
            nn.Flatten(0, 1), nn.Linear(3, 2), nn.Tanh(), nn.Unflatten(0, (-1, 5)), nn.Flatten(), nn.Linear(10, CLASSES)
        ),
        (5, 3),
        "a linear layer that is given rows and positions in one dimension",
    ),
    "bare": (Bare, (5,), "parameters used in other ways than by a layer"),
    "recurrent": (Recurrent, (4, 3), "a loop over rows"),
    "folded": (Folded, (5,), "rows that can not be told apart: by row"),
    "rows-last": (RowsLast, (N, 3), "as many positions as rows, in the other order"),
}


def build(case: str, dtype: torch.dtype = torch.float64, n: int = N) -> tuple[nn.Module, Rows]:
    """Return the network of a case and n rows with ids that are not their numbers."""
    make, shape, _ = CASES[case]
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().to(dtype)
    inputs = torch.randn(n, *shape, generator=generator, dtype=torch.float64).to(dtype)
    if isinstance(model, Tokens):
        inputs = torch.randint(0, CLASSES, (n, *shape), generator=generator)
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
    with evaluation(model):
        found = torch.autograd.grad(model(x[None]), list(parameters.values()), cotangent[None], materialize_grads=True)
    vector = dict(zip(parameters, found, strict=True))
    return {layer.name: layer.block(vector) for layer in layers}


def fisher_columns(model: nn.Module, rows: Rows, task: Task, fisher: str, seed: int = 0) -> Tensor:
    """Return the output gradients that a Fisher matrix is the mean outer product of, shape (c, b, outputs)."""
    with evaluation(model):
        outputs = model(rows.batch(torch.arange(len(rows)))[0]).detach()
    if fisher == "exact":
        return task.fisher_root(outputs, rows.labels)
    return task.sampled_gradient(outputs, rows.labels, seed, rows.ids)[None]


def gradient_table(model: nn.Module, rows: Rows, columns: Tensor) -> dict[str, Tensor]:
    """Return every (column, row) gradient block, shape (c * b, g, o, i), by layer."""
    layers = find_layers(model, rows).layers
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
