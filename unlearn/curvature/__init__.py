"""Curvature: layer taps, K-FAC and EK-FAC factors, exact Gauss-Newton products, solvers, factor files."""

from unlearn.curvature.block import Basis, Block
from unlearn.curvature.conjugate_gradient import CGResult, conjugate_gradient
from unlearn.curvature.curvature import Curvature
from unlearn.curvature.damped_factors import damped_factors
from unlearn.curvature.dense import DenseSolver
from unlearn.curvature.digest import weights_digest
from unlearn.curvature.fit import fit_curvature
from unlearn.curvature.gauss_newton import GaussNewton, gauss_newton, loss_gradient
from unlearn.curvature.layers import Layer, find_layers
from unlearn.curvature.lissa import LissaResult, LissaSolver
from unlearn.curvature.make_solver import make_solver
from unlearn.curvature.per_sample import layer_gradients
from unlearn.curvature.power_iteration import TopEigenvalue, top_eigenvalue
from unlearn.curvature.restricted import RestrictedStep, restricted_step
from unlearn.curvature.row_sampling import curvature_rows
from unlearn.curvature.solver import ConjugateGradientSolver, IdentitySolver, Solver
from unlearn.curvature.store import load_curvature
from unlearn.curvature.taps import Taps
from unlearn.curvature.units import common_units, unit_selection
from unlearn.curvature.vectors import Vector, add_scaled, dot, norm, zeros_like

__all__ = [
    "Basis",
    "Block",
    "CGResult",
    "ConjugateGradientSolver",
    "Curvature",
    "DenseSolver",
    "GaussNewton",
    "IdentitySolver",
    "Layer",
    "LissaResult",
    "LissaSolver",
    "RestrictedStep",
    "Solver",
    "Taps",
    "TopEigenvalue",
    "Vector",
    "add_scaled",
    "common_units",
    "conjugate_gradient",
    "curvature_rows",
    "damped_factors",
    "dot",
    "find_layers",
    "fit_curvature",
    "gauss_newton",
    "layer_gradients",
    "load_curvature",
    "loss_gradient",
    "make_solver",
    "norm",
    "restricted_step",
    "top_eigenvalue",
    "unit_selection",
    "weights_digest",
    "zeros_like",
]
