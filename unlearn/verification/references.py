"""Retrained models to compare with: the coupled retrain and independent ones, on the changed data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from unlearn.atomic import make_folder, write_atomically
from unlearn.checkpoint.digests import canonical_json, sha256_of_tensors
from unlearn.data import Rows
from unlearn.errors import InputError, RecordError
from unlearn.progress import track
from unlearn.training import BatchOrder, TrainingRecord, fresh_weights, replay

Train = Callable[[Rows, int], nn.Module]
FIRST_SEED = 1000


@dataclass(frozen=True)
class References:
    """Retrained models.

    Attributes:
        coupled: with the original's initial weights and row order; None where these are not known.
        independent: with other seeds.
        trained: how many were trained now, not read from a folder.
    """

    coupled: nn.Module | None
    independent: tuple[nn.Module, ...]
    trained: int


def train_references(
    model: nn.Module,
    data: Rows,
    record: TrainingRecord | None,
    *,
    count: int,
    train: Train | None = None,
    folder: str | Path | None = None,
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

    Raises:
        InputError: count is negative.
        RecordError: the record alone can not retrain, and no ``train`` is given.
    """
    if count < 0:
        raise InputError(f"references is {count}; give 0 or more")
    store = _Store(folder, model, data, record, train)
    coupled = None
    if record is not None and record.order is not None and 0 in record.snapshots:
        first = record.snapshot(0)

        def retrain() -> nn.Module:
            start = copy.deepcopy(model)
            first.restore(start)
            return replay(start, data, record, snapshot=first, description="coupled retrain")[0]

        coupled = store.get("coupled", retrain)
    own = train
    if own is None and count > 0:
        if record is None or record.order is None:
            raise RecordError(
                "no row order is recorded, so no reference can be trained: pass "
                "train=(data, seed) -> model, or references=0"
            )
        own = _retrainer(model, record)
    independent = []
    for k in track(range(count), "references"):
        seed = FIRST_SEED + k + (record.seed or 0 if record is not None else 0) * FIRST_SEED
        independent.append(store.get(f"seed-{seed}", lambda seed=seed: own(data, seed)))  # type: ignore[misc]
    return References(coupled, tuple(independent), store.trained)


def _retrainer(model: nn.Module, record: TrainingRecord) -> Train:
    def train(data: Rows, seed: int) -> nn.Module:
        return replay(fresh_weights(model, seed), data, exchanged(record, seed), description=f"retrain {seed}")[0]

    return train


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


class _Store:
    """Finished retrains in a folder, kept under the data, record, architecture and training they belong to."""

    def __init__(
        self,
        folder: str | Path | None,
        model: nn.Module,
        data: Rows,
        record: TrainingRecord | None,
        train: Train | None,
    ) -> None:
        self.folder = None if folder is None else make_folder(folder)
        self.model = model
        self.key = data.fingerprint[:16] if folder is not None else ""
        about = {} if record is None else {**record.to_dict(), "snapshots": record.snapshots.get(0)}
        own = (
            None if train is None else f"{train.__module__}.{getattr(train, '__qualname__', type(train).__qualname__)}"
        )
        self.about = {**about, "architecture": str(model), "train": own}
        self.trained = 0

    def get(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """Return the retrain of this name, read or made."""
        path = None if self.folder is None else self.folder / f"{name}-{self.key}.safetensors"
        if path is not None and path.exists():
            found = self._read(path)
            if found is not None:
                return found
        made = make()
        self.trained += 1
        if path is not None:
            tensors = {key: value.detach().cpu().contiguous().clone() for key, value in made.state_dict().items()}
            write_atomically(path, save(tensors, self._metadata(tensors)))
        return made

    def _metadata(self, tensors: dict[str, Tensor]) -> dict[str, str]:
        """Return one entry: safetensors writes several in no fixed order."""
        return {"unlearn": canonical_json({**self.about, "tensors_sha256": sha256_of_tensors(tensors)})}

    def _read(self, path: Path) -> nn.Module | None:
        try:
            with safe_open(path, "pt") as file:
                said = file.metadata()
            tensors = load_file(path)
            if said != self._metadata(tensors):
                return None
            model = copy.deepcopy(self.model)
            model.load_state_dict(tensors)
        except (SafetensorError, RuntimeError, OSError):
            return None
        return model.eval()
