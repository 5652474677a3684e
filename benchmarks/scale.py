"""How scoring grows with the rows: ``python -m benchmarks.scale rows [--quick]``.

Rows of 64 features are made when they are read, so the data take no memory. An MLP of 64 hidden units gets its
curvature from 2,000 of them. Then 100,000, 300,000 and 1,000,000 rows are gone through, each number in a process of its
own: all are scored by self-influence into shards on disk, and the 8 most harmful and most helpful of all are found for
each of 4 queries. "peak" is the most resident memory above the process with model and curvature; the rows' ids and
labels are in it. Seconds are CPU time. The exponent is the slope of their logarithm over that of the number of rows:
1 is time in proportion.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.memory import PeakMemory
from benchmarks.setting import Bars, threads
from unlearn.curvature import Curvature, fit_curvature
from unlearn.data import Rows
from unlearn.detect import score_shards, top_influence
from unlearn.models import build_model

FEATURES, CLASSES, HIDDEN = 64, 10, 64
FITTED, QUERIES, ENDS = 2_000, 4, 8
SIZES, QUICK_SIZES = (100_000, 300_000, 1_000_000), (10_000, 30_000, 100_000)
SHARD_ROWS = 65_536
MEMORY_BAR = 300.0  # MB from the fewest rows to the most
EXPONENT_BARS = (0.95, 1.05)


class MadeWhenRead:
    """Features that are a function of the row's number."""

    def inputs(self, positions: Tensor) -> Tensor:
        """Return features (b, 64): a pattern of the class, with noise of the row."""
        column = torch.arange(FEATURES)
        noise = ((positions[:, None] * 7919 + 1) * (column + 3) % 1009).float() / 1009
        return noise - 0.5 + (column % CLASSES == (positions % CLASSES)[:, None]).float()


def made_rows(count: int) -> Rows:
    """Return so many rows."""
    return Rows.from_source(MadeWhenRead(), torch.arange(count) % CLASSES, length=count, classes=CLASSES)


def in_shards(model: nn.Module, curvature: Curvature, rows: Rows) -> object:
    """Score all rows into shards on disk and read these through."""
    with tempfile.TemporaryDirectory() as folder:
        found = score_shards("self-influence", model, rows, folder, curvature=curvature, shard_rows=SHARD_ROWS)
        return sum(float(shard.values.sum()) for shard in found)


def ends(model: nn.Module, curvature: Curvature, rows: Rows) -> object:
    """Find the most harmful and most helpful rows of a few queries."""
    return top_influence(model, rows, made_rows(QUERIES), ENDS, curvature=curvature)


WORK: dict[str, Callable[[nn.Module, Curvature, Rows], object]] = {
    "self-influence in shards": in_shards,
    f"top {ENDS} of {QUERIES} queries": ends,
}


def measure(what: str, count: int) -> dict[str, float]:
    """Return MB at the peak of going through so many rows, and CPU seconds."""
    model = build_model("mlp", seed=0, classes=CLASSES, inputs=FEATURES, widths=[HIDDEN])
    curvature = fit_curvature(model, made_rows(FITTED))
    WORK[what](model, curvature, made_rows(FITTED))  # what is made once is not counted
    memory, begin = PeakMemory(), time.process_time()
    WORK[what](model, curvature, made_rows(count))
    return {"peak": memory.megabytes(), "seconds": time.process_time() - begin}


def measure_apart(what: str, count: int) -> dict[str, float]:
    """Return :func:`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "one", what, str(count)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Return the slope of log seconds over log size.

    >>> round(exponent((1, 10, 100), [2.0, 20.0, 200.0]), 6)
    1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main(words: list[str]) -> None:
    """Print the table and the bars."""
    if words[:1] == ["one"]:
        torch.set_num_threads(1)
        print(json.dumps(measure(words[1], int(words[2]))))
        return
    if words[:1] != ["rows"]:
        raise SystemExit(f"usage: python -m benchmarks.scale rows [--quick], not {' '.join(words)!r}")
    sizes = QUICK_SIZES if "--quick" in words else SIZES
    print(" ".join(["# python -m benchmarks.scale", *words]))
    print(f"\n{threads()}\n\n{' '.join((__doc__ or '').split(chr(10), 2)[2].split())}\n")
    print("| | " + " | ".join(f"{n:,} rows: peak, MB | s" for n in sizes) + " | more, MB | exponent |")
    print("|---" * (2 * len(sizes) + 3) + "|")
    bars = Bars()
    for what in WORK:
        found = [measure_apart(what, size) for size in sizes]
        more = found[-1]["peak"] - found[0]["peak"]
        slope = exponent(sizes, [one["seconds"] for one in found])
        cells = " | ".join(f"{one['peak']:.0f} | {one['seconds']:.1f}" for one in found)
        print(f"| {what} | {cells} | {more:.0f} | {slope:.3f} |", flush=True)
        bars.hold(f"{what}: MB more for {sizes[-1]:,} rows than for {sizes[0]:,}", more, MEMORY_BAR)
        bars.hold(f"{what}: exponent of CPU time", slope, EXPONENT_BARS[1])
        bars.hold(f"{what}: exponent of CPU time", slope, EXPONENT_BARS[0], at_least=True)
    print(str(bars).replace("mean over seeds", "one run"))


if __name__ == "__main__":
    main(sys.argv[1:])
