"""The training record: what an edit must know about how a model was trained."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from unlearn.atomic import write_atomically
from unlearn.errors import RecordError, did_you_mean
from unlearn.training.order import BatchOrder
from unlearn.training.settings import build_optimizer
from unlearn.training.snapshots import Snapshot, read_snapshot, snapshot_path

VERSION = 1
ORDER_FILE = "order.safetensors"


@dataclass(frozen=True)
class TrainingRecord:
    """Optimizer, learning rates, steps, and where recorded the row order and snapshots.

    Built by hand it needs the optimizer, its rate and the number of steps; a :class:`unlearn.Recorder` or
    :func:`unlearn.train` fills in the rest.

    Attributes:
        optimizer: ``sgd``, ``adam``, or ``lbfgs`` (trained to its optimum).
        lr: the rate, or the rate of every step.
        steps: number of steps.
        momentum, weight_decay, betas, eps: the optimizer's settings.
        task: name of the task.
        seed: seed of the row order, None if not known.
        data_fingerprint: of the rows trained on, None if not known.
        order: row ids of every batch, None if not recorded.
        snapshots: sha256 of the snapshot file after each recorded number of steps.
        folder: where snapshots and order lie.

    Raises:
        RecordError: a value that can not be meant.

    >>> record = TrainingRecord(optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=1e-3, steps=480)
    >>> round(record.horizon(), 6), round(record.damping(), 6)
    (240.0, 0.008333)
    """

    optimizer: str
    lr: float | Sequence[float]
    steps: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    task: str = "classification"
    seed: int | None = None
    data_fingerprint: str | None = None
    order: BatchOrder | None = field(default=None, repr=False)
    snapshots: Mapping[int, str] = field(default_factory=dict)
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adam", "lbfgs"):
            known = did_you_mean(self.optimizer, ("sgd", "adam", "lbfgs"))
            raise RecordError(f"unknown optimizer {self.optimizer!r} in the training record; {known}")
        if self.steps < 1:
            raise RecordError(f"the training record has {self.steps} steps; give at least 1")
        if not isinstance(self.lr, (int, float)) and len(self.lr) != self.steps:
            raise RecordError(
                f"the training record has {len(self.lr)} learning rates and {self.steps} steps; give one a step"
            )
        if not np.isfinite(self.rates()).all() or (self.rates() < 0).any() or self.rates().sum() <= 0:
            raise RecordError("learning rates of the training record must be finite, >= 0, and not all 0")
        if not 0 <= self.momentum < 1:
            raise RecordError(f"momentum of the training record is {self.momentum}; it lies from 0 to below 1")
        if not 0 <= self.weight_decay < float("inf"):
            raise RecordError(f"weight decay of the training record is {self.weight_decay}; give 0 or more")
        if self.order is not None and len(self.order) != self.steps:
            raise RecordError(
                f"the training record has {len(self.order)} batches and {self.steps} steps; give one a step"
            )

    def rates(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Learning rate of every step, shape (steps,)."""
        return np.full(self.steps, self.lr, dtype=np.float64)

    def horizon(self, start: int = 0, stop: int | None = None) -> float:
        """T = sum of lr / (1 - momentum) over the steps from ``start`` to before ``stop``; infinite at an optimum.

        For Adam, whose steps are scaled by its own metric, it is the plain sum of rates.
        """
        if self.optimizer == "lbfgs":
            return float("inf")
        momentum = self.momentum if self.optimizer == "sgd" else 0.0
        return float(self.rates()[start:stop].sum() / (1 - momentum))

    def damping(self, stop: int | None = None) -> float:
        """Damping 2 / T of an edit at the weights after ``stop`` steps (the last, if None); math.md 3.

        Raises:
            RecordError: the optimizer is Adam, whose damping is a metric and not a number: see ``metric``.
        """
        if self.optimizer == "adam":
            raise RecordError(
                "for Adam the damping is diag(sqrt(v) + eps) / sum lr and needs a snapshot; record one or give a number"
            )
        horizon = self.horizon(0, stop)
        if horizon == 0:
            raise RecordError(
                "the horizon before the first step is 0: nothing was learnt there; choose a later snapshot"
            )
        return 2.0 / horizon

    def snapshot(self, step: int) -> Snapshot:
        """Read the snapshot after ``step`` steps.

        Raises:
            RecordError: it was not recorded, is missing, or is damaged.
        """
        if step not in self.snapshots:
            raise RecordError(
                f"no snapshot after step {step} was recorded; there are {sorted(self.snapshots) or 'none'}"
            )
        if self.folder is None:
            raise RecordError("the training record does not know its folder; load it from the run, or set folder=")
        return read_snapshot(snapshot_path(self.folder, step), self.snapshots[step])

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON-able data, without order and folder."""
        runs = [[rate, len(list(group))] for rate, group in itertools.groupby(self.rates().tolist())]
        return {
            "version": VERSION,
            "optimizer": self.optimizer,
            "lr_runs": runs,
            "steps": self.steps,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "betas": list(self.betas),
            "eps": self.eps,
            "task": self.task,
            "seed": self.seed,
            "data_fingerprint": self.data_fingerprint,
            "snapshots": {str(step): digest for step, digest in sorted(self.snapshots.items())},
            "order": None if self.order is None else self.order.digest,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], folder: Path | None = None) -> TrainingRecord:
        """Return the record from :meth:`to_dict`; the order is read from ``folder`` if it is there.

        Raises:
            RecordError: an unknown version, a value that is missing, or a row order that is damaged or another one.
        """
        if data.get("version") != VERSION:
            raise RecordError(f"training record version {data.get('version')!r}; this release reads version {VERSION}")
        try:
            path = None if data["order"] is None or folder is None else folder / "snapshots" / ORDER_FILE
            return cls(
                optimizer=data["optimizer"],
                lr=[rate for rate, count in data["lr_runs"] for _ in range(count)],
                steps=data["steps"],
                momentum=data["momentum"],
                weight_decay=data["weight_decay"],
                betas=(data["betas"][0], data["betas"][1]),
                eps=data["eps"],
                task=data["task"],
                seed=data["seed"],
                data_fingerprint=data["data_fingerprint"],
                order=read_order(path, data["order"]) if path is not None and path.exists() else None,
                snapshots={int(step): digest for step, digest in data["snapshots"].items()},
                folder=folder,
            )
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise RecordError(f"the training record is damaged ({error!r}); restore it from a copy") from error


def optimizer_of(model: nn.Module, record: TrainingRecord) -> torch.optim.Optimizer:
    """Return the recorded optimizer, afresh, over the model's trainable parameters; its rate is set step by step.

    >>> optimizer_of(nn.Linear(2, 1), TrainingRecord("sgd", 0.1, 5, momentum=0.9)).param_groups[0]["momentum"]
    0.9
    """
    return build_optimizer(
        model,
        record.optimizer,
        lr=0.0,
        momentum=record.momentum,
        weight_decay=record.weight_decay,
        betas=record.betas,
        eps=record.eps,
    )


def write_order(path: Path, order: BatchOrder) -> None:
    """Write a row order as safetensors: positions, and the ids in the metadata."""
    write_atomically(
        path, save({"positions": order.positions.int()}, {"order": json.dumps({"version": VERSION, "ids": order.ids})})
    )


def read_order(path: Path, digest: str) -> BatchOrder:
    """Read a row order, checked against the digest in the record.

    Raises:
        RecordError: the file is damaged or another one.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["order"])
            order = BatchOrder(tuple(about["ids"]), file.get_tensor("positions"))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise RecordError(f"row order {path} is damaged: {error}; restore it from a copy") from error
    if order.digest != digest:
        raise RecordError(f"row order {path} is not the one in the training record (sha256 differs); restore it")
    return order
