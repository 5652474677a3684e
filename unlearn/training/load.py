"""Loading a checkpoint together with its training record."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from unlearn.checkpoint import load_weights, read_checkpoint
from unlearn.training.record import TrainingRecord


def load_checkpoint(path: str | Path, model: nn.Module | None = None) -> tuple[nn.Module, TrainingRecord | None]:
    """Load a model and its training record; snapshots and row order are looked for beside the file.

    Args:
        path: a checkpoint of this tool.
        model: the architecture to load into (a copy is returned); built from the checkpoint's own description if None.

    Returns:
        The model in evaluation mode, and the record, or None where the checkpoint has none.

    Raises:
        CheckpointError: the file is damaged or does not fit the model.

    >>> import tempfile
    >>> from unlearn.checkpoint import save_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save_checkpoint(Path(folder, "a.safetensors"), nn.Linear(2, 1))
    ...     model, record = load_checkpoint(Path(folder, "a.safetensors"), nn.Linear(2, 1))
    >>> record is None
    True
    """
    checkpoint = read_checkpoint(path)
    record = None
    if checkpoint.record is not None:
        record = TrainingRecord.from_dict(checkpoint.record, folder=Path(path).parent)
    return load_weights(model, checkpoint).eval(), record
