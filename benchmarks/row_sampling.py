"""Curvature from some of the rows, drawn in four ways, against all rows: ``python -m benchmarks.row_sampling``.

x = (G + damping)^-1 v with G of all training rows, x_s the same with G of the rows that sampler seed s draws; d is a
tenth of the mean eigenvalue of the EK-FAC factors of all rows, w the weight decay of training. v is the mean gradient
of 20 test rows ("test") or of all mislabelled training rows ("wrong"). "error" is the mean over s of
||x_s - x|| / ||x||, "sd" its standard deviation; "bias" is ||mean_s x_s - x|| / ||x||, less what the spread adds to it
by chance, "spread" the root mean square of ||x_s - mean_s x_s|| / ||x||. "rank" is Spearman's correlation of
self-influence on all rows with that from the factors of all. EK-FAC labels are sampled by row id, the same for a row in
every fit. "same cost" are random rows, as many more as the forward pass of features or logits costs in an EK-FAC fit
(n / 6, where there are so many). Tables show the mean over training seeds, the worst in brackets. Cost is counted in
training epochs (forward 1, backward 2 for each row; an epoch is 3 n): the draw and, behind it, the draw and the fit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import get_args

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.setting import Setting, Table, threads
from unlearn.curvature import (
    ConjugateGradientSolver,
    Solver,
    Vector,
    curvature_rows,
    fit_curvature,
    gauss_newton,
    loss_gradient,
)
from unlearn.curvature.row_sampling import SamplingMethod
from unlearn.data import Rows
from unlearn.detect import self_influence

COUNTS = (128, 512, 1024)
EKFAC_SEEDS = {"digits-quick": (0, 1), "mnist5k-relabel": (0,)}
DRAWS = 10
# with d alone the relative residual of conjugate gradients on MNIST is still above 1 after 300 iterations
EXACT = {"digits-quick": (COUNTS, ("d", "w + d"), 5), "mnist5k-relabel": ((512,), ("w + d",), 3)}
TOLERANCE = 1e-3
METHODS: tuple[SamplingMethod, ...] = get_args(SamplingMethod)
FORWARD = {"features": 1 / 3, "logits": 1 / 3}
SAME_COST = "random, same cost"
MEASURES = ("error", "sd", "bias", "spread")
COLUMNS = tuple(f"{kind} {measure}" for kind in ("test", "wrong") for measure in MEASURES)


class SolveTable(Table):
    """Errors of solves; larger is better for the rank correlation alone."""

    LARGER = ("rank",)


def flat(vector: Vector) -> Tensor:
    """Return a vector as one tensor."""
    return torch.cat([part.flatten() for part in vector.values()]).double()


def vectors(setting: Setting) -> dict[str, Vector]:
    """Return the two right-hand sides."""
    model, data = setting.trained[0], setting.data
    chosen = {
        "test": setting.test.sample(20, setting.seed),
        "wrong": data.at((data.labels != data.truth).nonzero().flatten()),
    }
    return {
        kind: {name: part / len(rows) for name, part in loss_gradient(model, rows).items()}
        for kind, rows in chosen.items()
    }


def dampings(setting: Setting) -> dict[str, float]:
    """Return d and w + d."""
    model, record, _ = setting.trained
    d = 0.1 * fit_curvature(model, setting.data).mean_eigenvalue
    return {"d": d, "w + d": record.weight_decay + d}


def errors(found: list[Tensor], x: Tensor) -> dict[str, float]:
    """Return the four measures of solutions of several draws against the solution with all rows."""
    solutions = torch.stack(found) / x.norm()
    x = x / x.norm()
    error, center = (solutions - x).norm(dim=1), solutions.mean(0)
    variance = float((solutions - center).square().sum()) / (len(found) - 1)
    bias = float((center - x).square().sum()) - variance / len(found)
    return {
        "error": float(error.mean()),
        "sd": float(error.std()),
        "bias": max(0.0, bias) ** 0.5,
        "spread": variance**0.5,
    }


def samplers(setting: Setting, count: int, *, same_cost: bool) -> dict[str, Callable[[int], Rows]]:
    """Return what draws the rows, by the name of a line."""
    model, data = setting.trained[0], setting.data
    found: dict[str, Callable[[int], Rows]] = {
        method: lambda seed, method=method: curvature_rows(model, data, count, method=method, seed=seed)
        for method in METHODS
    }
    more = count + len(data) // 6
    if same_cost and more <= len(data):
        found[SAME_COST] = lambda seed: curvature_rows(model, data, more, seed=seed)
    return found


def measure(
    solver: Callable[[Rows], Solver], drawn: list[Rows], systems: Mapping[str, float], right: Mapping[str, Vector]
) -> dict[tuple[str, str], list[Tensor]]:
    """Return the solutions by damping and right-hand side, one for each draw."""
    found: dict[tuple[str, str], list[Tensor]] = {}
    for rows in drawn:
        made = solver(rows)
        for name, damping in systems.items():
            for kind, v in right.items():
                found.setdefault((name, kind), []).append(flat(made.solve(v, damping=damping)))
    return found


def ekfac(setting: Setting, tables: dict[str, SolveTable]) -> None:
    """Add one training seed to the EK-FAC tables, by damping."""
    model, data = setting.trained[0], setting.data
    right, systems, n = vectors(setting), dampings(setting), len(data)

    def ranking(solver: Solver, damping: float) -> np.ndarray:
        return self_influence(model, data, solver=solver, damping=damping).values

    whole = fit_curvature(model, data)
    exact = measure(lambda _: whole, [data], systems, right)
    scores = {name: ranking(whole, damping) for name, damping in systems.items()}
    for count in COUNTS:
        for line, draw in samplers(setting, count, same_cost=True).items():
            fitted = [fit_curvature(model, draw(seed)) for seed in range(DRAWS)]
            queue = iter(fitted)
            found = measure(lambda _, queue=queue: next(queue), [data] * DRAWS, systems, right)
            for name, damping in systems.items():
                values = {
                    f"{kind} {measured}": value
                    for kind in right
                    for measured, value in errors(found[name, kind], exact[name, kind][0]).items()
                }
                ranks = [spearmanr(scores[name], ranking(one, damping)).statistic for one in fitted]
                forward = FORWARD.get(line, 0.0)
                cost = {"draw": forward, "draw and fit": forward + 2 * fitted[0].rows / n}
                tables[name].add(f"{count}, {line}", {**values, "rank": float(np.mean(ranks)), **cost})


def gauss_newton_tables(setting: Setting, tables: dict[str, SolveTable]) -> None:
    """Add one training seed to the tables of the exact Gauss-Newton matrix, by damping."""
    model, data = setting.trained[0], setting.data
    counts, names, number = EXACT[setting.recipe.name]
    right, systems = vectors(setting), {name: dampings(setting)[name] for name in names}

    def solver(rows: Rows) -> Solver:
        operator = gauss_newton(model, rows, batch_size=1024)
        return ConjugateGradientSolver(operator, tolerance=TOLERANCE, iterations=3000)

    exact = measure(solver, [data], systems, right)
    for count in counts:
        for line, draw in samplers(setting, count, same_cost=False).items():
            found = measure(solver, [draw(seed) for seed in range(number)], systems, right)
            for name in systems:
                tables[name].add(
                    f"{count}, {line}",
                    {
                        f"{kind} {measured}": value
                        for kind in right
                        for measured, value in errors(found[name, kind], exact[name, kind][0]).items()
                    },
                )


def against_random(title: str, tables: Mapping[str, SolveTable]) -> str:
    """Return each method's error over that of as many random rows: geometric mean over v, damping, training seed."""
    counts = list(dict.fromkeys(name.split(", ", 1)[0] for table in tables.values() for name in table.rows))
    lines = list(dict.fromkeys(name.split(", ", 1)[1] for table in tables.values() for name in table.rows))
    out = [f"\n### {title}: error / error of as many random rows\n", "| rows drawn | " + " | ".join(counts) + " |"]
    out.append("|---" * (len(counts) + 1) + "|")
    for line in lines:
        cells = []
        for count in counts:
            logs = [
                np.log(mine[f"{kind} error"] / random[f"{kind} error"])
                for table in tables.values()
                if f"{count}, {line}" in table.rows
                for mine, random in zip(table.rows[f"{count}, {line}"], table.rows[f"{count}, random"], strict=True)
                for kind in ("test", "wrong")
            ]
            cells.append(f"{np.exp(np.mean(logs)):.2f}" if logs else "-")
        out.append(f"| {line} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    """Print the tables."""
    print("# python -m benchmarks.row_sampling")
    print(f"\n{threads()}\n\n{' '.join((__doc__ or '').split(chr(10), 2)[2].split())}")
    for recipe, seeds in EKFAC_SEEDS.items():
        settings = [Setting.of(recipe, seed) for seed in seeds]
        columns = (*COLUMNS, "rank", "draw", "draw and fit")
        n = len(settings[0].data)
        fits = {
            name: SolveTable(f"{recipe}, EK-FAC, damping {name}, {DRAWS} draws of {n} rows, seeds {seeds}", columns)
            for name in ("d", "w + d")
        }
        for setting in settings:
            ekfac(setting, fits)
        print(*fits.values(), against_random(f"{recipe}, EK-FAC", fits), sep="\n")
        sys.stdout.flush()
        _, names, number = EXACT[recipe]
        exact = {
            name: SolveTable(
                f"{recipe}, exact G by conjugate gradients, damping {name}, {number} draws, seed {seeds[0]}", COLUMNS
            )
            for name in names
        }
        gauss_newton_tables(settings[0], exact)
        print(*exact.values(), against_random(f"{recipe}, exact G", exact), sep="\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
