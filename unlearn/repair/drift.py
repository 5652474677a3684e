"""How far a chain of edits has come, and when it is time to train again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.predict import outputs_of
from unlearn.tasks import Task

DRIFT_LIMIT = 0.03
DRIFT_ROWS = 1024


@dataclass(frozen=True)
class Drift:
    """What successive edits have moved.

    Every edit lands beside retraining by a part of what it moves, so the way that all edits together have gone is what
    their errors grow with; it is known without retraining. On mnist5k the KL to retraining was 0.9 to 1.2 times the
    drift where edits rewound by an epoch, and 4 to 5 times where they had the final weights only (one seed,
    ``python -m benchmarks.chains``); the default limit is about the KL between independent retrains there.

    Attributes:
        edits: edits made.
        rows: rows changed by them.
        moved: sum over edits of the mean divergence of the outputs on kept rows, before from after (for classes: KL in
            nats), on at most ``DRIFT_ROWS`` rows drawn by id.
        limit: past it, retraining is advised.

    >>> Drift().after(2, 0.02).after(1, 0.02).retrain_advised
    True
    """

    edits: int = 0
    rows: int = 0
    moved: float = 0.0
    limit: float = DRIFT_LIMIT

    def __post_init__(self) -> None:
        if not 0 < self.limit <= math.inf:
            raise InputError(f"the drift limit is {self.limit}; give a number above 0, or infinity for none")

    @property
    def retrain_advised(self) -> bool:
        """Whether the limit is passed."""
        return self.moved > self.limit

    def after(self, rows: int, moved: float) -> Drift:
        """Return the drift after one more edit."""
        return replace(self, edits=self.edits + 1, rows=self.rows + rows, moved=self.moved + moved)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data; no limit is None."""
        limit = self.limit if math.isfinite(self.limit) else None
        return {**asdict(self), "limit": limit, "retrain_advised": self.retrain_advised}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Drift:
        """Return the drift that :meth:`to_dict` wrote.

        Raises:
            InputError: something is missing.
        """
        try:
            limit = math.inf if facts["limit"] is None else facts["limit"]
            return cls(facts["edits"], facts["rows"], facts["moved"], limit)
        except KeyError as error:
            raise InputError(
                f"the drift of a chain lacks {error}; read it from the checkpoint of its last edit"
            ) from error


def movement(before: nn.Module, after: nn.Module, kept: Rows, task: Task) -> tuple[float, int]:
    """Return the mean divergence of the outputs after from those before, and the row passes that it cost."""
    sample = kept.sample(DRIFT_ROWS, 0, "drift-rows")
    parts = [
        task.divergence(reference.double(), outputs.double(), labels)
        for (_, reference, labels), (_, outputs, _) in zip(
            outputs_of(before, sample), outputs_of(after, sample), strict=True
        )
    ]
    return max(0.0, float(torch.cat(parts).mean())), 2 * len(sample)
