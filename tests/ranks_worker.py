"""What ranks do in tests/test_ranks.py: ``python ranks_worker.py FOLDER RANKS`` starts so many."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unlearn import ranks
from unlearn.atomic import write_atomically
from unlearn.curvature import conjugate_gradient, fit_curvature, gauss_newton, loss_gradient
from unlearn.data import Rows, as_rows
from unlearn.detect import harm, influence, score_shards, self_influence
from unlearn.errors import UnlearnError
from unlearn.ranks import as_one_process, own_span, start_ranks, stop_ranks, sum_over_ranks, this_rank
from unlearn.repair.head import replay_head
from unlearn.tasks import get_task
from unlearn.training import BatchOrder, TrainingRecord, replay
from unlearn.verification import train_references

ROWS = 5  # 1, 2 and 2 for three ranks


class Meaning(nn.Module):
    """Keeps the mean of its inputs, and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.5).add_(x.detach().mean())
        return x


class Masked(nn.Module):
    """Keeps a mask of truth values and one of infinities, as attention does, and changes neither."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("allowed", torch.ones(2, 2, dtype=torch.bool))
        self.register_buffer("added", torch.tensor([0.0, -torch.inf]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.allowed


class Paired(nn.Module):
    """Needs two rows at least."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:2].view(2, *x.shape[1:]), x[2:]])


BASE = TrainingRecord("sgd", [0.3, 0.2, 0.1], 3, momentum=0.9, weight_decay=0.01)
IN_TRAINING: dict[str, Callable[[], list[nn.Module]]] = {
    "nothing": list,
    "masks": lambda: [Masked()],
    "batch norm": lambda: [nn.BatchNorm2d(2)],
    "batch norm of vectors": lambda: [nn.Flatten(), nn.BatchNorm1d(8)],
    "dropout": lambda: [nn.Dropout(0.3)],
    "little dropout": lambda: [nn.Dropout(0.02)],  # none in the first batch
    "batch norm before a head of zeros": lambda: [nn.BatchNorm2d(2)],
    "a mean that only evaluation uses": lambda: [Meaning()],
    "a view of two rows": lambda: [Paired()],
}


def problem() -> tuple[nn.Module, Rows]:
    """A convolution and a head in float64, on uneven rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
        return model, as_rows((torch.randn(ROWS, 1, 5, 5, dtype=torch.float64), torch.arange(ROWS) % 3))


def found(folder: Path) -> dict[str, Tensor]:
    """All that is shared out, by name; what is written goes to a folder."""
    model, rows = problem()
    v = {name: torch.linspace(-1, 1, p.numel(), dtype=p.dtype).reshape(p.shape) for name, p in model.named_parameters()}
    results: dict[str, Tensor] = {}

    def keep(name: str, vector: dict[str, Tensor]) -> None:
        results[name] = torch.cat([part.detach().flatten() for part in vector.values()])

    for kind in ("ekfac", "kfac", "diagonal"):
        curvature = fit_curvature(model, rows, kind=kind, batch_size=2)
        keep(f"{kind} G v", curvature.matvec(v))
        keep(f"{kind} solve", curvature.solve(v, damping=0.1))
        streamed = fit_curvature(model, rows, kind=kind, batch_size=2, folder=folder / kind)
        keep(f"{kind} solve, streamed", streamed.solve(v, damping=0.1))
        results[f"{kind} self-influence"] = torch.tensor(
            self_influence(model, rows, curvature=curvature, damping=0.1, batch_size=2).values
        )
    shards = score_shards("self-influence", model, rows, folder / "scores", curvature=curvature, shard_rows=2)
    results["in shards"] = torch.tensor(shards.scores().values)
    results["exact Fisher"] = torch.tensor(fit_curvature(model, rows, fisher="exact").mean_eigenvalue)
    results["relative"] = torch.tensor(self_influence(model, rows, relative="gradient", batch_size=2).values)
    by_cg = self_influence(model, rows, solver="cg", damping=0.1)
    results["self-influence by CG"] = torch.tensor(by_cg.values)
    results["its cost"] = torch.tensor(by_cg.options["cost_epochs"])
    results["influence"] = influence(model, rows, rows.at(torch.arange(3)), query_batch=2, batch_size=2)
    results["harm"] = torch.tensor(harm(model, rows, rows.at(torch.tensor([0])), damping=0.1).values)
    results["one row"] = torch.tensor(fit_curvature(model, rows.at(torch.tensor([4]))).mean_eigenvalue)
    operator = gauss_newton(model, rows, batch_size=2)
    keep("product", operator.matvec(v))
    keep("gradient", loss_gradient(model, rows, batch_size=2))
    keep("CG", conjugate_gradient(lambda x: {k: y + 0.1 * x[k] for k, y in operator.matvec(x).items()}, v).solution)
    order = BatchOrder.from_batches([rows.ids[:3], rows.ids[3:], rows.ids[2:]])
    record = replace(BASE, order=order)
    for k, one in enumerate(train_references(model, rows, record, count=3).independent):
        keep(f"reference {k}", dict(one.named_parameters()))
    said = {}
    for name in IN_TRAINING:
        weights, *said[name] = replayed(name, model, rows, order)
        keep(f"replay with {name}", weights)
    (folder / f"replays-{this_rank()}.json").write_text(json.dumps(said))
    head = replay_head(model, rows, replace(BASE, order=order), get_task("classification"), "3")
    keep("head trained again", dict(head.model.named_parameters()))
    words = Rows.from_tensors(torch.arange(4), torch.tensor([0, 1, 0, 1]))
    sparse = nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.Linear(3, 2)).double()
    sparse.load_state_dict({k: torch.linspace(-1, 1, v.numel()).view_as(v) for k, v in sparse.state_dict().items()})
    record = TrainingRecord("sgd", 0.1, 1, order=BatchOrder.from_batches([words.ids]))
    keep("replay with sparse gradients", dict(replay(sparse, words, record)[0].named_parameters()))
    turned = torch.zeros(5, 2).T
    for k in own_span(5):
        turned[:, k] = 1.0 + k
    whole = [torch.zeros(3), turned, torch.zeros(2, dtype=torch.float64), torch.zeros(())]
    sum_over_ranks(*whole)
    results["sums of all kinds"] = turned.contiguous()
    return results


def replayed(name: str, model: nn.Module, rows: Rows, order: BatchOrder) -> tuple[dict[str, Tensor], int, list[str]]:
    """Weights after a replay without row 0 of the model with such a layer, rows that this rank ran, and warnings."""
    here = nn.Sequential(model[0], *IN_TRAINING[name](), *list(model)[1:]).double()
    if "zeros" in name:
        here[-1].load_state_dict({key: torch.zeros_like(value) for key, value in here[-1].state_dict().items()})
    record = replace(BASE, optimizer="adam" if name == "nothing" else "sgd", order=order)
    ran: list[int] = []
    here[-1].register_forward_hook(lambda _, __, output: ran.append(len(output) * output.requires_grad))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        there, _ = replay(here, rows.without(rows.ids[:1]), record)
    return dict(there.state_dict()), sum(ran), [str(one.message) for one in caught]


def refused() -> list[str]:
    """What ranks that differ are told, and that a write which fails fails on all."""
    model, rows = problem()
    swapped = rows.at(torch.tensor([1, 0, *range(2, ROWS)])) if this_rank() else rows
    relabelled = rows.relabelled({"3": 1}) if this_rank() else rows
    curvature = fit_curvature(model, rows)
    said = []

    def tell(work) -> None:
        try:
            work()
            said.append("nothing")
        except UnlearnError as error:
            said.append(f"{type(error).__name__}: {error}")

    tell(lambda: fit_curvature(model, swapped))
    tell(lambda: gauss_newton(model, relabelled))
    tell(lambda: fit_curvature(model, rows, seed=this_rank()))
    tell(lambda: write_atomically("/no/such/folder/a.json", b"{}"))
    order = BatchOrder.from_batches([rows.ids] * 3)
    steep = replace(BASE, lr=[1e200, 1e200, 1e200], order=order)
    tell(lambda: replay(model, rows, steep))
    blocked = Path(tempfile.mkdtemp())
    (blocked / "factors.safetensors.part").mkdir()
    tell(lambda: fit_curvature(model, rows, folder=blocked if this_rank() == 0 else blocked.parent))
    if this_rank():
        with torch.no_grad():
            next(model.parameters()).add_(1)
        curvature = fit_apart(model, rows)
    tell(lambda: self_influence(model, rows, curvature=curvature))
    return said


def fit_apart(model: nn.Module, rows: Rows):
    """A fit of this rank alone."""
    with as_one_process():
        return fit_curvature(model, rows)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def main(folder: Path, number: int) -> None:
    """Write what a rank found and was told; of a shared file the first rank's bytes stay."""
    os.environ["RANK"] = str(number)
    ranks._BUCKET = 64  # bytes, so that some are full
    start_ranks()
    rank, results, said = this_rank(), found(folder), refused()
    write_atomically(folder / "shared.txt", f"written by rank {rank}".encode())
    assert (folder / "shared.txt").exists()
    save_file(results, folder / f"found-{rank}.safetensors")
    (folder / f"refused-{rank}.txt").write_text("\n".join(said))
    stop_ranks()


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": sys.argv[2], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    # Forked: torch, and what its first derivative imports, are imported once for all.
    import_module("torch._dynamo")
    started = [get_context("fork").Process(target=main, args=(Path(sys.argv[1]), k)) for k in range(int(sys.argv[2]))]
    for process in started:
        process.start()
    for process in started:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in started))
