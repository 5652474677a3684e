"""Peak memory of scoring many rows: ``python -m benchmarks.memory [--quick]``.

Rows of 1 x 28 x 28 are made when they are read, so the data take no memory. Curvature is fitted on 2,000 of them; then
each score of 10,000 and of 100,000 rows is taken in a process of its own. "peak" is the most resident memory during the
score above what was in use before it, with the rows' ids and labels among it; the score's own values count too. Queries
and trusted rows are 32. A fit keeps layer inputs and gradients for its second pass, up to 512 MB.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.setting import Bars, threads
from unlearn.curvature import fit_curvature
from unlearn.data import Rows
from unlearn.detect import harm, influence, self_influence, top_influence
from unlearn.models import build_model

MODELS = {"mlp": {"widths": [512, 256]}, "cnn": {"widths": [32, 64], "hidden": 128}}
SCORES = {"mlp": ("self-influence", "influence, top 8", "harm", "influence matrix", "fit"), "cnn": ("self-influence",)}
BAR_SCORES = ("self-influence", "influence, top 8", "harm")
SIZES = (10_000, 100_000)
QUICK_SIZES = (1_000, 4_000)
FITTED, QUERIES, CLASSES = 2_000, 32, 10
GROWTH_BAR = 200.0  # MB from 10,000 to 100,000 rows


class PeakMemory:
    """The most resident memory since it was made, above what was in use then (Linux)."""

    def __init__(self) -> None:
        ctypes.CDLL(None).malloc_trim(0)  # else what was freed before would be used again and not be seen
        Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far
        self._start = self._peak_kb()

    def megabytes(self) -> float:
        """Return the peak so far."""
        return (self._peak_kb() - self._start) / 1024

    def above(self, earlier: PeakMemory) -> float:
        """Return the peak so far above what was in use when an earlier one was made, in MB."""
        return (self._peak_kb() - earlier._start) / 1024

    @staticmethod
    def _peak_kb() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


class MadeOnTheFly:
    """Images that are a function of their number."""

    def inputs(self, positions: Tensor) -> Tensor:
        """Return images (b, 1, 28, 28) in [0, 1]: a pattern of the class, with noise of the row."""
        pixels = torch.arange(784)
        noise = ((positions[:, None] * 7919 + 1) * (pixels + 3) % 1009).float() / 1009
        pattern = (pixels % CLASSES == (positions % CLASSES)[:, None]).float()
        return (0.5 * pattern + 0.5 * noise).reshape(-1, 1, 28, 28)


def made_rows(count: int) -> Rows:
    """Return so many rows."""
    return Rows.from_source(MadeOnTheFly(), torch.arange(count) % CLASSES, length=count, classes=CLASSES)


def measure(name: str, score: str, count: int) -> dict[str, float]:
    """Return MB at the peak of a score of so many rows, and its CPU seconds."""
    model: nn.Module = build_model(name, seed=0, classes=CLASSES, **MODELS[name])
    curvature = fit_curvature(model, made_rows(FITTED))
    few = made_rows(QUERIES)
    memory, begin = PeakMemory(), time.process_time()
    rows = made_rows(count)
    scores: dict[str, Callable[[], object]] = {
        "self-influence": lambda: self_influence(model, rows, curvature=curvature),
        "influence, top 8": lambda: top_influence(model, rows, few, 8, curvature=curvature),
        "harm": lambda: harm(model, rows, few, curvature=curvature),
        "influence matrix": lambda: influence(model, rows, few, curvature=curvature),
        "fit": lambda: fit_curvature(model, rows),
    }
    kept = scores[score]()
    found = {"peak": memory.megabytes(), "seconds": time.process_time() - begin}
    del kept
    return found


def measure_apart(name: str, score: str, count: int) -> dict[str, float]:
    """Return :func:`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "one", name, score, str(count)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(words: list[str]) -> None:
    """Print the table and the bars."""
    if words[:1] == ["one"]:
        torch.set_num_threads(1)
        print(json.dumps(measure(words[1], words[2], int(words[3]))))
        return
    sizes = QUICK_SIZES if "--quick" in words else SIZES
    print(" ".join(["# python -m benchmarks.memory", *words]))
    print(f"\n{threads()}\n\n{' '.join((__doc__ or '').split(chr(10), 2)[2].split())}\n")
    heads = [f"{size:,} rows: {what}" for size in sizes for what in ("peak, MB", "s")]
    print("| model, score | " + " | ".join(heads) + " | more, MB |")
    print("|---" * (len(heads) + 2) + "|")
    bars = Bars()
    for name, scores in SCORES.items():
        for score in scores:
            few, many = (measure_apart(name, score, size) for size in sizes)
            cells = [
                f"{found[what]:.{digits}f}" for found in (few, many) for what, digits in (("peak", 0), ("seconds", 1))
            ]
            more = many["peak"] - few["peak"]
            print(f"| {name}, {score} | " + " | ".join(cells) + f" | {more:.0f} |")
            if score in BAR_SCORES:
                bars.hold(f"{name}: {score}, MB more for {sizes[1]:,} rows than for {sizes[0]:,}", more, GROWTH_BAR)
    print(str(bars).replace("mean over seeds", "one run"))


if __name__ == "__main__":
    main(sys.argv[1:])
