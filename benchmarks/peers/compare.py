"""Packages on one case, each in a process of its own and at its best batch size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors import safe_open
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.peers.case import Case
from benchmarks.peers.worker import PACKAGES, peer_class

ROOT = Path(__file__).parents[2]
STEPS = ("self", "pairs")


@dataclass(frozen=True)
class Measured:
    """What a package did.

    Attributes:
        package: its name.
        batches: batch size of each step.
        figures: CPU seconds of ``epoch``, ``fit`` (without ``eigen``), ``self`` and ``pairs``; ``peak`` in MB.
        scores: ``self`` (rows,) and ``pairs`` (queries, rows), as far as it has them.
    """

    package: str
    batches: dict[str, int]
    figures: dict[str, float]
    scores: dict[str, Tensor]

    @property
    def fit_and_self(self) -> float:
        """Seconds of a fit, its eigendecompositions, and self-influence."""
        return sum(self.figures[name] for name in ("fit", "eigen", "self"))

    def epochs(self, name: str) -> float | None:
        """Return a time in training epochs of the same process."""
        return self.figures[name] / self.figures["epoch"] if name in self.figures else None


class PeerError(Exception):
    """A package failed; the message is the last line of what it said."""


def installed(package: str) -> str | None:
    """Return the version of a package, None where it is not installed or does not load."""
    try:
        return version(peer_class(package).DISTRIBUTION)
    except (ImportError, PackageNotFoundError):
        return None


def available(chosen: Sequence[str] = tuple(PACKAGES)) -> list[str]:
    """Return those of the packages that are installed."""
    return [package for package in chosen if installed(package) is not None]


def run(case: Case, package: str, *, steps: tuple[str, ...] = STEPS, batch: int | None = None) -> Measured:
    """Return what a package does on a case, with one batch size or with the best of its three, tried on few rows.

    Raises:
        PeerError: it failed.
    """
    sizes = peer_class(package).BATCHES
    chosen = dict.fromkeys(("fit", *steps), sizes[0] if batch is None else batch)
    if batch is None and len(sizes) > 1:
        few = case.first(max(sizes))
        trials = {size: _once(few, package, dict.fromkeys(chosen, size)).figures for size in sizes}
        for step in chosen:
            chosen[step] = min(sizes, key=lambda size: trials[size].get(step, 0.0))
    return _once(case, package, chosen)


def _once(case: Case, package: str, batches: dict[str, int]) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        path, result = Path(folder) / "case.safetensors", Path(folder) / "result.safetensors"
        case.save(path)
        command = [sys.executable, "-m", "benchmarks.peers.worker"]
        command += [str(path), package, json.dumps(batches), str(result)]
        threads = str(torch.get_num_threads())
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PeerError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
        with safe_open(result, "pt") as file:
            figures = json.loads(file.metadata()["figures"])
            scores = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    return Measured(package, batches, figures, scores)


def agreement(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Return Spearman's correlation, and the largest difference by the largest of our values."""
    a, b = ours.flatten(), theirs.flatten()
    return float(spearmanr(a, b).statistic), float((a - b).abs().max() / a.abs().max())
