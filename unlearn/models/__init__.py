"""Architectures by name, and users' own by ``module:function``."""

from unlearn.models.cnn import cnn
from unlearn.models.mlp import mlp
from unlearn.models.registry import build_model

__all__ = ["build_model", "cnn", "mlp"]
