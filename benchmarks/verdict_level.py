"""Level and power of the verdict, by simulation: ``python -m benchmarks.verdict_level``.

An edited model sits at a fixed bias from the mean of the retrains, so that r is exactly the tolerance; an independent
retrain has r = 1. Noise of retrains is normal or heavy-tailed (Student's t, 5 degrees of freedom), a part of its
variance moving all rows of a retrain together. The bias is the same for all rows, alternates, or is drawn for each row.
"""

from __future__ import annotations

import collections
import itertools

import numpy as np
import numpy.typing as npt

from unlearn.verification import GroupPhi, decide

EXPERIMENTS = 400
REFERENCES = (3, 5, 8)
ROWS = (1, 20)
SHARED = (0.0, 0.5, 1.0)
BIAS = np.sqrt(3.5)  # mean square 2 * 1.5^2 - 1 of the edit's own distance, beside retrains of variance 1


def noise(rng: np.random.Generator, models: int, rows: int, shared: float, heavy: bool) -> npt.NDArray[np.float64]:
    """Return phi noise of retrains, (models, rows), of variance 1."""
    own = rng.standard_t(5, size=(models, rows)) / np.sqrt(5 / 3) if heavy else rng.normal(size=(models, rows))
    return np.sqrt(1 - shared) * own + np.sqrt(shared) * rng.normal(size=(models, 1))


def rates(references: int, rows: int, shared: float, heavy: bool, bias: str) -> dict[str, float]:
    """Return shares of outcomes at the tolerance, and for an independent retrain."""
    rng = np.random.default_rng([references, rows])
    counts: collections.Counter[str] = collections.Counter()
    for k in range(EXPERIMENTS):
        phi = noise(rng, references + 1, rows, shared, heavy)
        edited = {
            "same": np.full(rows, BIAS),
            "alternating": BIAS * (-1.0) ** np.arange(rows),
            "drawn": BIAS * rng.normal(size=rows),
        }[bias]
        verdict = decide({"rows": GroupPhi(edited, phi[0], phi[1:])}, draws=100, seed=k)
        row = verdict.table[0]
        counts[verdict.outcome] += 1
        counts["retrain passes"] += row["unedited_upper"] <= verdict.tolerance
        counts["retrain fails"] += row["unedited_lower"] > verdict.tolerance
    return {name: counts[name] / EXPERIMENTS for name in ("pass", "fail", "retrain passes", "retrain fails")}


def main() -> None:
    """Print the table, one line for the worst noise and bias of each case."""
    print("# python -m benchmarks.verdict_level\n")
    print(f"{EXPERIMENTS} experiments a cell; the worst of normal and heavy-tailed noise and of three kinds of bias.\n")
    print("| references | rows | shared | false pass at r = 1.5 | false fail at r = 1.5 | a retrain passes | fails |")
    print("|---|---|---|---|---|---|---|")
    worst = {"pass": 0.0, "fail": 0.0, "retrain fails": 0.0}
    for references, rows, shared in itertools.product(REFERENCES, ROWS, SHARED):
        if rows == 1 and shared:
            continue
        biases = ("same",) if rows == 1 else ("same", "alternating", "drawn")
        cells = [rates(references, rows, shared, heavy, bias) for heavy in (False, True) for bias in biases]
        most = {name: max(cell[name] for cell in cells) for name in worst}
        least = min(cell["retrain passes"] for cell in cells)
        print(
            f"| {references} | {rows} | {shared:g} | {most['pass']:.1%} | {most['fail']:.1%} | {least:.0%} | "
            f"{most['retrain fails']:.1%} |",
            flush=True,
        )
        worst = {name: max(worst[name], most[name]) for name in worst}
    print(
        f"\nWorst: false pass {worst['pass']:.1%}, false fail {worst['fail']:.1%}, "
        f"a retrain fails {worst['retrain fails']:.1%}"
    )


if __name__ == "__main__":
    main()
