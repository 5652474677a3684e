"""Linear datamodeling score of attributions: ``python -m benchmarks.datamodeling [FILE.safetensors ...]``.

How well the sum of a row subset's attributions ranks the losses of test rows after retraining on that subset (arXiv
2303.14186): digits-quick (10 % of the labels wrong), random halves of the rows, test rows as queries. Every retrain has
its own initial weights and row order; attributions come from one training on all rows. Intervals are 95 % and resample
subsets and queries together.

A file adds further attributions by name, such as those of other packages: each of its tensors is (queries, rows) in the
order of ``Case.rows`` and ``Case.queries``, positive for rows that are harmful to the query.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.setting import Setting, threads
from unlearn.curvature import Curvature, fit_curvature
from unlearn.data import Rows
from unlearn.detect import Datamodels, datamodel_retrains, influence, linear_datamodeling_score
from unlearn.detect.damped_curvature import DEFAULT_SHARE
from unlearn.detect.datamodeling import rank_correlations
from unlearn.models import build_model
from unlearn.pipeline import Run
from unlearn.tasks import get_task

RECIPE, SEED = "digits-quick", 0
SUBSETS, REPEATS, QUERIES = 100, 5, 50
CACHE = Path("runs") / "datamodels"


@dataclass(frozen=True)
class Case:
    """The training that is attributed, and the rows between which.

    Attributes:
        setting: recipe and seed.
    """

    setting: Setting

    @property
    def rows(self) -> Rows:
        """Training rows with their given labels."""
        return self.setting.data

    @cached_property
    def queries(self) -> Rows:
        """Test rows."""
        return self.setting.test.sample(QUERIES)

    @property
    def model(self) -> nn.Module:
        """Trained on all rows."""
        return self.setting.trained[0]

    def build(self, seed: int) -> nn.Module:
        """Return initial weights."""
        section = self.setting.recipe.model
        return build_model(section.name, seed=seed, **section.options)

    @cached_property
    def datamodels(self) -> Datamodels:
        """The retrains, kept in a folder."""
        settings = Run(Path("."), self.setting.recipe).settings
        return datamodel_retrains(
            self.build, self.rows, self.queries, settings, subsets=SUBSETS, repeats=REPEATS, folder=CACHE
        )

    @cached_property
    def curvatures(self) -> dict[str, Curvature]:
        """Fitted curvatures by kind."""
        return {kind: fit_curvature(self.model, self.rows, kind=kind) for kind in ("ekfac", "kfac", "diagonal")}

    @property
    def weight_decay(self) -> float:
        """Weight decay of the training."""
        return self.setting.trained[1].weight_decay

    @property
    def dampings(self) -> dict[str, float]:
        """The two dampings, of the detection scores and of the edit."""
        return {
            f"{DEFAULT_SHARE:g} mean eigenvalue": DEFAULT_SHARE * self.curvatures["ekfac"].mean_eigenvalue,
            "2 / T": self.setting.trained[1].damping(),
        }


def row_gradients(model: nn.Module, rows: Rows) -> Tensor:
    """Return the loss gradient of each row, dense, (rows, parameters)."""
    weights, task = dict(model.named_parameters()), get_task("classification")

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return task.loss(functional_call(model, values, (x[None],)), y[None])[0]

    inputs, labels = rows.batch(torch.arange(len(rows)))
    found = vmap(grad(loss), in_dims=(None, 0, 0))({k: v.detach() for k, v in weights.items()}, inputs, labels)
    return torch.cat([part.flatten(1) for part in found.values()], 1)


def gradient_products(case: Case) -> Tensor:
    """Return -g_q . g_z: no curvature."""
    return -row_gradients(case.model, case.queries) @ row_gradients(case.model, case.rows).T


def tracin_products(case: Case) -> Tensor:
    """Return - sum over epochs of lr g_q . g_z at the snapshot after it (TracInCP, arXiv 2002.08484)."""
    record = case.setting.trained[1]
    there, total = copy.deepcopy(case.model), torch.zeros(len(case.queries), len(case.rows))
    for step in sorted(record.snapshots)[1:]:
        record.snapshot(step).restore(there)
        products = row_gradients(there, case.queries) @ row_gradients(there, case.rows).T
        total -= float(record.rates()[step - 1]) * products
    return total


def exact_gauss_newton(case: Case, damping: float) -> Tensor:
    """Return -g_q (G + w + d)^-1 g_z with the whole Gauss-Newton matrix, of a classification, in float64."""
    model = copy.deepcopy(case.model).double()
    task, inputs = get_task("classification"), case.rows.batch(torch.arange(len(case.rows)))[0].double()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    columns = []
    with torch.no_grad():
        logits = model(inputs)
    for row in task.fisher_root(logits, case.rows.labels):  # (rows, classes), one for each class

        def weighed(values: dict[str, Tensor], x: Tensor, v: Tensor) -> Tensor:
            return (functional_call(model, values, (x[None],))[0] * v).sum()

        found = vmap(grad(weighed), in_dims=(None, 0, 0))(weights, inputs, row)
        columns.append(torch.cat([part.flatten(1) for part in found.values()], 1))
    root = torch.cat(columns)
    matrix = root.T @ root / len(case.rows)
    matrix.diagonal().add_(case.weight_decay + damping)
    solved = torch.linalg.solve(matrix, row_gradients(case.model, case.queries).double().T)
    return -(row_gradients(case.model, case.rows).double() @ solved).T


def attributions(case: Case) -> dict[str, Callable[[], Tensor]]:
    """Return every attribution matrix by name; add yours here, or in a file."""
    found: dict[str, Callable[[], Tensor]] = {
        "random": lambda: torch.randn(len(case.queries), len(case.rows), generator=torch.Generator().manual_seed(1)),
        "gradient products": lambda: gradient_products(case),
        "TracIn, all snapshots": lambda: tracin_products(case),
    }
    for where, damping in case.dampings.items():
        for kind, curvature in case.curvatures.items():
            found[f"influence, {kind}, d = {where}"] = lambda curvature=curvature, damping=damping: influence(
                case.model,
                case.rows,
                case.queries,
                curvature=curvature,
                damping=damping,
                weight_decay=case.weight_decay,
            )
        found[f"influence, exact G, d = {where}"] = lambda damping=damping: exact_gauss_newton(case, damping)
    return found


def single(datamodels: Datamodels) -> Datamodels:
    """Return the first retrain of each subset alone."""
    return Datamodels(datamodels.ids, datamodels.query_ids, datamodels.masks, datamodels.losses[:, :1])


def agreement(datamodels: Datamodels) -> tuple[float, float]:
    """Return what a perfect prediction would reach, of one retrain and of the mean over the repeats.

    With r the mean rank correlation between two retrains of a subset, a mean of k has the reliability k r / (1 + (k -
    1) r) (Spearman-Brown), and nothing correlates with it by more than the square root of that, for normal noise.
    """
    losses, k = datamodels.losses.numpy(), datamodels.losses.shape[1]
    pairs = [rank_correlations(losses[:, i], losses[:, j]).mean() for i in range(k) for j in range(i)]
    r = float(np.mean(pairs))
    return math.sqrt(r), math.sqrt(k * r / (1 + (k - 1) * r))


def main(files: list[str]) -> None:
    """Print the table."""
    case = Case(Setting.of(RECIPE, SEED))
    print(" ".join(["# python -m benchmarks.datamodeling", *files]))
    print(f"\n{threads()}; seed {SEED}\n\n{' '.join((__doc__ or '').split(chr(10) * 2)[1].split())}\n")
    measured = case.datamodels
    print(
        f"{SUBSETS} subsets of {int(measured.masks[0].sum())} of {len(case.rows)} rows, {REPEATS} retrains each, "
        f"{QUERIES} queries; the retrains cost {measured.cost_epochs:.0f} training epochs. Dampings: "
        + ", ".join(f"{name} = {value:.3g}" for name, value in case.dampings.items())
        + f"; weight decay {case.weight_decay:g}."
    )
    ceilings = agreement(measured)
    print(
        '\n"ceiling": the square root of the reliability of the measured losses, from the rank correlation between '
        "retrains of the same subset.\n"
    )
    print(f"| attribution | LDS, one retrain a subset | LDS, mean of {REPEATS} |\n|---|---|---|")
    given = {name: tensor for file in files for name, tensor in load_file(file).items()}
    for name, make in (attributions(case) | {name: lambda t=t: t for name, t in given.items()}).items():
        matrix = make()
        scores = [linear_datamodeling_score(matrix, found) for found in (single(measured), measured)]
        print(f"| {name} | " + " | ".join(f"{s.mean:.3f} ({s.low:.3f} to {s.high:.3f})" for s in scores) + " |")
        sys.stdout.flush()
    print(f"| ceiling | {ceilings[0]:.3f} | {ceilings[1]:.3f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
