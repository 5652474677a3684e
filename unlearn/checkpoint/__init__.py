"""Checkpoints: safetensors files that say where their weights come from."""

from unlearn.checkpoint.comparing import CheckpointDiff, TensorChange, diff_checkpoints
from unlearn.checkpoint.importing import import_state_dict
from unlearn.checkpoint.parents import Rollback, rollback
from unlearn.checkpoint.reading import Checkpoint, Header, read_checkpoint, read_header, read_metadata
from unlearn.checkpoint.saving import save_checkpoint
from unlearn.checkpoint.verifying import Check, verify_checkpoint
from unlearn.checkpoint.weights import load_weights

__all__ = [
    "Check",
    "Checkpoint",
    "CheckpointDiff",
    "Header",
    "Rollback",
    "TensorChange",
    "diff_checkpoints",
    "import_state_dict",
    "load_weights",
    "read_checkpoint",
    "read_header",
    "read_metadata",
    "rollback",
    "save_checkpoint",
    "verify_checkpoint",
]
