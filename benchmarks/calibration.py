"""Damping without a record, and the metric of Adam: ``python -m benchmarks.calibration [SEED ...]``.

Rows are held out of training with the same label noise (500 of mnist5k, 400 of digits) and never tested on. The damping
calibrated on them is held against the record's: 2 / T for SGD, and for Adam its metric (sqrt(v) + eps) / sum of rates,
whose scalar stand-in is rms(sqrt(v)) / sum of rates. Edits remove 20 mislabelled rows from the final weights; phi
errors are to the coupled retrain.
"""

from __future__ import annotations

import copy
import math
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from benchmarks.setting import Bars, logits, threads
from unlearn.data import load_data, symmetric_noise
from unlearn.errors import InputError
from unlearn.models import build_model
from unlearn.repair import Changes, apply_changes, calibrate_damping
from unlearn.training import TrainSettings, replay, train
from unlearn.verification.distances import phi_error

SEEDS = (0, 1, 2)
CASES = (("mnist5k", "sgd"), ("digits", "sgd"), ("mnist5k", "adam"))
HELD_OUT = {"mnist5k": 500, "digits": 400}
ARCHITECTURES = {
    "mnist5k": {"inputs": 784, "classes": 10, "widths": [512, 256]},
    "digits": {"inputs": 64, "classes": 10, "widths": [64]},
}
SETTINGS = {
    ("mnist5k", "sgd"): TrainSettings(lr=0.05, epochs=15, batch_size=128),
    ("digits", "sgd"): TrainSettings(lr=0.05, epochs=15, batch_size=64),
    ("mnist5k", "adam"): TrainSettings(optimizer="adam", lr=1e-3, weight_decay=1e-4, epochs=15, batch_size=128),
}
COLUMNS = ("damping", "d / record's", "phi error", "phi error / with the record's", "gap", "gap error", "cost")


def one_seed(source: str, optimizer: str, seed: int) -> dict[str, dict[str, float]]:
    """Return the measures of edits by the name of their damping."""
    os.nice(10)
    torch.set_num_threads(1)
    noisy = symmetric_noise(load_data(source), 0.1, seed)
    held = noisy.sample(HELD_OUT[source], seed, "held-out")
    data = noisy.without(held.ids)
    settings = SETTINGS[source, optimizer]
    with tempfile.TemporaryDirectory() as folder:
        start = build_model("mlp", seed=seed, **ARCHITECTURES[source])
        model, record = train(start, data, settings, seed=seed, folder=folder, snapshot_epochs=[0])
        assert data.truth is not None
        wrong = (data.labels != data.truth).nonzero().flatten()[:20].tolist()
        changes = Changes(removed=tuple(data.ids[i] for i in wrong))
        first = record.snapshot(0)
        coupled = copy.deepcopy(model)
        first.restore(coupled)
        coupled = replay(coupled, changes.apply(data), record, snapshot=first)[0]
        last = record.snapshot(record.steps).optimizer
        decay, scalar = settings.weight_decay, 0.0
        if optimizer == "adam":
            moments = torch.cat([v.flatten() for name, v in last.items() if name.startswith("exp_avg_sq/")])
            scalar = math.sqrt(float(moments.mean()) / (1 - 0.999**record.steps)) / record.horizon()
            asked = {
                "record: metric of Adam": {"record": record},
                "record: rms of the metric": {"damping": scalar, "weight_decay": decay},
                "1 / sum of rates": {"damping": 1 / record.horizon(), "weight_decay": decay},
            }
        else:
            scalar = record.damping()
            asked = {"record: 2 / T": {"record": record}}
        found, facts = {}, {}
        try:
            calibrated = calibrate_damping(model, data, held, weight_decay=decay)
            asked["calibrated"] = {"calibration": calibrated, "weight_decay": decay}
            facts = {"gap": calibrated.gap, "gap error": calibrated.gap_error, "damping": calibrated.damping}
        except InputError as error:
            print(f"{source}, {optimizer}, seed {seed}: {error}", file=sys.stderr)
        changed = data.only(changes.removed)
        want = logits(coupled, changed)
        for name, options in asked.items():
            edit = apply_changes(model, data, changes, budget=0, **options)
            damping = edit.steps[0].damping
            found[name] = {
                "damping": damping,
                "d / record's": damping / scalar,
                "phi error": phi_error(logits(edit.model, changed), want, changed.labels),
                "cost": edit.cost.total,
            }
            first_error = next(iter(found.values()))["phi error"]
            found[name]["phi error / with the record's"] = found[name]["phi error"] / first_error
        if facts:
            found["calibrated"] |= facts
        found["unedited"] = {"phi error": phi_error(logits(model, changed), want, changed.labels)}
    print(f"{source}, {optimizer}, seed {seed}: done", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Print a table for each case, and the bars."""
    seeds = tuple(map(int, sys.argv[1:])) or SEEDS
    jobs = [(*case, seed) for case in CASES for seed in seeds]
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        done = dict(zip(jobs, pool.map(one_seed, *zip(*jobs, strict=True)), strict=True))
    print(f"# python -m {' '.join(['benchmarks.calibration', *sys.argv[1:]])}\n")
    print(f"{threads()}; seeds {', '.join(map(str, seeds))}")
    bars = Bars()
    for source, optimizer in CASES:
        print(f"\n### {source}, {optimizer}: removing 20 mislabelled rows from the final weights\n")
        print("| seed | damping by | " + " | ".join(COLUMNS) + " |\n|---|---" + "|---" * len(COLUMNS) + "|")
        for seed in seeds:
            for name, values in done[source, optimizer, seed].items():
                cells = [f"{values[c]:.3g}" if c in values else "-" for c in COLUMNS]
                print(f"| {seed} | {name} | " + " | ".join(cells) + " |")
        there = [found for key, found in done.items() if key[:2] == (source, optimizer)]
        by_rows = [found["calibrated"] for found in there if "calibrated" in found]
        bars.hold(f"{source}, {optimizer}: seeds that could be calibrated", len(by_rows), len(seeds), at_least=True)
        if by_rows:
            factors = [max(v["d / record's"], 1 / v["d / record's"]) for v in by_rows]
            errors = [v["phi error / with the record's"] for v in by_rows]
            bars.hold(f"{source}, {optimizer}: calibrated off the record's by a factor of (worst)", max(factors), 3.0)
            bars.hold(f"{source}, {optimizer}: phi error / with the record's (mean)", sum(errors) / len(errors), 1.3)
    print(bars)


if __name__ == "__main__":
    main()
