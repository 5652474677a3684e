"""The record of an edited training: what a next edit starts from.

A replay leaves snapshots of the training as it would have gone on the changed data; they take the place of the recorded
ones. Snapshots from before the rewind still know the changed rows and are left behind, but for the one before the first
step, which knows no row. The row order goes on with the places of removed rows empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from torch import nn

from unlearn.atomic import make_folder
from unlearn.data import Rows
from unlearn.errors import RecordError
from unlearn.training.record import ORDER_FILE, TrainingRecord, write_order
from unlearn.training.snapshots import Snapshot, read_snapshot, snapshot_path, write_snapshot


class Successor:
    """Gathers the snapshots of a replay in a folder, and makes the record of them.

    Args:
        record: of the training that is edited.
        folder: where snapshots and row order go; another one than the record's.

    Raises:
        RecordError: the folder is the record's own, whose snapshots would be overwritten.
    """

    def __init__(self, record: TrainingRecord, folder: str | Path) -> None:
        self.record, self.folder = record, Path(folder)
        if record.folder is not None and record.folder.absolute() == self.folder.absolute():
            raise RecordError(
                f"{str(folder)!r} holds the snapshots that are edited; give another folder for the new ones"
            )
        make_folder(self.folder / "snapshots")
        self._digests: dict[int, str] = {}

    def take(self, step: int, snapshot: Snapshot) -> None:
        """Write the snapshot after ``step`` steps."""
        self._digests[step] = write_snapshot(snapshot_path(self.folder, step), snapshot)

    def replace_weights(self, step: int, model: nn.Module) -> None:
        """Write a snapshot that was taken anew, with the weights of the model and its optimizer state as it was."""
        taken = read_snapshot(snapshot_path(self.folder, step), self._digests[step])
        self.take(step, Snapshot(model.state_dict(), taken.optimizer))

    def finish(self, data: Rows, removed: Iterable[str]) -> TrainingRecord:
        """Return the record of the edited training.

        Args:
            data: the changed rows.
            removed: ids that are gone; they are in no place of the new row order.
        """
        record = self.record
        if 0 in record.snapshots and record.folder is not None:
            first = record.snapshot(0)
            self._digests[0] = write_snapshot(snapshot_path(self.folder, 0), first)
        order = None if record.order is None else record.order.without(removed)
        if order is not None:
            write_order(self.folder / "snapshots" / ORDER_FILE, order)
        return replace(
            record,
            data_fingerprint=data.fingerprint,
            order=order,
            snapshots=MappingProxyType(dict(sorted(self._digests.items()))),
            folder=self.folder,
        )
