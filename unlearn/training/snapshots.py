"""Snapshots: weights, buffers and optimizer state after a number of steps, one safetensors file each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from unlearn.atomic import write_atomically
from unlearn.errors import InputError, RecordError

_WEIGHT, _STATE = "weight/", "optimizer/"


@dataclass(frozen=True)
class Snapshot:
    """A model and its optimizer at one moment.

    Attributes:
        weights: the state dict of the model.
        optimizer: state of the optimizer, ``<entry>/<parameter>`` -> tensor (``momentum_buffer``; ``exp_avg``,
            ``exp_avg_sq``, ``step``).
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    @classmethod
    def take(cls, model: nn.Module, optimizer: torch.optim.Optimizer) -> Snapshot:
        """Return copies of the present weights and optimizer state."""
        state = {}
        for name, parameter in model.named_parameters():
            for entry, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    state[f"{entry}/{name}"] = value.detach().clone()
        return cls({name: value.detach().clone() for name, value in model.state_dict().items()}, state)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load weights into the model, and the state into the optimizer, in place.

        Raises:
            RecordError: the snapshot is of another architecture.
        """
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise RecordError(f"a snapshot does not fit the model: {' '.join(str(error).split())}") from error
        if optimizer is not None:
            self.restore_optimizer(model, optimizer)

    def restore_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Load the state into the optimizer of the model's parameters, in place; the weights stay.

        Raises:
            RecordError: the snapshot is of another architecture.
        """
        optimizer.state.clear()
        parameters = dict(model.named_parameters())
        for key, value in self.optimizer.items():
            entry, _, name = key.partition("/")
            if name not in parameters or (entry != "step" and value.shape != parameters[name].shape):
                raise RecordError(
                    f"a snapshot does not fit the model: it has {entry} of {tuple(value.shape)} for {name!r}"
                )
            parameter = parameters[name]
            kept = value.clone() if entry == "step" else value.to(parameter.device, copy=True)
            optimizer.state[parameter][entry] = kept


def snapshot_path(folder: Path, step: int) -> Path:
    """Return where the snapshot after ``step`` steps lies."""
    return folder / "snapshots" / f"step-{step:06d}.safetensors"


def write_snapshot(path: Path, snapshot: Snapshot) -> str:
    """Write a snapshot; return the sha256 of the file."""
    tensors = {_WEIGHT + name: value for name, value in snapshot.weights.items()}
    tensors |= {_STATE + name: value for name, value in snapshot.optimizer.items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(
                f"{name.partition('/')[2]!r} is NaN or infinite: the training diverged; lower the learning rate"
            )
    data = save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def read_snapshot(path: Path, digest: str) -> Snapshot:
    """Read a snapshot, checked against the digest in the record.

    Raises:
        RecordError: the file is missing, damaged or another one.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"snapshot {path} is missing: restore it, or edit the final weights with budget=0") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise RecordError(f"snapshot {path} is not the one in the training record (sha256 differs); restore it")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise RecordError(f"snapshot {path} is damaged: {error}; restore it") from error
    return Snapshot(
        {name[len(_WEIGHT) :]: value for name, value in tensors.items() if name.startswith(_WEIGHT)},
        {name[len(_STATE) :]: value for name, value in tensors.items() if name.startswith(_STATE)},
    )
