"""Two ranks against one process: ``python -m benchmarks.distributed [--quick] [--rows N]``.

The CNN of the recipes (1 x 28 x 28, 420,000 weights, as initialised) on rows that are made when they are read. "one" is
one process of one thread, "two" two ranks of one thread each under torchrun, "beside" two processes that each do all of
it at once: what two of them could do on this machine if they had nothing to say to each other. Times are seconds from
the first row to the result on all ranks, the median of the rounds, in which the three take turns; a ratio is that of
throughput, one / two, and for "beside" 2 one / beside. Importing and starting (about 5 s) is left out. "fit" is EK-FAC
with sampled labels; its eigendecompositions do not grow with the rows, and one factor of the CNN has most of their
cost, so that they hardly share out: "its passes" are the fit without them, "eigendecompositions" they alone. Memory is
the most resident memory of a process in fit and scoring, above what model and rows take: each rank holds all factors.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.memory import PeakMemory, made_rows
from benchmarks.setting import Bars
from unlearn.curvature import fit, fit_curvature, gauss_newton
from unlearn.data import Rows
from unlearn.detect import self_influence
from unlearn.models import build_model
from unlearn.ranks import start_ranks, stop_ranks, this_rank
from unlearn.training import BatchOrder, TrainingRecord, replay

ROWS, QUICK_ROWS = 20_000, 2_000
COMPARED = 2_000
BATCHES = (128, 512)
ROUNDS, QUICK_ROUNDS = 3, 1
RANKS = 2
BAR = 1.7
REPLAYS = {f"replay of an epoch, batches of {size}": size for size in BATCHES}
STAGES = (
    "fit",
    "its passes",
    "eigendecompositions",
    "self-influence",
    "Gauss-Newton product",
    *REPLAYS,
    "fit and scoring",
)
DTYPES = {"float32": None, "float64": torch.float64}


def measure(rows: int) -> dict[str, float]:
    """Return the seconds of each stage and the MB of fit and scoring, on this rank."""
    model, data = build_model("cnn", seed=0), made_rows(rows)
    v = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    data.fingerprint  # noqa: B018 - read once, by any number of processes
    decomposing = 0.0
    plain = fit.eigenbases

    def timed(factors: dict[str, Tensor]) -> list[tuple[Tensor, Tensor | None, int]]:
        nonlocal decomposing
        begin = time.perf_counter()
        found = plain(factors)
        decomposing += time.perf_counter() - begin
        return found

    fit.eigenbases = timed
    seconds: dict[str, float] = {}

    def clock(stage: str, work: Callable[[], object]) -> object:
        begin = time.perf_counter()
        found = work()
        seconds[stage] = time.perf_counter() - begin
        return found

    memory = PeakMemory()
    curvature = clock("fit", lambda: fit_curvature(model, data))
    fit.eigenbases = plain
    seconds["its passes"], seconds["eigendecompositions"] = seconds["fit"] - decomposing, decomposing
    clock("self-influence", lambda: self_influence(model, data, curvature=curvature))  # type: ignore[arg-type]
    seconds["memory"] = memory.megabytes()
    clock("Gauss-Newton product", lambda: gauss_newton(model, data).matvec(v))
    for stage, size in REPLAYS.items():
        clock(stage, lambda size=size: replay(model, data, one_epoch(data, size)))  # type: ignore[misc]
    seconds["fit and scoring"] = seconds["fit"] + seconds["self-influence"]
    return seconds


def one_epoch(data: Rows, size: int) -> TrainingRecord:
    """Return the record of an epoch of SGD in batches of this size."""
    order = BatchOrder.shuffled(data.ids, epochs=1, batch_size=size, seed=0)
    return TrainingRecord("sgd", 0.01, len(order), momentum=0.9, order=order)


def compare(path: Path) -> None:
    """Leave numbers of fewer rows in a file, for factors and weights of both types."""
    data = made_rows(COMPARED)
    found = {}
    for name, dtype in DTYPES.items():
        for weights in (torch.float32, torch.float64):
            if weights == torch.float64 and dtype is None:
                continue
            rows, model = data, build_model("cnn", seed=0).to(weights)
            if weights == torch.float64:
                inputs, labels = data.batch(torch.arange(len(data)))
                rows = type(data).from_tensors(inputs.double(), labels)  # type: ignore[union-attr]
            v = {key: torch.linspace(-1, 1, p.numel(), dtype=p.dtype).view_as(p) for key, p in model.named_parameters()}
            curvature = fit_curvature(model, rows, dtype=dtype)
            said = f"{name} factors, {str(weights)[6:]} weights: "
            flat = [part.flatten().double() for part in curvature.matvec(v).values()]
            found[said + "product with the factors"] = torch.cat(flat)
            found[said + "self-influence"] = torch.tensor(self_influence(model, rows, curvature=curvature).values)
            flat = [part.flatten().double() for part in gauss_newton(model, rows).matvec(v).values()]
            found[said + "Gauss-Newton product"] = torch.cat(flat)
            after = f"{str(weights)[6:]} weights: after a replay of an epoch"
            if after not in found:
                flat = [
                    part.flatten().double() for part in replay(model, rows, one_epoch(rows, BATCHES[0]))[0].parameters()
                ]
                found[after] = torch.cat(flat)
    if this_rank() == 0:
        save_file(found, path)


def started(ranks: int, *words: str) -> subprocess.Popen[str]:
    """Start this module in one process, or in several under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *torchrun, "-m", "benchmarks.distributed", "rank", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def slowest(*processes: subprocess.Popen[str]) -> dict[str, float]:
    """Return the seconds of each stage on the slowest rank or process."""
    lines = [line for process in processes for line in process.communicate()[0].splitlines() if line.startswith("{")]
    if any(process.returncode for process in processes):
        raise SystemExit("a rank failed; its words are above")
    found = [json.loads(line) for line in lines]
    return {stage: max(one[stage] for one in found) for stage in (*STAGES, "memory")}


def main(words: list[str]) -> None:
    """Print the tables and the bar."""
    if words[:1] == ["rank"]:
        torch.set_num_threads(1)
        start_ranks()
        if words[1].isdecimal():
            print(json.dumps(measure(int(words[1]))) + "\n", end="", flush=True)
        else:
            compare(Path(words[1]))
        stop_ranks()
        return
    quick = "--quick" in words
    rows, rounds = (QUICK_ROWS, QUICK_ROUNDS) if quick else (ROWS, ROUNDS)
    rows = int(words[words.index("--rows") + 1]) if "--rows" in words else rows
    print(" ".join(["# python -m benchmarks.distributed", *words]))
    print(f"\ntorch {torch.__version__}, {os.cpu_count()} cores, gloo; {rows:,} rows, {rounds} round(s); load average")
    print(f"before {os.getloadavg()[0]:.2f} (other work on the same cores counts against all three)\n")
    print(" ".join((__doc__ or "").split(chr(10), 2)[2].split()) + "\n")
    times: dict[str, list[dict[str, float]]] = {"one": [], "two": [], "beside": []}
    loads = []
    for _ in range(rounds):
        times["one"].append(slowest(started(1, str(rows))))
        loads.append(os.getloadavg()[0])
        times["two"].append(slowest(started(RANKS, str(rows))))
        loads.append(os.getloadavg()[0])
        times["beside"].append(slowest(*(started(1, str(rows)) for _ in range(RANKS))))
    middle = {who: {s: statistics.median(one[s] for one in found) for s in STAGES} for who, found in times.items()}
    print("| | one, s | two, s | beside, s | two: times the throughput | by round | beside |\n" + "|---" * 7 + "|")
    for stage in STAGES:
        one, two, beside = (middle[who][stage] for who in times)
        by_round = ", ".join(f"{a[stage] / b[stage]:.2f}" for a, b in zip(times["one"], times["two"], strict=True))
        print(f"| {stage} | {one:.2f} | {two:.2f} | {beside:.2f} | {one / two:.2f} | {by_round} | ", end="")
        print(f"{RANKS * one / beside:.2f} |")
    print(
        "\nMemory of a process: "
        + ", ".join(f"{who} {found[0]['memory']:.0f} MB" for who, found in times.items())
        + "."
    )
    print(f"\nLoad average after each of one and two: {', '.join(f'{load:.2f}' for load in loads)}.\n")
    print(f"Largest difference of two ranks from one process, by the largest value, {COMPARED:,} rows:")
    print("\n| | |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{ranks}.safetensors" for ranks in (1, RANKS)]
        for ranks, file in zip((1, RANKS), files, strict=True):
            started(ranks, str(file)).communicate()
        alone, both = map(load_file, files)
    for name, expected in alone.items():
        print(f"| {name} | {float((both[name] - expected).abs().max() / expected.abs().max()):.1e} |")
    print()
    bars = Bars()
    bars.hold("fit and scoring, one / two", -middle["one"]["fit and scoring"] / middle["two"]["fit and scoring"], -BAR)
    print(str(bars))


if __name__ == "__main__":
    main(sys.argv[1:])
