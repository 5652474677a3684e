"""Chains of edits: each starts from the last edited model, from the data as it then is, and from its own record.

    chain = EditChain(model, data, record=record, folder="chain", budget=1.0)
    edit = chain.remove(["a", "b"])     # or chain.edit(Changes(...)); chain.model, .data, .record move on
    save_checkpoint("chain/edit-0001/model.safetensors", edit.model, edit=edit, record=edit.successor)
    later = EditChain.resume("chain/edit-0001/model.safetensors", data_as_it_now_is, folder="chain")

Rules.

- **Snapshots.** An edit that rewinds leaves the snapshots of its replay in ``folder/edit-0001`` and so on; the next
  starts from these, so that no later edit goes back to weights that saw the rows. Earlier snapshots are left behind,
  and later edits can not rewind past the first edit's start. (:mod:`unlearn.training.successor`.)
- **Method.** Rewind, Newton step, replay. The unrolled edit is nearer for a first edit, but its factors are part of the
  answer and would have to be fitted anew along every edited trajectory; ``method="unrolled"`` asks for it all the same.
- **Curvature.** Factors only precondition the solve: G is always that of the weights at hand. They are fitted at the
  first edit and kept as long as conjugate gradients end with a relative residual of at most ``STALE`` times that of
  the edit they were fitted for; the edit after gets new ones.
- **Drift.** :class:`Drift` adds up what the edits moved. It goes into each checkpoint. Past its limit every edit
  carries a note and ``edit.retrain_advised``; the chain goes on if it is asked to.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from unlearn.checkpoint import read_checkpoint
from unlearn.curvature import Curvature
from unlearn.curvature.digest import weights_digest
from unlearn.data import as_rows
from unlearn.errors import CheckpointError, InputError
from unlearn.repair.apply import EPOCH_COST, apply_changes
from unlearn.repair.changes import Changes, removal
from unlearn.repair.drift import Drift, movement
from unlearn.repair.edit import Edit
from unlearn.repair.rewind import rewind_step
from unlearn.tasks import get_task
from unlearn.training import TrainingRecord, load_checkpoint

STALE = 2.0


@dataclass(frozen=True)
class KeptFactors:
    """The preconditioner that a chain has in force.

    Attributes:
        curvature: as it was fitted: its digest and fingerprint are those of the weights and rows it was fitted on.
        residual: relative residual of the solve that it was fitted for; None where nothing was solved.
    """

    curvature: Curvature
    residual: float | None


class EditChain:
    """A model under successive edits.

    Args:
        model: the model as it is now; not changed.
        data: the rows as they are now, all earlier changes made.
        record: of its training: the original's, or the ``successor`` of the last edit.
        folder: where the records of edits go, a folder for each; needed where the record has snapshots.
        budget: training epochs that each edit may replay.
        limit: of the drift; that of ``drift`` if None, else ``DRIFT_LIMIT``.
        drift: how far the chain has come before, from the last edit's checkpoint.
        factors: of an earlier chain that this one goes on from; fitted at the first edit if None.
        **options: further ones of :func:`apply_changes`, for every edit.

    Attributes:
        model: the last edited model.
        data: its rows.
        record: its training record.
        drift: how far the chain has come.
        factors: what the next edit will be solved with; None where it fits new ones.

    Raises:
        InputError: no folder where one is needed, or a limit that can not be meant.

    >>> import torch
    >>> rows = as_rows((torch.eye(6), torch.tensor([0, 1, 0, 1, 0, 1])))
    >>> chain = EditChain(nn.Linear(6, 2), rows, damping=0.1, weight_decay=0.01)
    >>> edits = [chain.remove(["0"]), chain.remove(["1"])]
    >>> edits[1].original is edits[0].model, chain.data.ids, chain.drift.edits
    (True, ('2', '3', '4', '5'), 2)
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        record: TrainingRecord | None = None,
        folder: str | Path | None = None,
        budget: float = 1.0,
        limit: float | None = None,
        drift: Drift | None = None,
        factors: KeptFactors | None = None,
        **options: Any,
    ) -> None:
        if folder is None and record is not None:
            raise InputError("a chain with a training record writes the record of each edit; give it a folder=")
        self.model, self.data, self.record = model, as_rows(data), record
        self.drift = Drift() if drift is None else drift
        if limit is not None:
            self.drift = replace(self.drift, limit=limit)
        self._folder = None if folder is None else Path(folder)
        self._budget, self._options = budget, options
        self.factors = factors

    @classmethod
    def resume(cls, checkpoint: str | Path, data: Any, model: nn.Module | None = None, **options: Any) -> EditChain:
        """Take a chain up from the checkpoint of its last edit, or begin one from any other.

        Args:
            checkpoint: written with ``edit=edit, record=edit.successor`` into the edit's folder.
            data: the rows as they are now.
            model: the architecture, where the checkpoint does not describe it.
            **options: those of the chain.

        Raises:
            CheckpointError: it has no training record.
        """
        loaded, record = load_checkpoint(checkpoint, model)
        if record is None:
            raise CheckpointError(f"{str(checkpoint)!r} has no training record; save it with record=edit.successor")
        said = (read_checkpoint(checkpoint).edit or {}).get("drift")
        return cls(loaded, data, record=record, drift=None if said is None else Drift.from_dict(said), **options)

    def remove(self, ids: Iterable[str], **options: Any) -> Edit:
        """Remove rows; see :meth:`edit`."""
        return self.edit(removal(ids), **options)

    def edit(self, changes: Changes, *, folder: str | Path | None = None, **options: Any) -> Edit:
        """Make the next edit and move the chain on; nothing moves where it is refused.

        Args:
            changes: in terms of the rows as they are now.
            folder: where the record of this edit goes; one of its own in the chain's folder if None.
            **options: of :func:`apply_changes`, for this edit.

        Returns:
            The edit, with its drift.

        Raises:
            UnlearnError: what :func:`apply_changes` refuses.
        """
        asked = {"budget": self._budget, "method": "newton", **self._options, **options}
        if folder is None and self._folder is not None:
            folder = self._folder / f"edit-{self.drift.edits + 1:04d}"
        own = "curvature" in asked or asked["method"] != "newton"
        kept = None if own else self._preconditioner(asked["budget"])
        edit = apply_changes(
            self.model, self.data, changes, record=self.record, successor=folder, **{"curvature": kept, **asked}
        )
        edit = self._with_drift(edit)
        self._keep(edit, fitted=kept is None)
        self.model, self.data, self.drift = edit.model, edit.edited_data, edit.drift or self.drift
        self.record = edit.successor
        return edit

    def _preconditioner(self, budget: float) -> Curvature | None:
        """Return the factors of an earlier edit as a preconditioner for the weights at hand."""
        if self.factors is None:
            return None
        start = rewind_step(self.record, self.data, budget)
        at = self.model
        if start is not None and self.record is not None:
            at = _restored(self.model, self.record, start)
        return replace(self.factors.curvature, weights_digest=weights_digest(at))

    def _keep(self, edit: Edit, *, fitted: bool) -> None:
        residual = edit.steps[-1].residual if edit.steps else None
        fresh = None if self.factors is None else self.factors.residual
        if fitted:
            self.factors = None if edit.curvature is None else KeptFactors(edit.curvature, residual)
        elif residual is not None and fresh is not None and residual > STALE * fresh:
            self.factors = None

    def _with_drift(self, edit: Edit) -> Edit:
        kept = edit.edited_data.only([row for row in edit.edited_data.ids if row not in edit.changes.relabelled])
        task = get_task(self._options.get("task", "classification"))
        moved, passes = movement(edit.original, edit.model, kept, task)
        drift = self.drift.after(len(edit.changes.ids), moved)
        cost = replace(edit.cost, solve=edit.cost.solve + passes / (EPOCH_COST * len(edit.data)))
        notes = edit.notes
        if drift.retrain_advised:
            notes = (
                *notes,
                f"{drift.edits} edits of {drift.rows} rows have moved the outputs by {drift.moved:.3g} nats in all, "
                f"past the limit of {drift.limit:g}: train again",
            )
        return replace(edit, drift=drift, cost=cost, notes=notes)


def _restored(model: nn.Module, record: TrainingRecord, step: int) -> nn.Module:
    place = copy.deepcopy(model)
    record.snapshot(step).restore(place)
    return place
