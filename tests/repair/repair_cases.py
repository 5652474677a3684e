"""Small trainings to edit, and slow oracles from autograd alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unlearn.data import Rows, load_data, symmetric_noise
from unlearn.models import build_model
from unlearn.repair import Changes
from unlearn.tasks import get_task
from unlearn.training import Snapshot, TrainingRecord, TrainSettings, train

EPOCHS = 6
STEPS = 6  # an epoch
ROWS = 300


@cache
def digits(count: int = ROWS, split: str = "train") -> Rows:
    rows = load_data("digits", split)
    return rows.at(torch.arange(min(count, len(rows))))


def small_mlp(seed: int = 0, width: int = 16) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model("mlp", inputs=64, classes=10, widths=[width])


def training(
    folder: Path, optimizer: str = "sgd", snapshots: tuple[int, ...] = (0, 2, 4, 5)
) -> tuple[nn.Module, Rows, TrainingRecord]:
    """Return a model, its rows and a record with snapshots after these epochs and the last."""
    rows = symmetric_noise(digits(), rate=0.1, seed=0)
    settings = TrainSettings(
        optimizer="adam" if optimizer == "adam" else "sgd",
        lr=0.005 if optimizer == "adam" else 0.05,
        epochs=EPOCHS,
        batch_size=ROWS // STEPS,
    )
    model, record = train(small_mlp(), rows, settings, seed=3, folder=folder, snapshot_epochs=snapshots)
    return model, rows, record


def loop(
    model: nn.Module, rows: Rows, record: TrainingRecord, start: int = 0, snapshot: Snapshot | None = None
) -> nn.Module:
    """The recorded SGD steps, written out: removed rows leave their places in the batch empty."""
    model = copy.deepcopy(model).train()
    buffers: dict[str, Tensor] = {}
    if snapshot is not None:
        model.load_state_dict(snapshot.weights)
        buffers = {
            key.split("/")[1]: value.clone()
            for key, value in snapshot.optimizer.items()
            if key.startswith("momentum_buffer/")
        }
    assert record.order is not None
    for step in range(start, record.steps):
        at = [rows.ids.index(row) for row in record.order.batch(step) if row in rows]
        inputs, labels = rows.batch(torch.tensor(at))
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                assert p.grad is not None
                direction = p.grad + record.weight_decay * p
                buffers[name] = direction if name not in buffers else record.momentum * buffers[name] + direction
                p -= record.rates()[step] * buffers[name]
    return model


def distance_to(there: nn.Module) -> Callable[[nn.Module], float]:
    """KL of a model's answers to the test digits from those of a retrain."""
    inputs, _ = digits(297, "test").batch(torch.arange(297))

    def distance(other: nn.Module) -> float:
        with torch.no_grad():
            goal, found = there(inputs).double().log_softmax(1), other(inputs).double().log_softmax(1)
        return float((goal.exp() * (goal - found)).sum(1).mean())

    return distance


def tiny(kind: str = "mlp", n: int = 12) -> tuple[nn.Module, Rows]:
    """A net of 4 inputs and 3 classes with random weights in float64, far from any optimum."""
    generator = torch.Generator().manual_seed(5)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Linear(4, 3) if kind == "linear" else nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    inputs = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    labels = torch.arange(n) % 3
    return model.double(), Rows.from_tensors(inputs, labels, ids=[f"row-{i}" for i in range(n)], classes=3)


TINY_CHANGES = {
    "remove": Changes(removed=("row-7", "row-2", "row-10")),
    "relabel": Changes(relabelled={"row-3": 2, "row-8": 0}),
    "mixed": Changes(removed=("row-9", "row-1"), relabelled={"row-3": 1, "row-0": 2}),
}


def flat(vector: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in vector.values()]).detach()


def weights_of(model: nn.Module) -> Tensor:
    return flat(dict(model.named_parameters()))


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def row_gradient(model: nn.Module, x: Tensor, y: Tensor, task: str = "classification") -> Tensor:
    """Gradient of one row's loss, without weight decay."""
    loss = get_task(task).loss(model(x[None]), y[None]).sum()
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([part.reshape(-1) for part in found])


def right_hand_side(model: nn.Module, rows: Rows, changes: Changes, decay: float) -> Tensor:
    """The sums of math.md 3, row by row."""
    left = len(rows) - len(changes.removed)
    total = torch.zeros_like(weights_of(model))
    for row in changes.removed:
        x, y = rows[rows.ids.index(row)]
        total += row_gradient(model, x, y) + decay * weights_of(model)
    for row, label in changes.relabelled.items():
        x, y = rows[rows.ids.index(row)]
        total += row_gradient(model, x, y) - row_gradient(model, x, torch.tensor(label))
    return total / left


def dense_gauss_newton(model: nn.Module, rows: Rows) -> Tensor:
    """(1/n) sum_i J_i^T (diag p - p p^T) J_i, row by row."""
    state = {name: p.detach() for name, p in model.named_parameters()}
    total = torch.zeros(len(weights_of(model)), len(weights_of(model)), dtype=torch.float64)
    for i in range(len(rows)):
        x = rows[i][0]
        parts = torch.func.jacrev(lambda s, x=x: functional_call(model, s, (x[None],))[0])(state)
        jacobian = torch.cat([part.reshape(part.shape[0], -1) for part in parts.values()], 1)
        p = model(x[None])[0].softmax(0).detach()
        total += jacobian.T @ (p.diag() - p.outer(p)) @ jacobian
    return total / len(rows)


def training_objective(model: nn.Module, rows: Rows, decay: float, task: str = "classification") -> Tensor:
    """Mean loss plus (w/2) ||theta||^2, as a tensor with a graph."""
    inputs, labels = rows.batch(torch.arange(len(rows)))
    squares = torch.stack([p.square().sum() for p in model.parameters()]).sum()
    return get_task(task).loss(model(inputs), labels).mean() + 0.5 * decay * squares


def gradient_size(model: nn.Module, rows: Rows, decay: float, task: str = "classification") -> float:
    found = torch.autograd.grad(training_objective(model, rows, decay, task), list(model.parameters()))
    return float(torch.cat([part.reshape(-1) for part in found]).norm())
