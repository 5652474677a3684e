"""Edits that bring a model to where training on changed data would have led, and the rivals."""

from unlearn.repair.apply import apply_changes, relabel, remove
from unlearn.repair.changes import Changes
from unlearn.repair.chosen_layers import chosen_parameters
from unlearn.repair.edit import Cost, Edit
from unlearn.repair.newton import Step
from unlearn.repair.rivals import fine_tune, plain_replay

__all__ = [
    "Changes",
    "Cost",
    "Edit",
    "Step",
    "apply_changes",
    "chosen_parameters",
    "fine_tune",
    "plain_replay",
    "relabel",
    "remove",
]
