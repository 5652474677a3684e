"""Shadow models of a membership audit: trained with the rows, trained without them, and trained with and then edited.

The models without the rows are the independent retrains of :mod:`unlearn.verification.references`, seed by seed, and
are kept under the same names: those that a verdict has trained are not trained again. All rows in question are in, or
out, together, as in the two worlds that the audit is about; with random halves of them the models without a row would
still have learnt the other half, which for many mislabelled rows is another world.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from unlearn.data import Rows
from unlearn.errors import InputError, RecordError
from unlearn.repair import Changes
from unlearn.tasks import get_task
from unlearn.training import Recorder, TrainingRecord, fresh_weights, optimizer_of, run_steps
from unlearn.verification.processes import Processes, allowed_processes, each_seed
from unlearn.verification.references import FIRST_SEED, Price, Retrain, Train, exchanged, retrain_epochs
from unlearn.verification.retrain_store import RetrainStore

Repair = Callable[[nn.Module, Rows, Changes, TrainingRecord], nn.Module]

FEWEST = 3
MOST = 300
_FIRST = {"never": 0, "learned": 400, "unlearned": 700}


@dataclass(frozen=True)
class Shadows:
    """Models that show what phi of a row is with and without it. Your own models do as well.

    Attributes:
        never: trained without the rows (or with their new labels); at least three.
        learned: trained with the rows as they were; at least three.
        unlearned: trained with the rows and then edited, as the audited model was; none or at least three.
        trained: how many were trained now.

    Raises:
        InputError: too few of a kind.
    """

    never: Sequence[nn.Module]
    learned: Sequence[nn.Module]
    unlearned: Sequence[nn.Module] = ()
    trained: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        few = [name for name in ("never", "learned") if len(getattr(self, name)) < FEWEST]
        few += ["unlearned"] if 0 < len(self.unlearned) < FEWEST else []
        if few:
            raise InputError(
                f"there are {len(getattr(self, few[0]))} shadow models of the kind {few[0]!r}; give at least {FEWEST}"
            )


def train_shadows(
    model: nn.Module,
    data: Rows,
    changes: Changes,
    record: TrainingRecord | None,
    *,
    counts: Mapping[str, int],
    train: Train | None = None,
    repair: Repair | None = None,
    repair_name: str = "",
    folder: str | Path | None = None,
    processes: Processes = 1,
    tell: Callable[[Price], None] | None = None,
) -> Shadows:
    """Train shadow models, or read those already in a folder.

    Seeds follow from the record's seed and the number of a model, so that more models leave the first ones as they are;
    no two kinds share a seed.

    Args:
        model: for its architecture; not changed.
        data: rows before the change.
        changes: the rows in question.
        record: of the original training.
        counts: models of each kind, by name: ``never``, ``learned``, ``unlearned``.
        train: ``(data, seed) -> model``, where the record alone can not retrain.
        repair: ``(model, data, changes, record) -> model``, what unlearns; needed for ``unlearned``.
        repair_name: tells one repair from another in the folder.
        folder: where finished models are kept and looked for.
        processes: see :func:`unlearn.verification.train_references`.
        tell: called with the price before the first training; an edit's own cost is not in it.

    Raises:
        InputError: counts out of range.
        RecordError: the record can not retrain, or has not the snapshots that unlearning needs.
    """
    if max(counts.values()) > MOST:
        raise InputError(f"{max(counts.values())} shadow models of one kind are asked for; at most {MOST} have seeds")
    if train is None and (record is None or record.order is None):
        raise RecordError(
            "no row order is recorded, so no shadow model can be trained: pass train=(data, seed) -> model, or "
            "shadows=Shadows(...) with your own models"
        )
    offset = FIRST_SEED * (1 + ((record.seed or 0) if record is not None else 0))
    edited, missing = changes.apply(data), []
    found: dict[tuple[str, int], nn.Module] = {}
    makers: dict[str, tuple[Callable[[int | None], nn.Module], RetrainStore, str]] = {
        "never": (Retrain(model, edited, record, train), RetrainStore(folder, model, edited, record, train), "seed"),
        "learned": (Retrain(model, data, record, train), RetrainStore(folder, model, data, record, train), "seed"),
    }
    if counts.get("unlearned"):
        if record is None or record.order is None or repair is None:
            raise RecordError("models that learn and then unlearn need a training record with its row order")
        makers["unlearned"] = (
            LearnAndUnlearn(model, data, changes, record, repair),
            RetrainStore(folder, model, data, record, None),
            f"unlearned-{_digest(changes, repair_name)}",
        )
    plan = [(kind, _FIRST[kind] + k + offset) for kind in makers for k in range(counts[kind])]
    for kind, seed in plan:
        _, store, name = makers[kind]
        known = store.find(f"{name}-{seed}")
        if known is None:
            missing.append((kind, seed))
        else:
            found[kind, seed] = known
    if tell is not None:
        epochs = None if record is None or train is not None else retrain_epochs(record, data)
        tell(Price(len(missing), len(found), epochs))
    device = next(model.parameters()).device
    for kind, (make, store, name) in makers.items():
        lacking: list[int | None] = [seed for other, seed in missing if other == kind]
        several = allowed_processes(processes, len(lacking), device)
        for made_for, made in each_seed(make, lacking, several, f"shadow models ({kind})"):
            found[kind, made_for or 0] = store.keep(f"{name}-{made_for}", made)
    models = {kind: [found[other, seed] for other, seed in plan if other == kind] for kind in makers}
    return Shadows(models["never"], models["learned"], models.get("unlearned", ()), len(missing))


@dataclass(frozen=True)
class LearnAndUnlearn:
    """Train on all rows under a seed as the original was trained, with its snapshots, then unlearn the changed ones."""

    model: nn.Module
    data: Rows
    changes: Changes
    record: TrainingRecord
    repair: Repair

    def __call__(self, seed: int | None) -> nn.Module:
        """Return the unlearned model of a seed."""
        with tempfile.TemporaryDirectory(prefix="unlearn-shadow-") as folder:
            learned, record = learn(self.model, self.data, self.record, seed or 0, folder)
            return self.repair(learned, self.data, self.changes, record)


def learn(
    model: nn.Module, data: Rows, record: TrainingRecord, seed: int, folder: str | Path
) -> tuple[nn.Module, TrainingRecord]:
    """Train with fresh weights and exchanged rows, as an independent retrain is trained, and record it.

    Returns:
        The model and its record, with snapshots after the same steps as the original's.
    """
    start, other = fresh_weights(model, seed), exchanged(record, seed)
    if other.order is None:
        raise RecordError("the training record has no row order")
    optimizer = optimizer_of(start, record)
    recorder = Recorder(
        start,
        optimizer,
        folder,
        snapshots=set(record.snapshots),
        task=record.task,
        seed=seed,
        data_fingerprint=data.fingerprint,
    )
    run_steps(
        start,
        optimizer,
        data,
        other.order,
        record.rates().tolist(),
        task=get_task(record.task),
        seed=seed,
        on_step=lambda ids, outputs, labels: recorder.step(ids),
        description=f"shadow model {seed}",
    )
    return start.eval(), recorder.finish()


def _digest(changes: Changes, repair: str) -> str:
    said = json.dumps([changes.hashed_rows(), repair])
    return hashlib.sha256(said.encode()).hexdigest()[:12]
