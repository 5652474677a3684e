"""Deterministic training, the training record, snapshots and replay."""

from unlearn.training.fresh_weights import fresh_weights
from unlearn.training.lightning_callback import LightningRecorder
from unlearn.training.load import load_checkpoint
from unlearn.training.optimum import train_to_optimum
from unlearn.training.order import BatchOrder
from unlearn.training.perturbed_logistic import SignedRows, draw_noise, train_perturbed
from unlearn.training.placement import snapshot_epochs
from unlearn.training.record import TrainingRecord, optimizer_of
from unlearn.training.recorder import TRAJECTORY_FILE, Recorder
from unlearn.training.replay import compressed_rates, replay
from unlearn.training.settings import TrainSettings
from unlearn.training.snapshots import Snapshot
from unlearn.training.successor import Successor
from unlearn.training.trainer import run_steps, train
from unlearn.training.trainer_callback import TrainerRecorder
from unlearn.training.trajectory import Trajectory

__all__ = [
    "TRAJECTORY_FILE",
    "BatchOrder",
    "LightningRecorder",
    "Recorder",
    "SignedRows",
    "Snapshot",
    "Successor",
    "TrainSettings",
    "TrainerRecorder",
    "TrainingRecord",
    "Trajectory",
    "compressed_rates",
    "draw_noise",
    "fresh_weights",
    "load_checkpoint",
    "optimizer_of",
    "replay",
    "run_steps",
    "snapshot_epochs",
    "train",
    "train_perturbed",
    "train_to_optimum",
]
