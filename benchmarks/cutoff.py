"""The estimated number of mislabelled rows where the populations overlap: ``python -m benchmarks.cutoff``.

Two normal distributions of variance 1, so many deviations apart; ratio of the estimated to the true number.
"""

from __future__ import annotations

import numpy as np

from unlearn.detect import Scores, estimate_cutoff

DRAWS = 20


def main() -> None:
    """Print the table."""
    print("# python -m benchmarks.cutoff\n\nEstimated / true number: median (least to most) of 20 draws.\n")
    print("| deviations apart | rows | 10 % wrong | 20 % wrong | 40 % wrong |\n|---|---|---|---|---|")
    for apart in (3, 4, 5):
        for rows in (1000, 4000):
            cells = []
            for share in (0.1, 0.2, 0.4):
                found = []
                for seed in range(DRAWS):
                    rng = np.random.default_rng([apart, rows, seed])
                    wrong = rng.random(rows) < share
                    values = rng.normal(size=rows) + np.where(wrong, 0.5, -0.5) * apart
                    scores = Scores(tuple(map(str, range(rows))), values, "margin-trajectory")
                    found.append(len(estimate_cutoff(scores).ids) / wrong.sum())
                cells.append(f"{np.median(found):.2f} ({min(found):.2f} to {max(found):.2f})")
            print(f"| {apart} | {rows} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
