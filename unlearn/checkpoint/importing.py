"""Plain PyTorch state dictionaries become checkpoints; nothing is ever unpickled but tensors."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unlearn.checkpoint.digests import sha256_of_file
from unlearn.checkpoint.reading import state_tensors
from unlearn.checkpoint.saving import HasDict, checked_spec, record_dict, write_checkpoint
from unlearn.checkpoint.weights import check_layout
from unlearn.errors import CheckpointError

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def import_state_dict(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    record: HasDict | Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Write the tensors of a ``.pt`` or ``.pth`` state dictionary to a checkpoint of kind ``imported``.

    Args:
        path: what ``torch.save(model.state_dict(), path)`` wrote; a dictionary that holds the state dictionary under
            ``state_dict``, ``model_state_dict`` or ``model`` is opened, and the rest of it (an optimizer, say) is left.
        out: checkpoint to write; one that stands there is replaced once the new one is whole.
        record: as in :func:`unlearn.checkpoint.save_checkpoint`.
        spec: as there.
        extra: as there.

    Returns:
        The digest, as hex.

    Raises:
        CheckpointError: the file is damaged, holds pickled objects other than tensors, or does not fit the model that
            ``spec`` describes.
        InputError: it holds something else than tensors by name, or a weight is NaN or infinite.
        FolderError: the folder of ``out`` can not be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(torch.nn.Linear(2, 1).state_dict(), Path(folder, "a.pt"))
    ...     digest = import_state_dict(Path(folder, "a.pt"), Path(folder, "a.safetensors"))
    >>> len(digest)
    64
    """
    name = str(path)
    loaded = _load_tensors_only(path)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{name!r} holds {type(loaded).__name__}; save model.state_dict() in it")
    entry = next((key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
    state = loaded if entry is None else loaded[entry]
    tensors, described = state_tensors(state, repr(name)), checked_spec(spec)
    if described is not None:
        from unlearn.models import build_model

        check_layout(build_model(described["name"], **described["options"]), tensors, name)
    return write_checkpoint(
        out,
        tensors,
        kind="imported",
        source={"name": Path(path).name, "sha256": sha256_of_file(path), "entry": entry},
        record=record_dict(record),
        model=described,
        extra=extra,
    )


def _load_tensors_only(path: str | os.PathLike[str]) -> Any:
    name = str(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error) and "unsupported" not in str(error).lower():
            raise CheckpointError(f"{name!r} is no PyTorch file, or it is damaged; copy or save it again") from error
        raise CheckpointError(
            f"{name!r} holds pickled Python objects, which could run code when loaded; where you trust it, load it "
            "yourself and save model.state_dict()"
        ) from error
    except OSError as error:
        raise CheckpointError(f"can not read {name!r}: {error.strerror or error}; check the path") from error
    except Exception as error:  # damaged bytes can make the reader raise anything
        raise CheckpointError(f"{name!r} is no PyTorch file, or it is damaged; copy or save it again") from error
