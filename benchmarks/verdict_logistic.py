"""Level and power of the verdict on real logistic regressions: ``python -m benchmarks.verdict_logistic``.

Digits, 300 training rows of which 30 carry a wrong label; 20 of those are deleted. Phi is looked at on these, and on
100 kept and 100 test rows. Retrains are logistic regressions trained by SGD on the rows that are left, each with its
own initial weights and row order, or each on its own bootstrap sample of the rows too. The edited model is one as well:
the retrains' mean weights plus a step in a direction, as long as it takes to have r = 1.5 on the group where r is
largest, by the mean and variance of phi over 2,000 further retrains. A pass is then false; over 400 experiments with
fresh retrains the share of false passes is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from unlearn.data import Rows, load_data, symmetric_noise
from unlearn.inputs import one_tensor
from unlearn.tasks import phi
from unlearn.verification import TOLERANCE, GroupPhi, decide

EXPERIMENTS = 400
POOL = 2000
REFERENCES = (3, 5, 8)
TRAINED, FLIPPED, REMOVED, SEEN = 300, 30, 20, 100
EPOCHS, BATCH, RATE, DECAY, START = 12, 20, 0.5, 1e-3, 0.05
BLOCK = 500
LEVEL = 0.05

Values = Mapping[str, npt.NDArray[np.float64]]


def flat(rows: Rows) -> Tensor:
    """Return the inputs with a constant, (rows, columns)."""
    inputs = one_tensor(rows.batch(torch.arange(len(rows)))[0], "a logistic regression").flatten(1)
    return torch.cat([inputs, torch.ones(len(rows), 1)], 1)


@dataclass(frozen=True)
class World:
    """The rows, and the noise of training on them.

    Attributes:
        rows: the training rows before the deletion.
        left: the same without those deleted.
        groups: rows whose phi is looked at.
        bootstrap: whether each training draws its own rows with replacement.
    """

    rows: Rows
    left: Rows
    groups: Mapping[str, Rows]
    bootstrap: bool

    @classmethod
    def of(cls, bootstrap: bool) -> World:
        """Return the world of the benchmark."""
        rows = symmetric_noise(load_data("digits").at(torch.arange(TRAINED)), FLIPPED / TRAINED, 0)
        assert rows.truth is not None
        removed = (rows.labels != rows.truth).nonzero().flatten()[:REMOVED]
        changed = rows.at(removed)
        groups = {
            "changed": changed,
            "kept": rows.without(changed.ids).at(torch.arange(SEEN)),
            "test": load_data("digits", "test").at(torch.arange(SEEN)),
        }
        return cls(rows, rows.without(changed.ids), groups, bootstrap)

    def train(self, rows: Rows, models: int, seed: int) -> Tensor:
        """Train logistic regressions at once, each with its own draws; return weights, (models, columns, classes)."""
        blocks = [
            self._block(rows, min(BLOCK, models - start), seed * 1000 + start // BLOCK)
            for start in range(0, models, BLOCK)
        ]
        return torch.cat(blocks)

    def _block(self, rows: Rows, models: int, seed: int) -> Tensor:
        # m models, b rows of a batch, i columns, c classes
        draw, inputs = torch.Generator().manual_seed(seed), flat(rows)
        targets = torch.nn.functional.one_hot(rows.labels, 10).float()
        n = len(rows)
        weights = START * torch.randn(models, inputs.shape[1], 10, generator=draw)
        mine = torch.randint(n, (models, n), generator=draw) if self.bootstrap else torch.arange(n).expand(models, n)
        for _ in range(EPOCHS):
            order = mine.gather(1, torch.rand(models, n, generator=draw).argsort(1))
            for at in order.split(BATCH, 1):
                x = inputs[at]
                error = (x @ weights).softmax(2) - targets[at]
                weights -= RATE * (x.transpose(1, 2) @ error / at.shape[1] + DECAY * weights)
        return weights

    def phi(self, weights: Tensor) -> Values:
        """Return phi of each model on each group, (models, rows)."""
        found = {}
        for name, rows in self.groups.items():
            logits = (flat(rows).double() @ weights.double()).flatten(0, 1)
            values = phi(logits, rows.labels.repeat(len(weights)))
            found[name] = values.reshape(len(weights), len(rows)).numpy()
        return found


@dataclass(frozen=True)
class Boundary:
    """Edited models at the tolerance.

    Attributes:
        world: rows and noise.
        edited: phi of an edited model by the direction in which it lies.
        reached: its r on each group.
        unedited: phi of one model trained with the rows that are deleted.
    """

    world: World
    edited: Mapping[str, Values]
    reached: Mapping[str, Mapping[str, float]]
    unedited: Values

    @classmethod
    def of(cls, world: World, pool: int = POOL) -> Boundary:
        """Find the models, by the moments of phi over a pool of retrains."""
        left = world.left
        weights = world.train(left, pool, seed=1)
        values = world.phi(weights)
        mean = {name: v.mean(0) for name, v in values.items()}
        spread = {name: float(v.var(0, ddof=1).mean()) for name, v in values.items()}

        def ratios(found: Values) -> dict[str, float]:
            return {
                name: float(np.sqrt((((v[0] - mean[name]) ** 2).mean() + spread[name]) / (2 * spread[name])))
                for name, v in found.items()
            }

        centre = weights.mean(0)
        unedited = world.train(world.rows, 1, seed=2)
        other = world.train(left, 1, seed=3)[0]
        noise = torch.randn(centre.shape, generator=torch.Generator().manual_seed(4))
        directions = {
            "towards the unedited model": unedited[0] - centre,
            "past forgetting": centre - unedited[0],
            "random weights": noise * (other - centre).norm() / noise.norm(),
        }
        edited, reached = {}, {}
        for name, direction in directions.items():
            low, high = 0.0, 64.0
            for _ in range(50):
                middle = (low + high) / 2
                most = max(ratios(world.phi((centre + middle * direction)[None])).values())
                low, high = (low, middle) if most > TOLERANCE else (middle, high)
            edited[name] = world.phi((centre + high * direction)[None])
            reached[name] = ratios(edited[name])
        return cls(world, edited, reached, world.phi(unedited))

    def outcomes(self, references: int, experiments: int = EXPERIMENTS, draws: int = 100) -> dict[str, Counter[str]]:
        """Return the outcomes of every edited model, of the unedited one, and of a retrain, over fresh retrains."""
        weights = self.world.train(self.world.left, experiments * (references + 1), seed=10 + references)
        values = self.world.phi(weights)
        counts: dict[str, Counter[str]] = {}
        for k in range(experiments):
            first = k * (references + 1)
            mine = {name: v[first : first + references + 1] for name, v in values.items()}
            models = {**self.edited, "unedited": self.unedited, "a retrain": mine}
            for model, found in models.items():
                groups = {name: GroupPhi(v[0], None, mine[name][1:]) for name, v in found.items()}
                counts.setdefault(model, Counter())[decide(groups, draws=draws, seed=k).outcome] += 1
        return counts


def lower_bound(count: int, of: int) -> float:
    """Return the one-sided 95 % lower bound of a share (Clopper and Pearson)."""
    return float(stats.beta.ppf(0.05, count, of - count + 1)) if count else 0.0


def main() -> None:
    """Print the tables."""
    print("# python -m benchmarks.verdict_logistic\n")
    print(f"torch {torch.__version__}; {EXPERIMENTS} experiments a line; the stated level is {LEVEL:.0%}.")
    missed = []
    for bootstrap in (False, True):
        boundary = Boundary.of(World.of(bootstrap))
        more = ", and each on a bootstrap of the rows" if bootstrap else ""
        print(f"\n### Retrains with their own initial weights and order{more}\n")
        for name, found in boundary.reached.items():
            print(f"- {name}: r = " + ", ".join(f"{group} {r:.3f}" for group, r in found.items()))
        print("\n| references | model | pass | lower 95 % bound | undecided | fail |\n|---|---|---|---|---|---|")
        for references in REFERENCES:
            for name, counts in boundary.outcomes(references).items():
                passes, undecided, fails = (counts[key] for key in ("pass", "undecided", "fail"))
                bound = lower_bound(passes, EXPERIMENTS)
                shown = f"{bound:.1%}" if name in boundary.edited else "-"
                missed += [f"{name}, K = {references}"] if name in boundary.edited and bound > LEVEL else []
                cells = " | ".join(f"{count / EXPERIMENTS:.1%}" for count in (undecided, fails))
                print(f"| {references} | {name} | {passes / EXPERIMENTS:.1%} | {shown} | {cells} |", flush=True)
    print(f"\nFalse passes above the stated level: {', '.join(missed) or 'none'}.")


if __name__ == "__main__":
    main()
