"""Finished retrains in a folder, kept under the data, record, architecture and training they belong to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from unlearn.atomic import make_folder, write_atomically
from unlearn.checkpoint.digests import canonical_json, sha256_of_tensors
from unlearn.data import Rows
from unlearn.training import TrainingRecord


class RetrainStore:
    """Retrains by name; without a folder nothing is kept.

    A file that is damaged, or belongs to other data or another training, is not found.
    """

    def __init__(
        self,
        folder: str | Path | None,
        model: nn.Module,
        data: Rows,
        record: TrainingRecord | None,
        train: Callable[..., nn.Module] | None,
    ) -> None:
        self.folder = None if folder is None else make_folder(folder)
        self.model = model
        self.key = data.fingerprint[:16] if folder is not None else ""
        about = {} if record is None else {**record.to_dict(), "snapshots": record.snapshots.get(0)}
        own = (
            None if train is None else f"{train.__module__}.{getattr(train, '__qualname__', type(train).__qualname__)}"
        )
        self.about: dict[str, Any] = {**about, "architecture": str(model), "train": own}

    def find(self, name: str) -> nn.Module | None:
        """Return the finished retrain of this name, or None."""
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                said = file.metadata()
            tensors = load_file(path)
            return self._module(tensors) if said == self._metadata(tensors) else None
        except (SafetensorError, RuntimeError, OSError):
            return None

    def keep(self, name: str, made: nn.Module | bytes) -> nn.Module:
        """Write a retrain, given as a module or as :func:`as_bytes`, and return it as a module."""
        path = self._path(name)
        if path is not None or isinstance(made, bytes):
            tensors = load(made if isinstance(made, bytes) else as_bytes(made))
            if path is not None:
                write_atomically(path, save(tensors, self._metadata(tensors)))
        return self._module(tensors) if isinstance(made, bytes) else made

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}-{self.key}.safetensors"

    def _module(self, tensors: dict[str, Tensor]) -> nn.Module:
        model = copy.deepcopy(self.model)
        model.load_state_dict(tensors)
        return model.eval()

    def _metadata(self, tensors: dict[str, Tensor]) -> dict[str, str]:
        """Return one entry: safetensors writes several in no fixed order. Its key is not that of a checkpoint."""
        return {"unlearn-retrain": canonical_json({**self.about, "tensors_sha256": sha256_of_tensors(tensors)})}


def as_bytes(model: nn.Module) -> bytes:
    """Return the weights and buffers of a module as the bytes of a safetensors file.

    >>> sorted(load(as_bytes(nn.Linear(2, 1))))
    ['bias', 'weight']
    """
    return save({key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()})
