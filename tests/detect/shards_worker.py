"""Scores rows in shards, slowly, and logs how many rows the model is run on: ``python shards_worker.py FOLDER LOG``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from unlearn.curvature import fit_curvature
from unlearn.data import Rows
from unlearn.detect import score_shards

ROWS, SHARD, BATCH = 103, 32, 16


def problem() -> tuple[nn.Module, Rows]:
    """A small net and rows of three features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
        return model, Rows.from_tensors(torch.randn(ROWS, 3), torch.arange(ROWS) % 4)


def main(folder: str, log: Path) -> None:
    """Score all rows; a line of the log for each batch."""
    torch.set_num_threads(1)
    model, rows = problem()
    curvature = fit_curvature(model, rows)

    def note(_: nn.Module, arguments: tuple[Tensor]) -> None:
        with log.open("a") as file:
            file.write(f"{len(arguments[0])}\n")
        time.sleep(0.1)

    model.register_forward_pre_hook(note)
    score_shards("self-influence", model, rows, folder, curvature=curvature, shard_rows=SHARD, batch_size=BATCH)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
