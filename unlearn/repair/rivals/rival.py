"""What every rival of a repair is: one call with one signature, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import nn

from unlearn.data import Rows, as_rows
from unlearn.errors import InputError, did_you_mean
from unlearn.repair.changes import Changes
from unlearn.repair.rewind import check_record
from unlearn.tasks import get_task
from unlearn.training import TrainingRecord

Setting = Mapping[str, float]
Needs = Literal["final weights", "initial weights", "snapshots"]


@dataclass(frozen=True)
class RivalEdit:
    """A model that a rival made, and what it cost.

    Attributes:
        model: a copy with other weights; the original's modes.
        cost: all of it in training epochs, counted and not timed: an epoch is a forward and a backward pass over all
            rows of the data before the change.
        settings: what it was run with, defaults filled in.
        shared: the part of ``cost`` that does not depend on the request and is paid once for all of them.
    """

    model: nn.Module
    cost: float
    settings: dict[str, float]
    shared: float = 0.0

    @property
    def own_cost(self) -> float:
        """What one more request costs."""
        return self.cost - self.shared


class Method(Protocol):
    """The mathematics of a rival, on checked input."""

    def __call__(
        self,
        model: nn.Module,
        data: Rows,
        changes: Changes,
        record: TrainingRecord,
        setting: dict[str, float],
        seed: int,
    ) -> RivalEdit:
        """Return the edited model; ``setting`` has every required name."""


class Grid(Protocol):
    """The settings of a rival that are tried."""

    def __call__(self, data: Rows, changes: Changes, record: TrainingRecord, cost: float) -> list[dict[str, float]]:
        """Return settings for a request that may cost about ``cost`` epochs apart from what is shared; may be none."""


@dataclass(frozen=True)
class Rival:
    """Something a user could do instead of a repair.

    Attributes:
        name: as in tables and on the command line.
        method: what it does.
        grid: the settings that are tried where the best is looked for.
        required: names of settings without a default.
        optional: names of settings with a default.
        needs: what must have been kept of the training beside the final weights and the settings in the record.
        removes_only: whether it has no meaning for rows that are relabelled.
    """

    name: str
    method: Method
    grid: Grid
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    needs: Needs = "final weights"
    removes_only: bool = False

    def __call__(
        self,
        model: nn.Module,
        data: Any,
        changes: Changes,
        record: TrainingRecord,
        *,
        setting: Setting | None = None,
        seed: int = 0,
    ) -> RivalEdit:
        """Make the rival's model.

        Args:
            model: the trained model; not changed.
            data: the rows it was trained on, with their old labels. See :func:`unlearn.as_rows`.
            changes: rows to remove and to relabel.
            record: how it was trained.
            setting: numbers by name, of ``required`` and ``optional``.
            seed: of what the rival draws at random.

        Raises:
            InputError: changes or settings that can not be meant, or a training that diverged.
            RecordError: the record lacks what the rival needs.
        """
        rows = as_rows(data)
        changes = changes.on(rows)
        changes.check(rows, allow_empty_class=True)
        if changes.relabelled and not self.handles(changes):
            raise InputError(
                f"{self.name} is a rival for removals only, and {len(changes.relabelled)} rows are relabelled; compare "
                "with fine-tune"
            )
        check_record(record, rows, get_task(record.task))
        return self.method(model, rows, changes, record, self._checked(setting or {}), seed)

    def handles(self, changes: Changes) -> bool:
        """Return whether the rival has a meaning for these changes."""
        return not (self.removes_only and changes.relabelled)

    def _checked(self, setting: Setting) -> dict[str, float]:
        known = (*self.required, *self.optional)
        for name, value in setting.items():
            if name not in known:
                raise InputError(f"{self.name} has no setting {name!r}; {did_you_mean(name, known)}")
            if not 0 < value < math.inf:
                raise InputError(f"setting {name!r} of {self.name} is {value}; give a finite number above 0")
        missing = [name for name in self.required if name not in setting]
        if missing:
            raise InputError(f"{self.name} needs a number for its setting {missing[0]!r}; pass setting={{...}} with it")
        return dict(setting)


def epochs_of(processed: int, data: Rows) -> float:
    """Return a number of rows, each run forward and backward, in training epochs."""
    return processed / len(data)
