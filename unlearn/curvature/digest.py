"""Which weights a result belongs to."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from torch import Tensor, nn

from unlearn.checkpoint.digests import raw_bytes
from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.ranks import ranks_agree, world_size

if TYPE_CHECKING:
    from unlearn.curvature.curvature import Curvature


def weights_digest(model: nn.Module) -> str:
    """Return the sha256 of names, types, shapes and bytes of the model's state, as hex.

    Raises:
        InputError: weights are sharded over ranks.

    >>> model = nn.Linear(2, 1)
    >>> before = weights_digest(model)
    >>> _ = model.weight.data.add_(1)
    >>> weights_digest(model) == before
    False
    """
    total = hashlib.sha256(b"unlearn-weights-1")
    for name, value in sorted(model.state_dict().items()):
        if hasattr(value, "full_tensor"):
            raise InputError(
                f"{name!r} is sharded over ranks, and curvature and scores need whole weights on each: gather with "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict, into a plain model"
            )
        if isinstance(value, Tensor):
            total.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            total.update(raw_bytes(value).numpy().data)
    return total.hexdigest()


def curvature_digest(curvature: Curvature) -> str:
    """Return the sha256 of what a curvature is: weights, rows, options and the bytes of its factors, as hex."""
    about = [curvature.weights_digest, curvature.data_fingerprint, curvature.options]
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, block in curvature.blocks.items():
        for part, tensor in block.tensors.items():
            total.update(f"{name}\0{part}\0{tensor.dtype}\0".encode())
            total.update(raw_bytes(tensor).numpy().data)
    return total.hexdigest()


def check_ranks(model: nn.Module, rows: Rows) -> None:
    """Refuse ranks with other weights, or other rows or another order of them, than the first.

    Raises:
        InputError: which rank differs, and in what.
    """
    if world_size() > 1:
        order = hashlib.sha256("\0".join(rows.ids).encode()).hexdigest()
        ranks_agree("model (weights or buffers)", weights_digest(model), "load the same checkpoint on each")
        ranks_agree(
            f"set of rows of {rows.name} (contents, ids or order)",
            rows.fingerprint + order,
            "load the same data on each",
        )
