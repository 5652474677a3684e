"""Curvature: layer taps, K-FAC and EK-FAC factors, exact Gauss-Newton products, conjugate gradients, factor files."""

from unlearn.curvature.block import Basis, Block
from unlearn.curvature.conjugate_gradient import CGResult, conjugate_gradient
from unlearn.curvature.curvature import Curvature
from unlearn.curvature.digest import weights_digest
from unlearn.curvature.fit import fit_curvature
from unlearn.curvature.gauss_newton import GaussNewton, gauss_newton, loss_gradient
from unlearn.curvature.layers import Layer, find_layers
from unlearn.curvature.per_sample import layer_gradients
from unlearn.curvature.store import load_curvature
from unlearn.curvature.taps import Taps, tap
from unlearn.curvature.vectors import Vector, add_scaled, dot, norm, zeros_like

__all__ = [
    "Basis",
    "Block",
    "CGResult",
    "Curvature",
    "GaussNewton",
    "Layer",
    "Taps",
    "Vector",
    "add_scaled",
    "conjugate_gradient",
    "dot",
    "find_layers",
    "fit_curvature",
    "gauss_newton",
    "layer_gradients",
    "load_curvature",
    "loss_gradient",
    "norm",
    "tap",
    "weights_digest",
    "zeros_like",
]
