"""Which rows still remember: each row's phi beside its distribution over independent retrains."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unlearn import tasks
from unlearn.atomic import write_atomically
from unlearn.verification.distances import read_labels
from unlearn.verification.measures import Group

HEADER = "# unlearn rows 1"
PRIOR = 4
REMEMBERED = 2.0


@dataclass(frozen=True)
class RowTable:
    """The rows of one group, those first that the edited model is surest of beside the retrains.

    Attributes:
        ids: of the rows, by falling ``z`` (without a floor by falling difference from the retrain, or phi).
        columns: an array for each of ``label`` (that phi is taken at), ``phi_unedited``, ``phi_edited``,
            ``phi_coupled``, ``phi_retrained`` (mean over the independent retrains), ``spread`` and ``z``. What can not
            be measured is NaN.
    """

    ids: tuple[str, ...]
    columns: Mapping[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i, row in enumerate(self.ids):
            yield {"id": row, **{name: _plain(values[i]) for name, values in self.columns.items()}}

    def remembered(self, above: float = REMEMBERED) -> RowTable:
        """Return the rows whose ``z`` is above a limit: surer of their label than a model that was retrained."""
        count = int(np.sum(self.columns["z"] > above))
        return RowTable(self.ids[:count], {name: values[:count] for name, values in self.columns.items()})

    def save(self, path: str | Path) -> None:
        """Write as CSV; what can not be measured is empty.

        Raises:
            FolderError: the file can not be written.
        """
        text = io.StringIO(newline="")
        text.write(HEADER + "\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", *self.columns])
        for row in self:
            writer.writerow(["" if value is None else value for value in row.values()])
        write_atomically(path, text.getvalue().encode())


def row_table(group: Group, ids: tuple[str, ...]) -> RowTable:
    """Return phi of every row of a group in each model, and how far the edited model is from the retrains.

    z = (phi_edited - mean) / (s sqrt(1 + 1/K)) over K >= 2 independent retrains, where s^2 is the row's own variance
    over them, drawn towards the group's mean variance with the weight of 4 further retrains: with few retrains a row
    whose few values happen to agree would stand first (a moderated t, Smyth 2004, eq. 3, with a stated weight).
    Positive z: surer of the label than retrains are, so the row is still remembered. Far below 0: forgotten further
    than a model that never saw it. Of rows that were never seen about one in twenty lies beyond 2, on either side
    together.

    Args:
        group: logits of all models.
        ids: of its rows.

    >>> import torch
    >>> flat = torch.zeros(2, 2)
    >>> sure = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
    >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> labels = torch.tensor([0, 0])
    >>> table = row_table(Group("changed", labels, labels, sure, sure, independent=[flat, z]), ("a", "b"))
    >>> table.ids, table.remembered().ids, list(table)[0]["phi_retrained"]
    (('b', 'a'), ('b',), 0.5)
    """
    logits = group.logits()
    labels = read_labels(group.phi_labels, logits.edited)
    phi = logits.map(lambda z: tasks.phi(z, labels).numpy())
    nothing = np.full(len(ids), np.nan)
    retrains = np.stack(phi.independent) if phi.independent else nothing[None]
    mean, count = retrains.mean(0), len(phi.independent)
    spread, z = nothing, nothing
    if count > 1:
        own = retrains.var(0, ddof=1)
        spread = np.sqrt(own)
        variance = (PRIOR * own.mean() + (count - 1) * own) / (PRIOR + count - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (phi.edited - mean) / np.sqrt(variance * (1 + 1 / count))
    coupled = nothing if phi.coupled is None else phi.coupled
    by = next((key for key in (z, phi.edited - mean, phi.edited - coupled) if not np.isnan(key).any()), phi.edited)
    order = np.argsort(-by, kind="stable")
    columns = {
        "label": labels.numpy(),
        "phi_unedited": nothing if phi.unedited is None else phi.unedited,
        "phi_edited": phi.edited,
        "phi_coupled": coupled,
        "phi_retrained": mean,
        "spread": spread,
        "z": z,
    }
    return RowTable(tuple(ids[i] for i in order), {name: values[order] for name, values in columns.items()})


def _plain(value: Any) -> int | float | None:
    number: int | float = value.item()
    return number if math.isfinite(number) else None
