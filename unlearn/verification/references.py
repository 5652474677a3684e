"""Retrained models to compare with: the coupled retrain and independent ones, or the user's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from unlearn.checkpoint import load_weights, read_checkpoint
from unlearn.data import Rows
from unlearn.errors import InputError, RecordError
from unlearn.training import BatchOrder, TrainingRecord, fresh_weights, replay
from unlearn.training.order import EMPTY
from unlearn.verification.processes import Processes, allowed_processes, each_seed
from unlearn.verification.retrain_store import RetrainStore

Train = Callable[[Rows, int], nn.Module]
FIRST_SEED = 1000


@dataclass(frozen=True)
class References:
    """Retrained models.

    Attributes:
        coupled: with the original's initial weights and row order; None where these are not known.
        independent: with other seeds.
        trained: how many were trained now, not read from a folder.
        notes: what a reader should know, such as why there is no coupled retrain.
    """

    coupled: nn.Module | None
    independent: tuple[nn.Module, ...]
    trained: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Price:
    """What references will cost, told before they are trained.

    Attributes:
        retrains: how many are trained now.
        finished: how many were trained before and are read.
        epochs: of one retrain, in epochs of the original's rows; None where only the user's own ``train`` knows.
        processes: in how many processes they are trained.
    """

    retrains: int
    finished: int
    epochs: float | None
    processes: int = 1

    @property
    def total(self) -> float | None:
        """Training epochs of all that is trained now; None if not known."""
        return 0.0 if not self.retrains else None if self.epochs is None else self.retrains * self.epochs

    def __str__(self) -> str:
        """Say it in one sentence.

        >>> str(Price(retrains=4, finished=2, epochs=14.9, processes=2))
        '4 retrains of 14.9 training epochs, 59.6 in all, in 2 processes; 2 were finished before'
        """
        if not self.retrains:
            return f"nothing to train; {self.finished} retrains were finished before"
        words = f"{self.retrains} retrain{'' if self.retrains == 1 else 's'}"
        if self.epochs is not None:
            words += f" of {self.epochs:.3g} training epochs, {self.retrains * self.epochs:.3g} in all"
        else:
            words += " by your own train=, whose cost is not known here"
        words += f", in {self.processes} processes" if self.processes > 1 else ""
        return words + (f"; {self.finished} were finished before" if self.finished else "")


def train_references(
    model: nn.Module,
    data: Rows,
    record: TrainingRecord | None,
    *,
    count: int,
    train: Train | None = None,
    folder: str | Path | None = None,
    processes: Processes = 1,
    tell: Callable[[Price], None] | None = None,
) -> References:
    """Train the coupled retrain and ``count`` independent ones on the changed data, or read those already in a folder.

    An independent retrain has fresh initial weights (``reset_parameters`` of every module under its own seed) and the
    recorded batches with the rows exchanged at random; learning rates and settings are the record's. The user's own
    ``train`` is used instead where given; there is then no coupled retrain unless the record has one.

    Args:
        model: the original, for its architecture; not changed.
        data: changed rows.
        record: of the original training.
        count: how many independent retrains.
        train: ``(data, seed) -> model``.
        folder: where finished retrains are kept and looked for. ``train`` is known there by its name only: give
            another folder when its body changes.
        processes: how many to train in at once, or ``auto``: as many as there are cores for. A script that asks for
            more than one needs ``if __name__ == "__main__":``. The weights are the same bytes in any number.
        tell: called with the price before the first training.

    Raises:
        InputError: count is negative.
        RecordError: the record alone can not retrain, and no ``train`` is given.
        WorkerError: a process was ended from outside; what is in the folder stays.
    """
    if count < 0:
        raise InputError(f"references is {count}; give 0 or more")
    why_not = _no_coupled(record)
    if train is None and count > 0 and (record is None or record.order is None):
        raise RecordError(
            "no row order is recorded, so no reference can be trained: pass "
            "train=(data, seed) -> model, or references=0"
        )
    offset = (record.seed or 0 if record is not None else 0) * FIRST_SEED
    seeds: list[int | None] = [] if why_not else [None]
    seeds += [FIRST_SEED + k + offset for k in range(count)]
    stores = {seed: RetrainStore(folder, model, data, record, None if seed is None else train) for seed in seeds}
    found = {seed: stores[seed].find(_name(seed)) for seed in seeds}
    missing = [seed for seed in seeds if found[seed] is None]
    several = allowed_processes(processes, len(missing), next(model.parameters()).device)
    if tell is not None:
        own = train is not None and count > 0
        epochs = None if own or record is None else retrain_epochs(record, data)
        tell(Price(len(missing), len(seeds) - len(missing), epochs, several))
    plain = None if record is None else replace(record, snapshots=dict(record.snapshots))
    for seed, made in each_seed(Retrain(model, data, plain, train), missing, several, "retrains"):
        found[seed] = stores[seed].keep(_name(seed), made)
    models = {seed: kept for seed, kept in found.items() if kept is not None}
    independent = tuple(models[seed] for seed in seeds if seed is not None)
    notes = (why_not,) if why_not else ()
    return References(models.get(None), independent, len(missing), notes)


def given_references(models: Sequence[nn.Module | str | Path], like: nn.Module) -> References:
    """Return the user's own retrains as independent references.

    Args:
        models: modules, or safetensors files of this tool or another.
        like: the architecture that files are loaded into.

    Raises:
        CheckpointError: a file is damaged or does not fit.
    """
    bare, device = copy.deepcopy(like).cpu(), next(like.parameters()).device

    def load(path: str | Path) -> nn.Module:
        return load_weights(bare, read_checkpoint(path, require_provenance=False)).eval().to(device)

    loaded = [one if isinstance(one, nn.Module) else load(one) for one in models]
    note = "the references were given, so there is no coupled retrain; they are taken to be independent of the edit"
    return References(None, tuple(loaded), 0, (note,))


def retrain_epochs(record: TrainingRecord, data: Rows) -> float | None:
    """Return the cost of one retrain on the changed data, in epochs of the original's rows; None without a row order.

    >>> import torch
    >>> record = TrainingRecord("sgd", 0.1, 2, order=BatchOrder.from_batches([["0", "1"], ["1", "0"]]))
    >>> rows = Rows.from_tensors(torch.eye(2), torch.tensor([0, 1]))
    >>> retrain_epochs(record, rows), retrain_epochs(record, rows.without(["1"]))
    (2.0, 1.0)
    """
    if record.order is None:
        return None
    return float((record.order.on(data) != EMPTY).sum()) / len(record.order.ids)


def _no_coupled(record: TrainingRecord | None) -> str | None:
    """Return why there is no coupled retrain, or None if there is one."""
    missing = (
        "foreign weights have no training record"
        if record is None
        else "no row order was recorded"
        if record.order is None
        else "no snapshot of the initial weights was recorded"
        if 0 not in record.snapshots
        else None
    )
    return None if missing is None else f"{missing}, so there is no coupled retrain"


def _name(seed: int | None) -> str:
    return "coupled" if seed is None else f"seed-{seed}"


@dataclass(frozen=True)
class Retrain:
    """The coupled retrain for None, an independent one for a seed; may be sent to another process."""

    model: nn.Module
    data: Rows
    record: TrainingRecord | None
    train: Train | None

    def __call__(self, seed: int | None) -> nn.Module:
        """Return the retrain of a seed."""
        if seed is not None and self.train is not None:
            return self.train(self.data, seed)
        if self.record is None:
            raise RecordError("there is no training record to retrain by: pass train=(data, seed) -> model")
        if seed is not None:
            start = fresh_weights(self.model, seed)
            return replay(start, self.data, exchanged(self.record, seed), description=f"retrain {seed}")[0]
        first, start = self.record.snapshot(0), copy.deepcopy(self.model)
        first.restore(start)
        return replay(start, self.data, self.record, snapshot=first, description="coupled retrain")[0]


def exchanged(record: TrainingRecord, seed: int) -> TrainingRecord:
    """Return the record with its rows exchanged at random: the same batches in size and number, of other rows.

    Random layers (dropout) draw by the new seed too.

    >>> record = TrainingRecord("sgd", 0.1, 2, order=BatchOrder.from_batches([["a", "b"], ["b", "a"]]))
    >>> sorted(exchanged(record, 3).order.batch(0))
    ['a', 'b']
    """
    if record.order is None:
        raise RecordError("the training record has no row order")
    order = record.order
    shuffled = np.random.default_rng([seed, 1]).permutation(len(order.ids))
    exchanged_order = BatchOrder(tuple(order.ids[i] for i in shuffled), order.positions)
    return replace(record, order=exchanged_order, seed=seed, snapshots={})
