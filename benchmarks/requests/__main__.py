"""Deletion requests under stress: ``python -m benchmarks.requests [faults] [tamper] [concurrency] [sequence]``."""

from __future__ import annotations

import sys

import torch

from benchmarks.requests.concurrency import concurrency
from benchmarks.requests.faults import faults
from benchmarks.requests.sequence import sequence
from benchmarks.requests.tamper import tamper
from benchmarks.setting import threads

PARTS = {"faults": faults, "tamper": tamper, "concurrency": concurrency, "sequence": sequence}


def main(names: list[str]) -> None:
    """Print the parts."""
    torch.set_num_threads(1)
    print(f"# python -m benchmarks.requests {' '.join(names)}\n\n{threads()}")
    for name in names or list(PARTS):
        PARTS[name]()
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
