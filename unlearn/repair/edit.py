"""The result of a repair: new weights, and every number of how they came about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.curvature import Curvature
from unlearn.data import Rows
from unlearn.predict import outputs_of
from unlearn.repair.calibration import Calibration
from unlearn.repair.changes import Changes
from unlearn.repair.drift import Drift
from unlearn.repair.newton import Step
from unlearn.repair.output_cut import OutputCut
from unlearn.tasks import Task, phi
from unlearn.training import TrainingRecord

Measure = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Cost:
    """What an edit cost, counted and not timed, in training epochs (forward 1 and backward 2 for each row).

    Attributes:
        factors: fitting the preconditioner (decompositions not counted).
        solve: gradients, products and evaluations of the edit, and the replay of its head.
        replay: recorded steps run again.
        storage: bytes of the factors that were fitted or read; snapshots not counted.

    >>> Cost(factors=0.25, solve=0.75, replay=3.0).total
    4.0
    """

    factors: float = 0.0
    solve: float = 0.0
    replay: float = 0.0
    storage: int = 0

    @property
    def total(self) -> float:
        """All of it."""
        return self.factors + self.solve + self.replay

    def to_dict(self) -> dict[str, float]:
        """Return the parts and the total."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class Edit:
    """An edited model and how it was made.

    Attributes:
        model: a copy of the original with the edited weights; the original's modes.
        original: the model that was edited, as it was given.
        method: ``newton`` or ``unrolled`` (at the final weights), ``rewind-newton-replay``,
            ``rewind-unrolled-replay`` or ``rewind-compressed-replay``, or that of a restricted edit, such as
            ``gif-exact``.
        changes: what was asked for.
        data: rows before the change.
        record: the training record used, or None.
        steps: numbers of every Newton step.
        cost: in training epochs.
        before: loss and phi at the old label of the changed rows, loss and accuracy of the others, in the original.
        after: the same in the edited model.
        budget: training epochs that might be replayed.
        start_step: the training step whose snapshot was edited; None for the final weights.
        layers: patterns of the only layers that were edited; None for all.
        head: name of the last linear layer, where its recorded training was run again on the edited features.
        curvature: the preconditioner of a Newton step; None where none was taken.
        calibration: how the damping was found without a record; its rows are not to be tested on.
        successor: the record of the edited training, where one was asked for: a next edit starts from it.
        drift: how far the chain that this edit belongs to has come; None outside of a chain.
        cut: outputs that were cut from ``model`` after the edit; None where all are there.
        notes: what a reader should know, such as a step that was not accepted.
    """

    model: nn.Module
    original: nn.Module
    method: str
    changes: Changes
    data: Rows
    record: TrainingRecord | None
    steps: tuple[Step, ...]
    cost: Cost
    before: dict[str, float]
    after: dict[str, float]
    budget: float = 0.0
    start_step: int | None = None
    layers: tuple[str, ...] | None = None
    head: str | None = None
    curvature: Curvature | None = field(default=None, repr=False)
    calibration: Calibration | None = field(default=None, repr=False)
    successor: TrainingRecord | None = None
    drift: Drift | None = None
    cut: OutputCut | None = None
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a step was not accepted; the weights are then the last accepted ones, and a note says why."""
        return any(not step.accepted for step in self.steps)

    @property
    def retrain_advised(self) -> bool:
        """Whether the chain of edits has drifted past its limit."""
        return self.drift is not None and self.drift.retrain_advised

    @property
    def comparable(self) -> nn.Module:
        """The edited model with all its outputs, as retrained models have them."""
        return self.model if self.cut is None else self.cut.whole

    @property
    def edited_data(self) -> Rows:
        """Rows after the change."""
        return self.changes.apply(self.data)

    def to_dict(self) -> dict[str, Any]:
        """Return every number as JSON-able data; rows are counted, not named."""
        return {
            "method": self.method,
            "action": self.changes.action,
            "removed": len(self.changes.removed),
            "relabelled": len(self.changes.relabelled),
            "removed_classes": list(self.changes.removed_classes),
            "budget": self.budget,
            "start_step": self.start_step,
            "layers": None if self.layers is None else list(self.layers),
            "head": self.head,
            "steps": [step.to_dict() for step in self.steps],
            "cost": self.cost.to_dict(),
            "before": self.before,
            "after": self.after,
            "drift": None if self.drift is None else self.drift.to_dict(),
            "notes": list(self.notes),
        }

    def provenance(self) -> dict[str, Any]:
        """Return what a checkpoint says of the edit; row ids as sha256 only."""
        return {**self.to_dict(), "rows": self.changes.hashed_rows(), "data_fingerprint": self.data.fingerprint}


def measure(model: nn.Module, rows: Rows, changes: Changes, task: Task) -> dict[str, float]:
    """Return what an edit reports of a model: loss and phi of the changed rows, loss and accuracy of the others."""
    measures: dict[str, Measure] = {"changed_loss": task.loss}
    if rows.classes is not None:
        measures["changed_phi"] = phi
    found = _means(model, rows.only(changes.ids), measures)
    if len(changes.ids) < len(rows):
        measures = {"kept_loss": task.loss}
        if rows.classes is not None:
            measures["kept_accuracy"] = lambda outputs, labels: (outputs.argmax(1) == labels).double()
        found |= _means(model, rows.without(changes.ids), measures)
    return found


def _means(model: nn.Module, rows: Rows, measures: dict[str, Measure]) -> dict[str, float]:
    """Return the mean over rows of each measure of (outputs, labels), batch by batch."""
    parts = [
        {name: measure(outputs, labels) for name, measure in measures.items()}
        for _, outputs, labels in outputs_of(model, rows)
    ]
    return {name: float(torch.cat([part[name] for part in parts]).mean()) for name in measures}
