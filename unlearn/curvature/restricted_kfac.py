"""The steps of :mod:`unlearn.curvature.restricted` for whole units and Kronecker factors, in closed form.

With H_d = B (x) C the damped factors of a layer, R its selected units and G its part of the vector, a matrix,

    gif        (B^2)[R, R]^-1 (B G)_R C^-1      = pinv(B[:, R]) G C^-1
    frozen     B[R, R]^-1 G_R C^-1
    projected  (B^-1 G)_R C^-1
    full       B^-1 G C^-1

Layers do not see each other. Axes: g group, i inputs, o outputs, u units of all groups (g times o), k selected units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from unlearn.curvature.curvature import Curvature
from unlearn.curvature.damped_factors import DampedFactors, damped_factors
from unlearn.curvature.restricted import Method, RestrictedStep
from unlearn.curvature.vectors import Vector, add_scaled, norm
from unlearn.errors import InputError, did_you_mean


def restricted_kfac_step(
    curvature: Curvature,
    vector: Vector,
    units: Mapping[str, Tensor] | None = None,
    *,
    damping: float,
    method: Method = "gif",
) -> RestrictedStep:
    """Return the step of the selected units for a gradient, on :func:`unlearn.curvature.damped_factors`.

    Args:
        curvature: of kind ``kfac`` or ``ekfac`` (whose own eigenvalues are not used).
        vector: g, of the covered parameters.
        units: those of each layer, counted over all groups, as of :func:`unlearn.curvature.common_units`; layers
            without an entry stay as they are. None for ``full``.
        damping: d, with the weight decay added to it.
        method: ``gif``, ``frozen``, ``projected`` or ``full``.

    Returns:
        The step, without products, and its residual ||H_d step - g|| / ||g||.

    Raises:
        InputError: an unknown method, units missing or given to ``full``, a layer without Kronecker factors, or a
            damping so small that the solve fails.

    >>> from torch import nn
    >>> from unlearn.curvature.fit import fit_curvature
    >>> model = nn.Linear(2, 2, bias=False)
    >>> curvature = fit_curvature(model, (torch.eye(2), torch.tensor([0, 1])))
    >>> g = {"weight": torch.ones(2, 2)}
    >>> found = restricted_kfac_step(curvature, g, {"": torch.tensor([1])}, damping=0.1)
    >>> found.step["weight"][0].tolist(), bool(found.step["weight"][1].any())
    ([0.0, 0.0], True)
    """
    if method not in get_args(Method):
        raise InputError(f"unknown method {method!r}; {did_you_mean(method, get_args(Method))}")
    if (units is None) != (method == "full"):
        raise InputError(
            f"method {method!r} {'freezes nothing; leave out the units' if units else 'moves units; give them'}"
        )
    operator = damped_factors(curvature, damping)
    step: Vector = {}
    for name, block in curvature.blocks.items():
        factors = DampedFactors.of(block, damping)
        part = block.layer.block(vector)
        whitening = factors.whitening.double()
        diagonal = whitening.shape[1] != whitening.shape[2]
        right = part.double() * whitening.square() if diagonal else part.double() @ whitening @ whitening.mT
        if units is None:
            found = factors.inverse @ right
        else:
            chosen = torch.as_tensor(units.get(name, []), dtype=torch.long, device=part.device).flatten()
            found = _of_units(factors, right, chosen, method)
        step |= {key: value.to(vector[key]) for key, value in block.layer.vector(found).items()}
    step = {name: step[name] for name in vector}
    size = norm(vector)
    residual = norm(add_scaled(operator.matvec(step), -1.0, vector)) / size if size > 0 else 0.0
    return RestrictedStep(step, 0, residual)


def _of_units(factors: DampedFactors, right: Tensor, chosen: Tensor, method: Method) -> Tensor:
    """Return the step of the chosen units (k,), 0 elsewhere, for G C^-1, shape (g, o, i)."""
    if method == "gif":
        rows, matrix = (factors.output_factor @ right).flatten(0, 1), factors.whole_square
    elif method == "frozen":
        rows, matrix = right.flatten(0, 1), factors.whole
    else:
        rows, matrix = (factors.inverse @ right).flatten(0, 1), None
    found = torch.zeros_like(rows)
    if matrix is None or not len(chosen):
        found[chosen] = rows[chosen]
    else:
        found[chosen] = torch.cholesky_solve(rows[chosen], factors.root(matrix[chosen[:, None], chosen]))
    return found.reshape(right.shape)
