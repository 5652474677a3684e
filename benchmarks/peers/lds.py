"""Linear datamodeling score (arXiv 2303.14186) of everyone's influences, on one set of retrained models.

Every package is asked at two dampings: the one of the other tables, and the horizon's 2 / T with the weight decay of
the training, which `unlearn explain` takes. What is TRAK's does not depend on damping; what has the same formula gets
the same score, so this compares methods and dampings rather than packages.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.peers.case import Case
from benchmarks.peers.compare import PeerError, available, run
from benchmarks.peers.jobs import RECIPES
from benchmarks.peers.worker import peer_class
from benchmarks.setting import Setting
from unlearn.data import Rows
from unlearn.detect import influence
from unlearn.detect.datamodeling import Datamodels, datamodel_retrains, linear_datamodeling_score
from unlearn.models import build_model
from unlearn.pipeline import Run
from unlearn.training import train

NO_CURVATURE = 1e6


def table(rows: int, queries: int, subsets: int, repeats: int) -> str:
    """Return the scores of all packages on a model trained on so many rows of mnist5k-relabel."""
    setting = Setting.of(RECIPES["mlp"], 0)
    section, settings = setting.recipe.model, Run(Path("."), setting.recipe).settings
    inputs, labels = setting.data.batch(torch.arange(rows))
    data = Rows.from_tensors(inputs, labels, classes=10)
    asked = setting.test.at(torch.arange(queries))

    def build(seed: int) -> nn.Module:
        return build_model(section.name, seed=seed, **section.options)

    with tempfile.TemporaryDirectory() as folder:
        model, record = train(build(0), data, settings, seed=0, folder=folder)
    case = Case.of({"name": section.name, "options": section.options}, model, data, asked)
    retrains = datamodel_retrains(build, data, asked, settings, subsets=subsets, repeats=repeats)
    horizon = float(record.damping()) + record.weight_decay
    dampings = {"a tenth of the mean eigenvalue": case.damping, "2 / T, and weight decay": horizon}
    found: dict[str, dict[str, str]] = {}
    plain = influence(model, data, asked, damping=NO_CURVATURE)
    found["inner products, no curvature"] = dict.fromkeys(dampings, _score(plain, retrains))
    for name, damping in dampings.items():
        for package in available():
            try:
                batch = max(peer_class(package).BATCHES)
                done = run(replace(case, damping=damping), package, steps=("pairs",), batch=batch)
                cell = _score(done.scores["pairs"], retrains)
            except PeerError as error:
                cell = f"failed: {error}"
            found.setdefault(package, {})[name] = cell
    lines = [
        f"\n### LDS: {rows:,} rows, {queries} test rows, {subsets} random halves; {repeats} training on each\n",
        "| influences of | " + " | ".join(f"damping {name}: {value:.2g}" for name, value in dampings.items()) + " |",
        "|---|---|---|",
    ]
    return "\n".join(lines + [f"| {name} | {' | '.join(cells.values())} |" for name, cells in found.items()])


def _score(matrix: Tensor, retrains: Datamodels) -> str:
    score = linear_datamodeling_score(matrix, retrains)
    return f"{score.mean:.3f} ({score.low:.3f} to {score.high:.3f})"
