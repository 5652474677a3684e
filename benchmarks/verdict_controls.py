"""The verdict on models whose outcome is known: ``python -m benchmarks.verdict_controls [RECIPE ...]``.

Twenty mislabelled rows are deleted; then all mislabelled rows get their right labels. For each, K + 1 independent
retrains are trained, and each in turn is held against the K others as if it were an edit. Known bad models are held
against the first K: the unedited model, one epoch of fine-tuning, and gradient ascent on the changed rows at their old
labels until their mean phi is three spreads below that of retrains. What is undecided is held against as many more as
its verdict asks for, up to ``POOL`` in all, and again if it must be. ``memorised-digits`` is a small net that has
learnt the wrong labels by heart.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from benchmarks.setting import Setting, logits, threads
from unlearn.recipe import parse_recipe
from unlearn.repair import RIVALS, Changes, Cost, Edit
from unlearn.tasks import phi
from unlearn.verification import References, Verdict, train_references, verify

RECIPES = ("memorised-digits", "digits-quick", "mnist5k-remove")
MEMORISED = """
name = "memorised-digits"
[data]
source = "digits"
noise = { kind = "symmetric", rate = 0.1, noise_seed = 0 }
[model]
name = "mlp"
options = { inputs = 64, classes = 10, widths = [64] }
[train]
lr = 0.1
weight_decay = 1e-4
epochs = 30
batch_size = 64
[detect]
[repair]
action = "remove"
"""
K = 5
POOL = 24
ROWS = 20
PAST = 3.0  # spreads
ASCENT_RATE = 0.001
MOST_PASSES = 200


@dataclass(frozen=True)
class Controls:
    """One change of one setting, with its retrains."""

    setting: Setting
    changes: Changes
    references: References

    @classmethod
    def of(cls, setting: Setting, changes: Changes, count: int = K) -> Controls:
        """Train one more retrain than there are to be references."""
        model, record, _ = setting.trained
        edited = changes.apply(setting.data)
        return cls(setting, changes, train_references(model, edited, record, count=count + 1))

    @property
    def first(self) -> Sequence[nn.Module]:
        """The K + 1 retrains that are held against each other."""
        return self.references.independent[: K + 1]

    def others(self, k: int) -> tuple[nn.Module, ...]:
        """Return the references of one of the first retrains: the first ones behind it in a ring, then those beyond."""
        return (*self.first[k + 1 :], *self.first[:k], *self.references.independent[K + 1 :])

    def verdict(self, model: nn.Module, references: tuple[nn.Module, ...]) -> Verdict:
        """Hold a model against some of the retrains."""
        original, record, _ = self.setting.trained
        edit = Edit(model, original, "control", self.changes, self.setting.data, record, (), Cost(), {}, {})
        return verify(edit, test=self.setting.test, references=References(self.references.coupled, references))

    def retrains(self, count: int) -> Iterator[Verdict]:
        """Hold each of the first retrains against the next ``count`` others."""
        for k, model in enumerate(self.first):
            yield self.verdict(model, self.others(k)[:count])

    def until_decided(
        self, model: nn.Module, references: tuple[nn.Module, ...], verdict: Verdict
    ) -> Iterator[tuple[int, Verdict]]:
        """Hold a model against as many references as each verdict asks for, while there are any."""
        count = verdict.table[0]["references"]
        while verdict.more_references is not None and count + verdict.more_references <= len(references):
            count += verdict.more_references
            verdict = self.verdict(model, references[:count])
            yield count, verdict

    @cached_property
    def bad(self) -> dict[str, nn.Module]:
        """Models that must fail."""
        original = self.setting.trained[0]
        return {
            "unedited": original,
            "fine-tuned, 1 epoch": self.rival("fine-tune", {"epochs": 1.0}),
            "gradient ascent past forgetting": self.pushed(),
        }

    def rival(self, name: str, setting: dict[str, float]) -> nn.Module:
        """Return what another method makes of the original."""
        model, record, _ = self.setting.trained
        return RIVALS[name](model, self.setting.data, self.changes, record, setting=setting, seed=1).model

    def pushed(self) -> nn.Module:
        """Return the first model of more and more passes of gradient ascent that lies past forgetting."""
        changed = self.setting.data.only(self.changes.ids)
        retrained = np.stack([phi(logits(model, changed), changed.labels).numpy() for model in self.first])
        goal = retrained.mean() - PAST * np.sqrt(2 * retrained.var(0, ddof=1).mean())
        for passes in range(1, MOST_PASSES):
            model = self.rival("gradient ascent", {"passes": float(passes), "lr": ASCENT_RATE})
            if float(phi(logits(model, changed), changed.labels).mean()) < goal:
                break
        return model


def changes_of(setting: Setting) -> dict[str, Changes]:
    """Return the two changes."""
    data = setting.data
    assert data.truth is not None
    right = {data.ids[i]: int(data.truth[i]) for i in (data.labels != data.truth).nonzero().flatten().tolist()}
    return {f"{ROWS} mislabelled rows removed": setting.flipped(ROWS), "all labels put right": Changes((), right)}


def ratios(verdict: Verdict) -> str:
    """Return r with its bounds on every group."""
    return ", ".join(
        f"{row['group']} {row['r']:.2f} ({row['lower']:.2f} to {row['upper']:.2f})" for row in verdict.table
    )


def counted(verdicts: Iterable[Verdict]) -> str:
    """Return how many pass, are undecided and fail, as cells."""
    outcomes = [verdict.outcome for verdict in verdicts]
    return " | ".join(str(outcomes.count(name)) for name in ("pass", "undecided", "fail"))


def said(count: int, verdict: Verdict) -> str:
    """Return what a verdict says with so many references."""
    if verdict.outcome != "undecided":
        return f"{count}: {verdict.outcome}"
    more = verdict.more_references
    return f"{count}: undecided, {'no number' if more is None else f'{more} more'} would decide"


def show(controls: Controls, title: str) -> None:
    """Print the outcomes."""
    print(f"\n### {title}\n\n| model | held against | outcome | r with 95 % bounds |\n|---|---|---|---|")
    every = controls.references.independent
    first = every[:K]
    for name, model in controls.bad.items():
        for count in (K, 3):
            verdict = controls.verdict(model, first[:count])
            print(f"| {name} | {count} retrains | {verdict.outcome} | {ratios(verdict)} |", flush=True)
            for more, then in controls.until_decided(model, every, verdict):
                print(f"| {name} | {more}, as it asked for | {then.outcome} | {ratios(then)} |", flush=True)
        print(f"| {name} | 1 retrain | {controls.verdict(model, first[:1]).outcome} | - |")
    print("\n| each retrain in turn, held against | pass | undecided | fail |\n|---|---|---|---|")
    trails: dict[int, list[str]] = {}
    for count in (K, 3):
        verdicts = list(controls.retrains(count))
        print(f"| {count} others | {counted(verdicts)} |", flush=True)
        last, trails[count] = [], []
        for k, verdict in enumerate(verdicts):
            more = list(controls.until_decided(controls.first[k], controls.others(k), verdict))
            last.append(more[-1][1] if more else verdict)
            if verdict.outcome == "undecided":
                trails[count].append(", then ".join(said(n, found) for n, found in [(count, verdict), *more]))
        print(f"| {count}, then as many as the verdict asked for | {counted(last)} |", flush=True)
    print(f"| {POOL} others | {counted(controls.retrains(POOL))} |", flush=True)
    for count, undecided in trails.items():
        if not undecided:
            continue
        print(f"\nThe undecided ones of {count} references:\n")
        print("\n".join(f"- {trail}" for trail in undecided))
    coupled = controls.references.coupled
    if coupled is not None:
        verdict = controls.verdict(coupled, first)
        print(f"\nThe coupled retrain against {K}: {verdict.outcome}, {ratios(verdict)}.")


def main(recipes: tuple[str, ...]) -> None:
    """Print all tables."""
    print(f"# python -m benchmarks.verdict_controls {' '.join(recipes)}\n\n{threads()}; tolerance 1.5")
    for recipe in recipes:
        setting = Setting(parse_recipe(MEMORISED), 0) if recipe == "memorised-digits" else Setting.of(recipe, 0)
        for name, changes in changes_of(setting).items():
            show(Controls.of(setting, changes, POOL), f"{recipe}, {name}")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or RECIPES)
