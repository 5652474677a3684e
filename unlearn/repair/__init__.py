"""Edits that bring a model to where training on changed data would have led, and the rivals."""

from unlearn.repair.apply import apply_changes, relabel, remove
from unlearn.repair.calibration import Calibration, calibrate_damping
from unlearn.repair.certified import CertifiedHead, Guarantee, Removal, train_certified_head
from unlearn.repair.certified_rows import check_certified
from unlearn.repair.chain import EditChain, KeptFactors
from unlearn.repair.changes import Changes
from unlearn.repair.chosen_layers import chosen_parameters
from unlearn.repair.class_removal import drop_outputs, remove_class
from unlearn.repair.drift import DRIFT_LIMIT, Drift
from unlearn.repair.edit import Cost, Edit
from unlearn.repair.newton import Step
from unlearn.repair.output_cut import OutputCut, cut_outputs
from unlearn.repair.restricted_edit import restricted_edit
from unlearn.repair.rivals import RIVALS, Rival, RivalEdit

__all__ = [
    "DRIFT_LIMIT",
    "RIVALS",
    "Calibration",
    "CertifiedHead",
    "Changes",
    "Cost",
    "Drift",
    "Edit",
    "EditChain",
    "Guarantee",
    "KeptFactors",
    "OutputCut",
    "Removal",
    "Rival",
    "RivalEdit",
    "Step",
    "apply_changes",
    "calibrate_damping",
    "check_certified",
    "chosen_parameters",
    "cut_outputs",
    "drop_outputs",
    "relabel",
    "remove",
    "remove_class",
    "restricted_edit",
    "train_certified_head",
]
