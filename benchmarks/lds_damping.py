"""What the damping and the Fisher of our influence do to its LDS: ``python -m benchmarks.lds_damping``.

The case of ``python -m benchmarks.peers lds``: 1,000 rows of mnist5k-relabel, 100 test rows, 100 random halves, one
training on each. Rows are Fisher and damping: shares of the horizon's 2 / T, with the weight decay beside them, and a
tenth of the mean eigenvalue without it. "exact" factors cost a backward pass for each class in each of two passes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from benchmarks.setting import Setting, threads
from unlearn.curvature import fit_curvature
from unlearn.data import Rows
from unlearn.detect import datamodel_retrains, influence, linear_datamodeling_score
from unlearn.models import build_model
from unlearn.pipeline import Run
from unlearn.training import train

ROWS, QUERIES, SUBSETS = 1000, 100, 100
SHARES = (0.3, 1.0, 3.0, 10.0)


def main() -> None:
    """Print the table."""
    print(f"# python -m benchmarks.lds_damping\n\n{threads()}\n")
    setting = Setting.of("mnist5k-relabel", 0)
    section, settings = setting.recipe.model, Run(Path("."), setting.recipe).settings
    inputs, labels = setting.data.batch(torch.arange(ROWS))
    data, asked = Rows.from_tensors(inputs, labels, classes=10), setting.test.at(torch.arange(QUERIES))

    def build(seed: int) -> nn.Module:
        return build_model(section.name, seed=seed, **section.options)

    with tempfile.TemporaryDirectory() as folder:
        model, record = train(build(0), data, settings, seed=0, folder=folder)
    retrains = datamodel_retrains(build, data, asked, settings, subsets=SUBSETS, repeats=1)
    horizon = float(record.damping())
    heads = [f"{share:g} x 2/T" for share in SHARES]
    print(f"2/T is {horizon:.3g}, weight decay {record.weight_decay:g}.\n")
    print(f"| Fisher | .1 mean eigenvalue | {' | '.join(heads)} |\n|---|---|{'---|' * len(SHARES)}")
    for fisher in ("sampled", "exact"):
        factors = fit_curvature(model, data, fisher=fisher)  # type: ignore[arg-type]
        dampings = [(None, 0.0), *((share * horizon, record.weight_decay) for share in SHARES)]
        cells = []
        for damping, decay in dampings:
            matrix = influence(model, data, asked, curvature=factors, damping=damping, weight_decay=decay)
            score = linear_datamodeling_score(matrix, retrains)
            cells.append(f"{score.mean:.3f} ({score.low:.3f} to {score.high:.3f})")
        print(f"| {fisher} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
