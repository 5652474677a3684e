"""Edits that bring a model to where training on changed data would have led, and the rivals."""

from unlearn.repair.apply import apply_changes, relabel, remove
from unlearn.repair.changes import Changes
from unlearn.repair.chosen_layers import chosen_parameters
from unlearn.repair.edit import Cost, Edit
from unlearn.repair.newton import Step
from unlearn.repair.rivals import RIVALS, Rival, RivalEdit

__all__ = [
    "RIVALS",
    "Changes",
    "Cost",
    "Edit",
    "Rival",
    "RivalEdit",
    "Step",
    "apply_changes",
    "chosen_parameters",
    "relabel",
    "remove",
]
