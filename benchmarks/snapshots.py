"""Where to put few snapshots: ``python -m benchmarks.snapshots [SEED ...]``.

Removing 20 flipped rows of mnist5k from the MLP of 15 epochs, with the factors that one request fits for itself. "late"
is the placement of :func:`unlearn.training.snapshot_epochs`, whose stretches halve towards the end; "even" and "early"
(stretches double) have the same start and the same last two. Storage is that of the snapshots, in sets of weights.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

from benchmarks.setting import Comparison, Setting, Table, threads
from unlearn.repair import apply_changes
from unlearn.training import snapshot_epochs

SEEDS = (0, 1, 2)
COUNTS = (4, 6)
ROWS = 20
COLUMNS = ("phi error / spread", "cosine changed", "cosine test", "KL / unedited", "storage", "cost", "factors")


def placements(epochs: int) -> dict[str, list[int]]:
    """Return the epochs of every placement."""
    found = {f"all {epochs + 1}": snapshot_epochs("every", epochs)}
    for count in COUNTS:
        late = snapshot_epochs(count, epochs)
        found[f"{count}, late"] = late
        even = [round((epochs - 1) * k / (count - 2)) for k in range(count - 1)]
        found[f"{count}, even"] = [*even, epochs]
        found[f"{count}, early"] = [*sorted(epochs - 1 - epoch for epoch in late[:-1]), epochs]
    return found


def main(words: list[str]) -> None:
    """Print the table."""
    seeds = [int(word) for word in words] or list(SEEDS)
    table = Table(f"Removing {ROWS} flipped rows, MLP, by the snapshots kept", COLUMNS)
    for seed in seeds:
        setting = Setting.of("mnist5k-remove", seed)
        model, record, _ = setting.trained
        comparison = Comparison.of(setting, setting.flipped(ROWS))
        epochs = setting.recipe.train.epochs
        steps = record.steps // epochs
        for (name, kept), budget in itertools.product(placements(epochs).items(), (1.0, 0.0)):
            poorer = replace(record, snapshots={steps * epoch: record.snapshots[steps * epoch] for epoch in kept})
            edit = apply_changes(
                model, setting.data, comparison.changes, record=poorer, budget=budget, method="unrolled"
            )
            values = {
                "storage": 2.0 * len(kept) - 1,
                "cost": edit.cost.solve + edit.cost.replay,
                "factors": edit.cost.factors,
            }
            table.add(f"{name}, budget {budget:g}", {**comparison.measure(edit.model), **values})
    print(" ".join(["# python -m benchmarks.snapshots", *words]))
    print(f"\n{threads()}; mean over seeds {seeds} (worst)")
    print(table, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
