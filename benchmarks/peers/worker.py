"""One package on one case in a process of its own, so that its peak memory is its own.

``python -m benchmarks.peers.worker CASE PACKAGE BATCHES RESULT`` writes seconds, memory and scores; BATCHES are the
steps and their batch sizes, in JSON such as ``{"fit": 8, "self": 32}``.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.curvature_cost import train_epoch
from benchmarks.memory import PeakMemory
from benchmarks.peers.case import Case
from benchmarks.peers.peer import Clock, Peer

PACKAGES = {
    "unlearn": "ours.Unlearn",
    "kronfluence": "kronfluence.Kronfluence",
    "curvlinops": "curvlinops.Curvlinops",
    "dattri": "dattri.Dattri",
    "pyDVL": "pydvl.PyDVL",
    "TRAK": "trak.Trak",
}
ROUNDS = {"unlearn": 5}
"""Ours is over in a blink: medians of so many rounds, each on rows not yet fingerprinted."""
EPOCHS = 3


def peer_class(package: str) -> type[Peer]:
    """Return the class that drives a package.

    Raises:
        ImportError: the package is not installed.
    """
    module, name = PACKAGES[package].split(".")
    found: type[Peer] = getattr(import_module(f"benchmarks.peers.{module}"), name)
    return found


def measure(case: Case, package: str, batches: dict[str, int]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return seconds and memory of the steps (of ``fit``, ``self``, ``pairs``) at their batch sizes, and scores."""
    student = copy.deepcopy(case.model).train()
    epochs = []
    for _ in range(EPOCHS):
        clock = Clock()
        with clock.running():
            train_epoch(student, case.rows)
        epochs.append(clock.seconds)
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS.get(package, 1)):
        with tempfile.TemporaryDirectory() as folder:
            seconds, scores = _round(peer_class(package)(case, folder), batches)
        rounds.append(seconds)
    return {"epoch": median(epochs)} | {name: median(figures[name] for figures in rounds) for name in rounds[0]}, scores


def _round(peer: Peer, batches: dict[str, int]) -> tuple[dict[str, float], dict[str, Tensor]]:
    clock, memory, figures, scores = Clock(), PeakMemory(), {}, {}
    with clock.running():
        figures["eigen"] = peer.fit(batches["fit"])
    figures["fit"] = clock.seconds - figures["eigen"]
    for step, run in (("self", peer.self_influence), ("pairs", peer.pairwise)):
        clock = Clock()
        with clock.running():
            found = run(batches[step]) if step in batches else None
        if found is not None:
            figures[step], scores[step] = clock.seconds, found.double().contiguous()
    figures["peak"] = memory.megabytes()
    return figures, scores


def main(path: str, package: str, batches: str, result: str) -> None:
    """Measure and write."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    figures, scores = measure(Case.load(Path(path)), package, json.loads(batches))
    save_file(scores, result, {"figures": json.dumps(figures)})


if __name__ == "__main__":
    main(*sys.argv[1:])
