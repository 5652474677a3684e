"""Weights of a checkpoint in a module."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unlearn.checkpoint.digests import raw_bytes
from unlearn.checkpoint.reading import Checkpoint, model_layout, state_tensors
from unlearn.errors import CheckpointError, some


def load_weights(model: nn.Module | None, checkpoint: Checkpoint) -> nn.Module:
    """Return a copy of the model with the checkpoint's weights; the caller's model is left as it is.

    Args:
        model: a module of the same architecture and types; None builds it from the name and options in the file, for
            the models that come with this package. A factory of the user's own (``module:function``) is never
            imported because a file says so.
        checkpoint: what :func:`unlearn.checkpoint.read_checkpoint` returned.

    Raises:
        CheckpointError: names, types or shapes differ, or no model is given and the file does not say how to build it.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from unlearn.checkpoint import read_checkpoint, save_checkpoint
    >>> model = nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     digest = save_checkpoint(Path(folder, "a.safetensors"), model)
    ...     copied = load_weights(nn.Linear(2, 1), read_checkpoint(Path(folder, "a.safetensors")))
    >>> torch.equal(copied.weight, model.weight)
    True
    """
    own = _build(checkpoint) if model is None else copy.deepcopy(model)
    check_layout(own, checkpoint.tensors, str(checkpoint.path))
    own.load_state_dict(checkpoint.tensors)
    for name, value in own.state_dict().items():
        if not torch.equal(raw_bytes(value), raw_bytes(checkpoint.tensors[name])):
            raise CheckpointError(
                f"{name!r} is tied to another tensor in the model, and the two differ in {str(checkpoint.path)!r}; "
                "pass a model without this tie"
            )
    return own


def _build(checkpoint: Checkpoint) -> nn.Module:
    from unlearn.models import build_model

    spec, name = checkpoint.spec, str(checkpoint.path)
    if spec is None:
        raise CheckpointError(
            f"{name!r} does not say how to build its model; pass model= (on the command line --model)"
        )
    if ":" in spec["name"]:
        raise CheckpointError(
            f"{name!r} was made with your own factory {spec['name']!r}, which is not imported on a file's word; pass "
            "model= with what it returns"
        )
    return build_model(spec["name"], **spec["options"])


def check_layout(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise CheckpointError unless the tensors of the file ``name`` have the model's names, shapes and types."""
    ours = model_layout(state_tensors(model.state_dict(), f"the model ({type(model).__name__})"))
    theirs = model_layout(tensors)
    missing, unknown = [k for k in ours if k not in theirs], [k for k in theirs if k not in ours]
    if missing or unknown:
        parts = [f"the model has {some(missing)}, the file has not"] if missing else []
        parts += [f"the file has {some(unknown)}, the model has not"] if unknown else []
        raise CheckpointError(f"{name!r} does not fit the model: {'; '.join(parts)}; build the model it was saved from")
    for k, (kind, shape) in ours.items():
        if theirs[k][1] != shape:
            raise CheckpointError(
                f"{name!r} does not fit the model: {k!r} has shape {theirs[k][1]} in the file and {shape} in the "
                "model; build the model with the options it was saved with"
            )
        if theirs[k][0] != kind:
            raise CheckpointError(
                f"{name!r} does not fit the model: {k!r} is {theirs[k][0]} in the file and {kind} in the model; "
                f"convert the model first: model.to(torch.{theirs[k][0]})"
            )
