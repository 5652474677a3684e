"""What rounding does to factors, scores and solves: ``python -m benchmarks.numerics``.

A recipe's original model (float32 weights) and its copy in float64, on the same rows. "float32" is the default: factors
and scores in the type of the weights, eigendecompositions in float64. "float64 factors" is ``dtype=torch.float64`` on
the float32 model. Both are held against the copy, for which everything is float64. No weight decay is added, so that
small dampings are as small as they say.
"""

from __future__ import annotations

import copy

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks.setting import Setting, threads
from unlearn.curvature import (
    Curvature,
    Vector,
    add_scaled,
    conjugate_gradient,
    fit_curvature,
    gauss_newton,
    loss_gradient,
)
from unlearn.data import Rows
from unlearn.detect import self_influence

RECIPES = {"digits-quick": (1e-1, 1e-2, 1e-3, 1e-4, 1e-5), "mnist5k-relabel": (1e-1, 1e-2)}
"""Recipes, and the dampings of their conjugate gradients."""
DAMPINGS = ("tenth of the mean eigenvalue", "2 / T", 1e-4, 1e-6, 1e-8)
MOST_ITERATIONS = 500
TOLERANCE = 1e-4
QUERIES = 20


def doubled(rows: Rows) -> Rows:
    """Return the rows with float64 inputs."""
    inputs, labels = rows.batch(torch.arange(len(rows)))
    return Rows.from_tensors(inputs.double(), labels, ids=rows.ids, classes=rows.classes)


def flat(vector: Vector) -> Tensor:
    """Return a vector as one tensor in float64."""
    return torch.cat([part.flatten() for part in vector.values()]).double()


def relative(found: Tensor, exact: Tensor) -> float:
    """Return the distance of two vectors by the length of the second."""
    return float((found - exact).norm() / exact.norm())


def spectra(curvature: Curvature) -> list[str]:
    """Return a line for each layer: how ill-conditioned its factors are."""
    lines = []
    for name, block in curvature.blocks.items():
        cells = [name, " x ".join(map(str, block.layer.shape[1:]))]
        for values in (block.input_eigenvalues, block.output_eigenvalues, block.eigenvalues):
            assert values is not None
            top = float(values.max())
            cells.append(f"{top:.2g}, {float((values <= 1e-6 * top).double().mean()):.0%}")
        lines.append("| " + " | ".join([*cells, str(block.clamped)]) + " |")
    return lines


def scores(model: nn.Module, wide: nn.Module, rows: Rows, queries: Rows, d: float) -> str:
    """Return a line: float32 and float64 factors against float64 throughout, at one damping."""
    exact_curvature = fit_curvature(wide, doubled(rows))
    exact = torch.from_numpy(self_influence(wide, doubled(rows), curvature=exact_curvature, damping=d).values)
    v = loss_gradient(wide, doubled(queries))
    solved = flat(exact_curvature.solve(v, damping=d))
    cells = []
    for dtype in (None, torch.float64):
        curvature = fit_curvature(model, rows, dtype=dtype)
        found = torch.from_numpy(self_influence(model, rows, curvature=curvature, damping=d).values)
        narrow = {name: part.float() for name, part in v.items()}
        cells += [
            f"{float((found - exact).abs().max() / exact.max()):.1e}",
            f"{spearmanr(found, exact).statistic:.6f}",
            f"{relative(flat(curvature.solve(narrow, damping=d)), solved):.1e}",
        ]
    return " | ".join(cells)


def solves(model: nn.Module, wide: nn.Module, rows: Rows, queries: Rows, d: float) -> str:
    """Return a line: conjugate gradients on the exact matrix, plain and preconditioned, in either type."""
    cells = []
    for place, given, asked in ((wide, doubled(rows), doubled(queries)), (model, rows, queries)):
        operator, curvature, rhs = gauss_newton(place, given), fit_curvature(place, given), loss_gradient(place, asked)

        def damped(v: Vector, operator=operator) -> Vector:  # type: ignore[no-untyped-def]
            return add_scaled(operator.matvec(v), d, v)

        for preconditioner in (None, lambda r, curvature=curvature: curvature.solve(r, damping=d)):
            found = conjugate_gradient(
                damped, rhs, preconditioner=preconditioner, iterations=MOST_ITERATIONS, tolerance=TOLERANCE
            )
            true = relative(flat(damped(found.solution)), flat(rhs))
            steps = str(found.iterations) if found.converged else f"not in {found.iterations}"
            cells.append(f"{steps} ({true:.1e})")
    return " | ".join(cells)


def main() -> None:
    """Print the tables."""
    print("# python -m benchmarks.numerics\n")
    print(f"{threads()}; one seed\n")
    for name, solved_at in RECIPES.items():
        setting = Setting.of(name, 0)
        model, record, _ = setting.trained
        wide = copy.deepcopy(model).double()
        rows = setting.data
        queries = setting.test.only(setting.test.ids[:QUERIES])
        print(f"### {name}: factors in float32\n")
        print("Largest eigenvalue, and the share of eigenvalues below a millionth of it.\n")
        print("| layer | outputs x inputs | A | S | Lambda | negative, set to 0 |\n|---|---|---|---|---|---|")
        curvature = fit_curvature(model, rows)
        print("\n".join(spectra(curvature)))
        print(f"\n### {name}: self-influence of {len(rows)} rows and a solve, against float64 throughout\n")
        print("Largest difference by the largest score; Spearman's correlation; distance of the solve by its length.\n")
        print("| damping d | float32 | rank | solve | float64 factors | rank | solve |\n|---|---|---|---|---|---|---|")
        for damping in DAMPINGS:
            d = {"2 / T": record.damping(), DAMPINGS[0]: 0.1 * curvature.mean_eigenvalue}.get(damping, damping)
            label = f"{damping} ({d:.2g})" if isinstance(damping, str) else f"{damping:g}"
            print(f"| {label} | {scores(model, wide, rows, queries, float(d))} |", flush=True)
        few = rows.sample(512, 0, "operator-rows")
        print(f"\n### {name}: conjugate gradients on (G + damping) of {len(few)} rows, to {TOLERANCE:g}\n")
        print(f"Iterations, at most {MOST_ITERATIONS}, and in brackets the true relative residual.\n")
        print(
            "| damping | float64, plain | float64, EK-FAC | float32, plain | float32, EK-FAC |\n|---|---|---|---|---|"
        )
        for d in solved_at:
            print(f"| {d:g} | {solves(model, wide, few, queries, d)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
