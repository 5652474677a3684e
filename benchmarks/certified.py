"""Certified removal from linear heads: ``python -m benchmarks.certified [SECTION ...]``; all sections if none is named.

Rows are scaled to length 1; w is the weight decay, sigma the noise of the summed objective, delta 1e-4 throughout. The
true residual is the gradient of the perturbed objective on the rows left, by its definition, in 80-bit arithmetic with
the noise at hand. "bound / truth": median and largest over the removals. "basic / bound": how many times tighter than
the basic data-dependent bound (1911.03030, Corollary 1), median. "distance" is the bound on the distance of the weights
to those retrained with the same noise, over that distance. "left out" is the size of log |det(I - du / db)|, u the
residual and b the noise: what the residual's dependence on the noise adds to the log-odds at the weights reached, which
the Gaussian argument leaves out; it stands beside the epsilon that the removal spends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.setting import threads
from unlearn.data import Rows, load_data
from unlearn.data.draws import permutation
from unlearn.errors import BudgetSpentError
from unlearn.repair import CertifiedHead, Removal, train_certified_head
from unlearn.repair.gaussian_budget import largest_shift, theorem_shift
from unlearn.training import SignedRows, draw_noise, train_perturbed

DELTA = 1e-4
WIDE = 50.0  # an epsilon that refuses nothing, for what does not depend on it
BOUNDS = ("worst_case", "basic", "lipschitz", "by_row", "direct")
SIZES = (2, 5, 10, 20)
HEADS = 10
GRID_DECAYS, GRID_SIGMAS, GRID_EPSILONS = (1e-4, 1e-3, 1e-2), (0.1, 1.0, 4.0), (0.1, 1.0, 8.0)
GRID_SEEDS, GRID_MOST, TWO_STEPS_MOST = 3, 100, 100
RETRAINED, COUNTED = 2, 4


def three_or_eight(split: str) -> Rows:
    """Return the threes and eights of MNIST-5k, as two classes."""
    rows = load_data("mnist5k", split)  # type: ignore[arg-type]
    chosen = rows.at(((rows.labels == 3) | (rows.labels == 8)).nonzero().flatten())
    inputs, labels = chosen.batch(torch.arange(len(chosen)))
    return Rows.from_tensors(inputs, (labels == 8).long(), ids=chosen.ids, classes=2, name="mnist5k 3 or 8")


DATA: dict[str, Callable[[str], Rows]] = {
    "breast-cancer": lambda split: load_data("breast-cancer", split),  # type: ignore[arg-type]
    "digits": lambda split: load_data("digits", split),  # type: ignore[arg-type]
    "mnist5k-3-or-8": three_or_eight,
}
REMOVALS = {"breast-cancer": 1000, "digits": 1000, "mnist5k-3-or-8": 20}


def head_of(
    data: Rows, *, decay: float = 1e-3, sigma: float = 1.0, epsilon: float = WIDE, seed: int = 0
) -> CertifiedHead:
    """Return a head on rows of length 1."""
    return train_certified_head(
        data, weight_decay=decay, sigma=sigma, epsilon=epsilon, delta=DELTA, seed=seed, unit_rows=True
    )


def signed(rows: Rows) -> SignedRows:
    """Return the rows of a head as features and signs."""
    inputs, labels = rows.batch(torch.arange(len(rows)))
    assert isinstance(inputs, Tensor)
    return SignedRows.of(inputs.double(), labels, rows.classes or 2)


def true_gradient(rows: SignedRows, weight: Tensor, weight_decay: float, noise: Tensor) -> npt.NDArray[np.longdouble]:
    """Return the gradient of the perturbed objective by its definition, in 80 bits."""
    x, y, theta, b = (t.numpy().astype(np.longdouble) for t in (rows.features, rows.signs, weight, noise))
    slopes = -y / (1 + np.exp(np.minimum(y * (x @ theta.T), 11_000)))
    found: npt.NDArray[np.longdouble] = slopes.T @ x + np.longdouble(weight_decay) * len(x) * theta + b
    return found


def true_residual(rows: SignedRows, weight: Tensor, weight_decay: float, noise: Tensor) -> float:
    """Return the norm of that gradient."""
    gradient = true_gradient(rows, weight, weight_decay, noise)
    return float(np.sqrt((gradient * gradient).sum()))


def independent(data: Rows, count: int) -> dict[str, list[tuple[Removal, float, float]]]:
    """Return removals, single and batch, each from a fresh head, with the true residual and distance to retraining."""
    found: dict[str, list[tuple[Removal, float, float]]] = {}
    for seed in range(HEADS):
        head = head_of(data, seed=seed)
        noise, decay = draw_noise(*head.weight.shape, 1.0, seed), head.guarantee.weight_decay
        draw = np.random.default_rng([count, seed])
        for k in range(count // HEADS):
            size = 1 if k % 2 == 0 else SIZES[k // 2 % len(SIZES)]
            removal = head.remove(draw.choice(data.ids, size, replace=False).tolist())
            left = signed(removal.head.rows)
            distance = float("nan")
            if k < RETRAINED:
                retrained, _ = train_perturbed(left, weight_decay=decay, noise=noise)
                distance = float((removal.head.weight - retrained).norm())
            truth = true_residual(left, removal.head.weight, decay, noise)
            found.setdefault("1 row" if size == 1 else "2 to 20 rows", []).append((removal, truth, distance))
    return found


def print_independent(data: Rows, count: int) -> None:
    """Print how the bounds of independent removals stand to the truth."""
    print("| removed | removals | bound | below the truth | bound / truth | basic / bound | distance |")
    print("|---|---|---|---|---|---|---|")
    for name, removals in independent(data, count).items():
        for bound in BOUNDS:
            values = np.array([getattr(removal.bounds, bound) for removal, _, _ in removals])
            spent = np.array([removal.head.spent for removal, _, _ in removals]) if bound == "direct" else values
            truth = np.array([found for _, found, _ in removals])
            basic = np.array([removal.bounds.basic for removal, _, _ in removals])
            far = [removal.head.weight_distance / found for removal, _, found in removals if found == found]
            distance = f"{np.median(far):.3g} (least {min(far):.3g})" if bound == "direct" else ""
            print(
                f"| {name} | {len(removals)} | {bound.replace('_', ' ')} | {int((spent < truth).sum())} | "
                f"{np.median(values / truth):.4g} ({(values / truth).max():.4g}) | {np.median(basic / values):.3g} | "
                f"{distance} |"
            )
    sys.stdout.flush()


def chain(data: Rows, *, steps: int = 1, most: int | None = None, **options: float) -> list[Removal]:
    """Remove rows one by one until the budget refuses, ``most`` are gone, or 50 rows are left."""
    head = head_of(data, **options)  # type: ignore[arg-type]
    order = [data.ids[k] for k in permutation(0, data.ids, "removals")][: len(data) - 50]
    removals: list[Removal] = []
    for row in order[:most]:
        try:
            removals.append(head.remove([row], steps=steps))
        except BudgetSpentError:
            break
        head = removals[-1].head
    return removals


def served(spending: Sequence[float], allowed: float, asked: int) -> str:
    """Return how many requests are served, with a plus where all that were ``asked`` are, and more might be."""
    count = int((np.cumsum(spending) <= allowed).sum())
    return f"{count}{'+' if count == asked else ''}"


def print_chains(data: Rows) -> None:
    """Print how many single rows may go until the budget of epsilon 1 is spent, by what is spent."""
    allowed, rows = largest_shift(1.0, DELTA), len(data) - 50
    print("| worst case | basic | lipschitz | by row | direct | direct, 2 steps | direct, budget of Theorem 4 |")
    print("|---|---|---|---|---|---|---|")
    one, two = chain(data, epsilon=1.0), chain(data, steps=2, epsilon=1.0, most=TWO_STEPS_MOST)
    cells = [served([getattr(removal.bounds, bound) for removal in one], allowed, rows) for bound in BOUNDS]
    cells.append(served([removal.residual for removal in two], allowed, TWO_STEPS_MOST))
    cells.append(served([removal.residual for removal in one], theorem_shift(1.0, DELTA), rows))
    print("| " + " | ".join(cells) + " |", flush=True)


def print_grid(data: Rows, test: Rows) -> None:
    """Print what the noise costs and allows."""
    title = " | ".join(f"removals, epsilon {epsilon:g}" for epsilon in GRID_EPSILONS)
    print(f"| w | sigma | accuracy without noise | with noise (least) | {title} |")
    print("|---" * (4 + len(GRID_EPSILONS)) + "|")
    for decay in GRID_DECAYS:
        plain = head_of(data, decay=decay, sigma=1e-6).accuracy(test)
        for sigma in GRID_SIGMAS:
            accuracies = [
                head_of(data, decay=decay, sigma=sigma, seed=seed).accuracy(test) for seed in range(GRID_SEEDS)
            ]
            removals = chain(data, decay=decay, sigma=sigma, most=GRID_MOST)
            spending = [removal.residual for removal in removals]
            cells = [served(spending, sigma * largest_shift(epsilon, DELTA), GRID_MOST) for epsilon in GRID_EPSILONS]
            print(
                f"| {decay:g} | {sigma:g} | {plain:.4f} | {np.mean(accuracies):.4f} ({min(accuracies):.4f}) | "
                + " | ".join(cells)
                + " |",
                flush=True,
            )


def left_out(head: CertifiedHead, ids: Sequence[str], steps: int) -> float:
    """Return |log |det(I - du / db)|| of a removal: u as a function of the noise, through the weights."""
    left, gone, decay = signed(head.rows.without(ids)), signed(head.rows.only(ids)), head.guarantee.weight_decay
    everything, total = signed(head.rows), 0.0
    for k in range(len(head.weight)):
        stay, leave, all_rows = (
            SignedRows(rows.features, rows.signs[:, k : k + 1]) for rows in (left, gone, everything)
        )

        def residual(flat: Tensor, stay: SignedRows = stay, leave: SignedRows = leave) -> Tensor:
            old = flat[None]
            new = old
            for _ in range(steps):
                new = new - stay.solve(new, change_of(stay, leave, old, new, decay), decay)
            return change_of(stay, leave, old, new, decay)[0]

        weight = head.weight[k]
        hessian = all_rows.hessian(all_rows.curvatures(weight[None])[:, 0], decay)
        by_weight = torch.autograd.functional.jacobian(residual, weight)
        eye = torch.eye(len(weight), dtype=weight.dtype)
        total += float(torch.linalg.slogdet(eye + by_weight @ torch.linalg.inv(hessian)).logabsdet)
    return abs(total)


def change_of(left: SignedRows, gone: SignedRows, old: Tensor, new: Tensor, weight_decay: float) -> Tensor:
    """Return the change of the gradient from all rows at ``old`` to the rows left at ``new``, to be differentiated."""
    penalty = weight_decay * (len(left) * new - (len(left) + len(gone)) * old)
    return left.gradient(new) - left.gradient(old) - gone.gradient(old) + penalty


def print_left_out(data: Rows, count: int) -> None:
    """Print what the dependence of the residual on the noise would add, beside what is spent."""
    head = head_of(data)
    draw = np.random.default_rng(0)
    for size in (1, 10):
        for steps in (1, 2):
            chosen = [draw.choice(data.ids, size, replace=False).tolist() for _ in range(count)]
            found = [left_out(head, ids, steps) for ids in chosen]
            shift = [head.remove(ids, steps=steps).residual / head.guarantee.sigma for ids in chosen]
            print(
                f"| {size} | {steps} | {np.median(shift):.2e} ({max(shift):.2e}) | "
                f"{np.median(found):.2e} ({max(found):.2e}) |",
                flush=True,
            )


def bounds(name: str) -> None:
    """Print every bound against the truth."""
    print(f"\n### {name}: {REMOVALS[name]} independent removals from {HEADS} heads, w 1e-3, sigma 1\n")
    print_independent(DATA[name]("train"), REMOVALS[name])


def gap(name: str) -> None:
    """Print what the Gaussian argument leaves out."""
    print(f"\n### {name}: what the Gaussian argument leaves out, {COUNTED} removals, median (largest)\n")
    print("| removed | steps | residual / sigma | left out |\n|---|---|---|---|")
    print_left_out(DATA[name]("train"), COUNTED)


def budget(name: str) -> None:
    """Print how far the budget reaches."""
    data = DATA[name]("train")
    print(f"\n### {name}: rows served one by one, of {len(data) - 50}; w 1e-3, sigma 1, epsilon 1\n")
    print(f"A plus: not yet spent; the rows of two steps end at {TWO_STEPS_MOST}.\n")
    print_chains(data)


def grid(name: str) -> None:
    """Print what the noise costs and allows."""
    print(f"\n### {name}: what noise costs ({GRID_SEEDS} seeds) and allows (of {GRID_MOST} removals)\n")
    print_grid(DATA[name]("train"), DATA[name]("test"))


SECTIONS: dict[str, Callable[[], None]] = {
    **{f"bounds-{name}": partial(bounds, name) for name in DATA},
    **{f"left-out-{name}": partial(gap, name) for name in ("breast-cancer", "digits")},
    **{f"budget-{name}": partial(budget, name) for name in ("breast-cancer", "digits")},
    **{f"grid-{name}": partial(grid, name) for name in ("breast-cancer", "digits")},
}


def main(sections: list[str]) -> None:
    """Print the tables."""
    print(" ".join(["# python -m benchmarks.certified", *sections]))
    print(f"\n{threads()}\n\n{' '.join((__doc__ or '').split(chr(10), 2)[2].split())}", flush=True)
    for section in sections or SECTIONS:
        SECTIONS[section]()


if __name__ == "__main__":
    main(sys.argv[1:])
