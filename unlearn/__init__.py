"""Find wrong training rows, edit them out of a trained model, and verify the edit against retraining.

Everything a script needs is here; names are loaded when first used, so ``import unlearn`` and the command line start
without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlearn.checkpoint import save_checkpoint as save_checkpoint
    from unlearn.curvature import Curvature as Curvature
    from unlearn.curvature import conjugate_gradient as conjugate_gradient
    from unlearn.curvature import curvature_rows as curvature_rows
    from unlearn.curvature import fit_curvature as fit_curvature
    from unlearn.curvature import gauss_newton as gauss_newton
    from unlearn.curvature import load_curvature as load_curvature
    from unlearn.data import Rows as Rows
    from unlearn.data import add_duplicates as add_duplicates
    from unlearn.data import add_outliers as add_outliers
    from unlearn.data import add_trigger as add_trigger
    from unlearn.data import as_rows as as_rows
    from unlearn.data import corrupt_inputs as corrupt_inputs
    from unlearn.data import load_data as load_data
    from unlearn.data import mapped_rows as mapped_rows
    from unlearn.data import pair_noise as pair_noise
    from unlearn.data import symmetric_noise as symmetric_noise
    from unlearn.data import with_trigger as with_trigger
    from unlearn.detect import Scores as Scores
    from unlearn.detect import ScoreShards as ScoreShards
    from unlearn.detect import datamodel_retrains as datamodel_retrains
    from unlearn.detect import duplicate_scores as duplicate_scores
    from unlearn.detect import estimate_cutoff as estimate_cutoff
    from unlearn.detect import explain as explain
    from unlearn.detect import found_curve as found_curve
    from unlearn.detect import gif_exact as gif_exact
    from unlearn.detect import gif_scores as gif_scores
    from unlearn.detect import gradient_sketches as gradient_sketches
    from unlearn.detect import harm as harm
    from unlearn.detect import influence as influence
    from unlearn.detect import layer_harm as layer_harm
    from unlearn.detect import layer_self_influence as layer_self_influence
    from unlearn.detect import linear_datamodeling_score as linear_datamodeling_score
    from unlearn.detect import margin_trajectory as margin_trajectory
    from unlearn.detect import out_of_sample as out_of_sample
    from unlearn.detect import out_of_sample_logits as out_of_sample_logits
    from unlearn.detect import outlier_gradients as outlier_gradients
    from unlearn.detect import score_shards as score_shards
    from unlearn.detect import self_influence as self_influence
    from unlearn.detect import suggest_labels as suggest_labels
    from unlearn.detect import top_influence as top_influence
    from unlearn.detect import tracin as tracin
    from unlearn.models import build_model as build_model
    from unlearn.precision import half_precision as half_precision
    from unlearn.repair import CertifiedHead as CertifiedHead
    from unlearn.repair import Changes as Changes
    from unlearn.repair import Edit as Edit
    from unlearn.repair import EditChain as EditChain
    from unlearn.repair import apply_changes as apply_changes
    from unlearn.repair import calibrate_damping as calibrate_damping
    from unlearn.repair import relabel as relabel
    from unlearn.repair import remove as remove
    from unlearn.repair import remove_class as remove_class
    from unlearn.repair import restricted_edit as restricted_edit
    from unlearn.repair import train_certified_head as train_certified_head
    from unlearn.tasks import OwnLoss as OwnLoss
    from unlearn.training import LightningRecorder as LightningRecorder
    from unlearn.training import Recorder as Recorder
    from unlearn.training import TrainerRecorder as TrainerRecorder
    from unlearn.training import TrainingRecord as TrainingRecord
    from unlearn.training import TrainSettings as TrainSettings
    from unlearn.training import Trajectory as Trajectory
    from unlearn.training import load_checkpoint as load_checkpoint
    from unlearn.training import train as train
    from unlearn.training import train_to_optimum as train_to_optimum
    from unlearn.verification import Evidence as Evidence
    from unlearn.verification import MembershipAudit as MembershipAudit
    from unlearn.verification import Shadows as Shadows
    from unlearn.verification import Verdict as Verdict
    from unlearn.verification import compare_models as compare_models
    from unlearn.verification import membership_audit as membership_audit
    from unlearn.verification import verify as verify
    from unlearn.verification.evidence import evidence as evidence

_ROOMS = {
    "unlearn.checkpoint": ("save_checkpoint",),
    "unlearn.curvature": (
        "Curvature",
        "conjugate_gradient",
        "curvature_rows",
        "fit_curvature",
        "gauss_newton",
        "load_curvature",
    ),
    "unlearn.data": (
        "Rows",
        "add_duplicates",
        "add_outliers",
        "add_trigger",
        "as_rows",
        "corrupt_inputs",
        "load_data",
        "mapped_rows",
        "pair_noise",
        "symmetric_noise",
        "with_trigger",
    ),
    "unlearn.detect": (
        "ScoreShards",
        "Scores",
        "datamodel_retrains",
        "duplicate_scores",
        "estimate_cutoff",
        "explain",
        "found_curve",
        "gif_exact",
        "gif_scores",
        "gradient_sketches",
        "harm",
        "influence",
        "layer_harm",
        "layer_self_influence",
        "linear_datamodeling_score",
        "margin_trajectory",
        "out_of_sample",
        "out_of_sample_logits",
        "outlier_gradients",
        "score_shards",
        "self_influence",
        "suggest_labels",
        "top_influence",
        "tracin",
    ),
    "unlearn.models": ("build_model",),
    "unlearn.precision": ("half_precision",),
    "unlearn.repair": (
        "CertifiedHead",
        "Changes",
        "Edit",
        "EditChain",
        "apply_changes",
        "calibrate_damping",
        "relabel",
        "remove",
        "remove_class",
        "restricted_edit",
        "train_certified_head",
    ),
    "unlearn.tasks": ("OwnLoss",),
    "unlearn.training": (
        "LightningRecorder",
        "Recorder",
        "TrainSettings",
        "TrainerRecorder",
        "TrainingRecord",
        "Trajectory",
        "load_checkpoint",
        "train",
        "train_to_optimum",
    ),
    "unlearn.verification": (
        "Evidence",
        "MembershipAudit",
        "Shadows",
        "Verdict",
        "compare_models",
        "evidence",
        "membership_audit",
        "verify",
    ),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'unlearn' has no attribute {name!r}")
    found: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
