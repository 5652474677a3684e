"""Wrong pseudo-labels: found by layer-wise harm, and taken out of all layers, the head or the features.

``python -m benchmarks.pseudo_labels [setting ...]``. A model of 5 % labelled rows labels the others, the original is
trained on all of them for as long as the recipes do. Harm is measured on 200 trusted rows of the test split, accuracy
on the others. Each edit is one of the final weights (``budget=0``, damping 2/T), as ``layers=`` asks for. Beside it
stand retrainings with the original's seed and row order. "Head only" among them is the training in which the rows'
gradients never reached the head while they went on acting on the features (Grad-ReLU's idea, arXiv 2406.14207, for
chosen rows); "features only" is its mirror image.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from benchmarks.setting import Table, logits, threads
from unlearn.data import Rows, load_data
from unlearn.detect import LayerScores, Scores, layer_harm, layer_self_influence, loss
from unlearn.detect.pseudo_labels import PseudoLabelled, head_and_features, pseudo_label
from unlearn.models import build_model
from unlearn.repair import apply_changes
from unlearn.repair.changes import Changes
from unlearn.training import TrainingRecord, TrainSettings, replay, train

SEEDS = (0, 1, 2)
SHARE, TRUSTED = 0.05, 200
FOUND = ("AUROC", "average precision", "found")
FACTS = (
    "seed",
    "labelled",
    "pseudo-labelled",
    "wrong",
    "expected wrong",
    "test rows",
    "accuracy of the labeller",
    "of a labeller that learnt the trusted rows too",
    "of the original",
    "of the original at its own labels",
)
REPAIRED = ("precision", "test accuracy", "accuracy - original", "test loss")


class PseudoLabelTable(Table):
    """A table in which every measure but the test loss is better when larger."""

    LARGER = (*FOUND, *REPAIRED[:-1])


@dataclass(frozen=True)
class Arm:
    """A data set and an architecture.

    Attributes:
        source: name of the data.
        model: name of the architecture.
        options: of the architecture.
        settings: of all trainings.
        head: name of the classification layer.
        labeller_epochs: of the labeller; those of the settings if None.
    """

    source: str
    model: str
    options: dict[str, object]
    settings: TrainSettings
    head: str
    labeller_epochs: int | None = None

    @property
    def labeller(self) -> TrainSettings:
        """Settings of the labeller's training."""
        return self.settings if self.labeller_epochs is None else replace(self.settings, epochs=self.labeller_epochs)

    def build(self, seed: int) -> nn.Module:
        """Return initial weights."""
        return build_model(self.model, seed=seed, **self.options)


_SMALL_CNN = {"size": 8, "widths": [16, 32], "hidden": 64}
_SMALL = TrainSettings(epochs=30, batch_size=64)
SETTINGS = {
    "digits-mlp": Arm("digits", "mlp", {"inputs": 64, "widths": [128]}, _SMALL, "3"),
    # 60 steps do not train this CNN: two thirds of its labels are wrong
    "digits-cnn-short": Arm("digits", "cnn", _SMALL_CNN, _SMALL, "7"),
    "digits-cnn": Arm("digits", "cnn", _SMALL_CNN, _SMALL, "7", labeller_epochs=300),
    "mnist5k-mlp": Arm("mnist5k", "mlp", {"widths": [256, 128]}, TrainSettings(epochs=15), "5"),
}


@dataclass(frozen=True)
class Case:
    """One seed of a setting: pseudo-labels, the original trained on them, and the harm of its rows."""

    arm: Arm
    seed: int
    made: PseudoLabelled
    start: nn.Module
    model: nn.Module
    record: TrainingRecord
    trusted: Rows
    test: Rows

    @classmethod
    def of(cls, arm: Arm, seed: int) -> Case:
        """Make the pseudo-labels and train the original."""
        rows, held_out = load_data(arm.source), load_data(arm.source, "test")
        trusted = held_out.sample(TRUSTED, seed, "trusted-rows")
        start = arm.build(seed)
        made = pseudo_label(start, rows, arm.labeller, labelled=round(SHARE * len(rows)), seed=seed)
        model, record = train(start, made.rows, arm.settings, seed=seed)
        return cls(arm, seed, made, start, model, record, trusted, held_out.without(trusted.ids))

    @property
    def wrong(self) -> set[str]:
        """Pseudo-labelled rows whose label is not the true one."""
        rows = self.made.rows
        assert rows.truth is not None
        return {rows.ids[i] for i in (rows.labels != rows.truth).nonzero().flatten().tolist()} & set(self.made.ids)

    def harm(self) -> dict[str, Scores]:
        """Return total, head and features of the harm of the pseudo-labelled rows."""
        table: LayerScores = layer_harm(
            self.model, self.made.rows, self.trusted, weight_decay=self.arm.settings.weight_decay
        )
        return head_and_features(table, rows=self.made.ids, head=self.arm.head)

    def detectors(self) -> dict[str, Scores]:
        """Return every score that is compared."""
        own = layer_self_influence(self.model, self.made.rows, weight_decay=self.arm.settings.weight_decay)
        parts = head_and_features(own, rows=self.made.ids, head=self.arm.head)
        return {
            **{f"harm, {part}": scores for part, scores in self.harm().items()},
            **{f"self-influence, {part}": scores for part, scores in parts.items()},
            "loss": _only(loss(self.model, self.made.rows), self.made.ids),
            "doubt of the labeller (1 - p)": self.made.doubt,
        }

    def features(self) -> list[str]:
        """Patterns of all layers but the head."""
        return sorted({name.partition(".")[0] for name, _ in self.model.named_parameters()} - {self.arm.head})

    def edits(self, ids: Collection[str]) -> dict[str, nn.Module]:
        """Return the model without these rows in all layers, the head or the features: by edit and by retraining."""
        changes = Changes(removed=tuple(ids))
        kept = changes.apply(self.made.rows)
        every = [name for name, _ in self.model.named_parameters()]
        head = [name for name in every if name.startswith(f"{self.arm.head}.")]
        found: dict[str, nn.Module] = {}
        for part, layers in (("all layers", None), ("head only", [self.arm.head]), ("features only", self.features())):
            edit = apply_changes(
                self.model, self.made.rows, changes, record=self.record, budget=0, layers=layers, allow_empty_class=True
            )
            found[f"edit, {part}"] = edit.model
            if not edit.steps[0].accepted:
                print(f"<!-- seed {self.seed}: edit of {part}, {len(changes.ids)} rows, was not accepted -->")
        found["retrain, all layers"] = replay(self.start, kept, self.record)[0]
        found["retrain, head only"] = self.layerwise(kept, head)
        found["retrain, features only"] = self.layerwise(kept, [name for name in every if name not in head])
        return found

    def better_labeller(self) -> nn.Module:
        """Return what the trusted labels are worth in training: a model of the labelled and the trusted rows."""
        few = self.made.rows.without(self.made.ids)
        (a, x), (b, y) = (rows.batch(torch.arange(len(rows))) for rows in (few, self.trusted))
        rows = Rows.from_tensors(
            torch.cat([a, b]), torch.cat([x, y]), ids=few.ids + self.trusted.ids, classes=few.classes
        )
        return train(self.start, rows, self.arm.labeller, seed=self.seed)[0]

    def layerwise(self, kept: Rows, names: Iterable[str]) -> nn.Module:
        """Return the training in which these parameters learn from the kept rows and the others from all of them."""
        model, all_rows, order = copy.deepcopy(self.start).train(), self.made.rows, self.record.order
        assert order is not None
        wanted, sides = set(names), (order.on(kept), order.on(all_rows))
        optimizer = self.arm.settings.build_optimizer(model)
        for step, rate in enumerate(self.record.rates().tolist()):
            gradients = []
            for rows, positions in zip((kept, all_rows), sides, strict=True):
                batch = positions[step]
                inputs, labels = rows.batch(batch[batch >= 0])
                mean = nn.functional.cross_entropy(model(inputs), labels)
                gradients.append(torch.autograd.grad(mean, list(model.parameters())))
            for (name, parameter), ours, theirs in zip(model.named_parameters(), *gradients, strict=True):
                parameter.grad = ours if name in wanted else theirs
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        return model.eval()

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return accuracy and loss on the test rows."""
        outputs, before = logits(model, self.test), logits(self.model, self.test)
        accuracy, old = (float((found.argmax(1) == self.test.labels).double().mean()) for found in (outputs, before))
        mean = float(nn.functional.cross_entropy(outputs, self.test.labels))
        return {"test accuracy": accuracy, "accuracy - original": accuracy - old, "test loss": mean}


def _only(scores: Scores, ids: tuple[str, ...]) -> Scores:
    value = dict(zip(scores.ids, scores.values, strict=True))
    return Scores(ids, np.array([value[row] for row in ids]), scores.method, scores.options)


def selections(case: Case, harm: dict[str, Scores]) -> dict[str, list[str]]:
    """Return which pseudo-labels are taken out, by title."""
    wrong = len(case.wrong)
    expected = case.made.expected_wrong(case.trusted)

    def top(scores: Scores, count: int) -> list[str]:
        return [row for row, _ in scores.top(count)]

    return {
        "most harmful in total, as many as are wrong": top(harm["total"], wrong),
        "most harmful in total, as many as the labeller's error on trusted rows says": top(harm["total"], expected),
        "most harmful in the head, as many as are wrong": top(harm["head"], wrong),
        "least sure of the labeller, as many as are wrong": top(case.made.doubt, wrong),
        "the wrong ones (truth)": sorted(case.wrong),
    }


def main(names: list[str]) -> None:
    """Print the tables."""
    print(" ".join(["# python -m benchmarks.pseudo_labels", *names]))
    print(f"\n{threads()}; seeds {SEEDS}\n\n{' '.join((__doc__ or '').split(chr(10), 2)[2].split())}")
    print('\nEach cell: mean over seeds (worst seed). "found": share of the wrong ones among as many top rows;')
    print('"precision": share of wrong ones among those taken out.')
    for name in names or list(SETTINGS):
        detection = PseudoLabelTable(f"{name}: finding wrong pseudo-labels", FOUND)
        repairs: dict[str, PseudoLabelTable] = {}
        facts = []
        for seed in SEEDS:
            case = Case.of(SETTINGS[name], seed)
            wrong = case.wrong
            for title, scores in case.detectors().items():
                truth = np.array([row in wrong for row in scores.ids])
                detection.add(
                    title,
                    {
                        "AUROC": float(roc_auc_score(truth, scores.values)),
                        "average precision": float(average_precision_score(truth, scores.values)),
                        "found": float(truth[scores.order()[: len(wrong)]].mean()),
                    },
                )
            models = (case.made.labeller, case.better_labeller(), case.model)
            fitted = float((logits(case.model, case.made.rows).argmax(1) == case.made.rows.labels).double().mean())
            accuracies = (*(case.measure(model)["test accuracy"] for model in models), fitted)
            counts = (seed, len(case.made.rows) - len(case.made.ids), len(case.made.ids), len(wrong))
            counts += (case.made.expected_wrong(case.trusted), len(case.test))
            facts.append(f"| {' | '.join([*map(str, counts), *(f'{value:.4f}' for value in accuracies)])} |")
            for title, ids in selections(case, case.harm()).items():
                table = repairs.setdefault(title, PseudoLabelTable(f"{name}: removing {title}", REPAIRED))
                precision = len(wrong & set(ids)) / len(ids)
                table.add("original", case.measure(case.model))
                for edit, model in case.edits(ids).items():
                    table.add(edit, {"precision": precision, **case.measure(model)})
        print(f"\n### {name}\n")
        print(f"| {' | '.join(FACTS)} |")
        print("\n".join(["|---" * len(FACTS) + "|", *facts]))
        print(detection)
        for table in repairs.values():
            print(table)
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
