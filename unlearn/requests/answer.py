"""What answers a batch: the rows as they are for the released model, the edit, or a retrain that never saw the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from unlearn.checkpoint import save_checkpoint
from unlearn.checkpoint.digests import sha256_of_file
from unlearn.data import Rows
from unlearn.detect.duplicates import copies_of
from unlearn.errors import LedgerError
from unlearn.pipeline import Run
from unlearn.repair import Changes, Cost, Drift, Edit, EditChain, KeptFactors
from unlearn.requests.desk import Desk
from unlearn.requests.factors import factors_in_force, keep_factors
from unlearn.requests.named_files import batch_folder, model_path
from unlearn.requests.state import ORIGINAL, Batch, State
from unlearn.training import TrainingRecord, load_checkpoint, snapshot_epochs, train
from unlearn.training.snapshots import snapshot_path

MOST_SHOWN = 20


def changes_of(desk: Desk, batches: Iterable[Batch]) -> Changes:
    """Return the changes of these batches together, in rows of the training data; a removed row stays removed.

    Rows that are in the training data no more are left out.
    """
    removed: dict[str, None] = {}
    relabelled: dict[str, int | float] = {}
    for batch in batches:
        removed |= dict.fromkeys(desk.id_of[code] for code in batch.removed if code in desk.id_of)
        relabelled |= {desk.id_of[code]: new for code, new in batch.relabelled.items() if code in desk.id_of}
    labels = {row: new for row, new in relabelled.items() if row not in removed}
    return Changes(removed=tuple(removed), relabelled=labels)


def rows_after(desk: Desk, batches: Iterable[int], state: State) -> Rows:
    """Return the training rows as they are after these batches."""
    changes = changes_of(desk, (state.batches[k] for k in batches))
    return changes.apply(desk.run.data) if changes.ids else desk.run.data


def model_after(run: Run, batch: int, state: State) -> tuple[nn.Module, TrainingRecord]:
    """Return the model of a batch (0: the original) and its training record, checked against the ledger.

    Snapshots are of use only while all of them are there; a purge may have taken them.

    Raises:
        LedgerError: the checkpoint is another one, or has no record.
    """
    path = model_path(run.folder, batch)
    digests = state.opened["original"] if batch == ORIGINAL else state.batches[batch].edited
    if sha256_of_file(path) != digests["sha256"]:
        raise LedgerError(f"{str(path)!r} is not what the ledger says; run `unlearn request audit` and restore it")
    model, record = load_checkpoint(path, run.build())
    if record is None:
        raise LedgerError(f"{str(path)!r} has no training record, so nothing can be edited; train again")
    there = record.order is not None and all(snapshot_path(path.parent, step).exists() for step in record.snapshots)
    return model, record if there else replace(record, snapshots={}, order=None)


@dataclass(frozen=True)
class CodedEdit:
    """What a checkpoint says of an answer: rows by their codes, so that nobody can guess ids from it."""

    facts: Mapping[str, Any]
    batch: Batch

    def provenance(self) -> Mapping[str, Any]:
        """Return the facts, with the rows."""
        rows: list[dict[str, Any]] = [{"row": code, "action": "remove", "label": None} for code in self.batch.removed]
        rows += [{"row": code, "action": "relabel", "label": new} for code, new in self.batch.relabelled.items()]
        return {**self.facts, "rows": rows}


@dataclass(frozen=True)
class Answer:
    """A model that answers a batch.

    Attributes:
        model: its weights.
        record: of how they came about, for later edits.
        facts: method, settings and cost.
        drift: how far edits have moved the outputs since the last training, in nats (:class:`unlearn.repair.Drift`).
        factors: the curvature in force for the next edit; None where it fits its own.
    """

    model: nn.Module
    record: TrainingRecord
    facts: dict[str, Any]
    drift: float
    factors: KeptFactors | None = None


def edited(desk: Desk, batch: Batch, state: State) -> Answer:
    """Return the released model, edited by what the batch asks for; replayed snapshots go to the batch's folder."""
    section = desk.run.recipe.repair
    model, record = model_after(desk.run, batch.base, state)
    folder = batch_folder(desk.run.folder, batch.number)
    said = None if batch.base == ORIGINAL else state.batches[batch.base].edited["answer"].get("drift")
    chain = EditChain(
        model,
        rows_after(desk, state.stack, state),
        record=record,
        folder=folder,
        budget=section.budget,
        drift=None if said is None else Drift.from_dict(said),
        limit=batch.policy["drift_limit"],
        factors=factors_in_force(desk.run.folder, factors_said(state, batch.base), model),
        damping=section.damping,
        layers=section.layers,
        task=record.task,
        allow_empty_class=True,
    )
    edit = chain.edit(changes_of(desk, [batch]), folder=folder)
    return Answer(edit.model, edit.successor or record, edit.to_dict(), chain.drift.moved, chain.factors)


def retrained(desk: Desk, batch: Batch, state: State) -> Answer:
    """Train anew on the rows without all that was deleted; snapshots go to the batch's folder."""
    run = desk.run
    rows = rows_after(desk, [*state.stack, batch.number], state)
    section = run.recipe.train
    model, record = train(
        run.build(),
        rows,
        run.settings,
        seed=section.train_seed,
        folder=batch_folder(run.folder, batch.number),
        snapshot_epochs=snapshot_epochs(section.snapshot_epochs, section.epochs),
        description="retraining without the rows",
    )
    facts = {"method": "retrain", "rows_trained_on": len(rows), "cost": {"total": float(section.epochs)}}
    return Answer(model, record, facts, 0.0)


def save_answer(desk: Desk, batch: Batch, answer: Answer) -> dict[str, Any]:
    """Write the checkpoint; return what the ledger says of it."""
    run = desk.run
    factors = keep_factors(run.folder, batch, answer.factors, factors_said(desk.state(), batch.base))
    desk.fault("curvature kept")
    path = model_path(run.folder, batch.number)
    digest = save_checkpoint(
        path,
        answer.model,
        parent=model_path(run.folder, batch.base) if model_path(run.folder, batch.base).exists() else None,
        edit=CodedEdit(answer.facts, batch),
        record=answer.record,
        recipe=(run.recipe.name, run.recipe.text),
        spec={"name": run.recipe.model.name, "options": run.recipe.model.options},
    )
    return {
        "batch": batch.number,
        "sha256": sha256_of_file(path),
        "digest": digest,
        "drift": answer.drift,
        "answer": answer.facts,
        "factors": factors,
        "near_duplicates": near_duplicates(desk, batch),
    }


def factors_said(state: State, batch: int) -> dict[str, Any] | None:
    """Return what the ledger says of the curvature in force after a batch."""
    return None if batch == ORIGINAL else state.batches[batch].edited.get("factors")


def near_duplicates(desk: Desk, batch: Batch) -> dict[str, Any]:
    """Return how many rows that are left look much like a deleted one, and the nearest of them by code."""
    similarity = desk.run.recipe.requests.duplicate_similarity
    state = desk.state()
    before = changes_of(desk, (state.batches[k] for k in state.stack)).removed
    gone = changes_of(desk, [batch]).removed
    rows = desk.run.data.without(before) if before else desk.run.data
    pairs = copies_of(rows, gone, similarity=similarity) if gone else []
    code = desk.row_key.code
    nearest = [
        {"removed": code("row", a), "left": code("row", b), "similarity": round(value, 6)}
        for a, b, value in pairs[:MOST_SHOWN]
    ]
    return {"similarity": similarity, "rows_left": len({b for _, b, _ in pairs}), "nearest": nearest}


def as_edit(desk: Desk, batch: Batch, state: State, *, everything: bool) -> Edit:
    """Return the batch's model as an edit to verify: of its own rows, or of all rows changed so far.

    Where a purge took the model before it, the model stands for it; only the columns of the unedited model say less.
    """
    before = _stack_before(state, batch)
    model, record = model_after(desk.run, batch.number, state)
    base = ORIGINAL if everything and model_path(desk.run.folder, ORIGINAL).exists() else batch.base
    original = model_after(desk.run, base, state)[0] if model_path(desk.run.folder, base).exists() else model
    own = [state.batches[k] for k in before] if everything else []
    return Edit(
        model=model,
        original=original,
        method=str(batch.edited["answer"]["method"]),
        changes=changes_of(desk, [*own, batch]),
        data=desk.run.data if everything else rows_after(desk, before, state),
        record=record,
        steps=(),
        cost=Cost(),
        before={},
        after={},
    )


def _stack_before(state: State, batch: Batch) -> list[int]:
    """Return the batches below this one in the released model."""
    return state.stack[: state.stack.index(batch.number)] if batch.number in state.stack else list(state.stack)
