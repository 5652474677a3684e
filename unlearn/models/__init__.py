"""Architectures by name, and users' own by ``module:function``."""

from unlearn.models.cnn import cnn
from unlearn.models.denoiser import Denoiser, denoiser, mixed, noised_rows, sample_images
from unlearn.models.linear import LinearHead, linear
from unlearn.models.mlp import mlp
from unlearn.models.registry import build_model
from unlearn.models.tinynet import tinynet

__all__ = [
    "Denoiser",
    "LinearHead",
    "build_model",
    "cnn",
    "denoiser",
    "linear",
    "mixed",
    "mlp",
    "noised_rows",
    "sample_images",
    "tinynet",
]
