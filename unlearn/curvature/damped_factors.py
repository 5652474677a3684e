"""K-FAC with its damping shared between the two factors, which keeps the damped matrix a Kronecker product.

    H_d = B (x) C,    C = A + pi sqrt(d),    B = S + sqrt(d) / pi,    pi^2 = (tr A / dim A) / (tr S / dim S)

(arXiv 1503.05671, section 6.3). It is not S (x) A + d: products of the factors with sqrt(d) are added.

Axes: g group, i inputs, o outputs, u units of all groups (g times o).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from unlearn.curvature.block import Block
from unlearn.curvature.curvature import Curvature, check_damping
from unlearn.errors import InputError


def damped_eigenvalues(block: Block, damping: float) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of C, shape (g, i), and of B, shape (g, o), in float64, all above 0.

    A basis that is None with eigenvalues given is a diagonal factor.

    Raises:
        InputError: the block has no Kronecker factors, or an eigenvalue stays 0.
    """
    lambda_A, lambda_S = block.input_eigenvalues, block.output_eigenvalues
    if lambda_A is None or lambda_S is None:
        raise InputError(
            f"GIF needs Kronecker factors, which the curvature of layer {block.layer.name!r} lacks; fit kind='ekfac' "
            "or 'kfac', or skip the layer"
        )
    lambda_A, lambda_S = lambda_A.double(), lambda_S.double()
    mean_A, mean_S = lambda_A.mean(1, keepdim=True), lambda_S.mean(1, keepdim=True)
    pi = torch.where((mean_A > 0) & (mean_S > 0), mean_A / mean_S, 1.0).sqrt()
    inputs = lambda_A + pi * math.sqrt(damping)
    outputs = lambda_S + math.sqrt(damping) / pi
    if not ((inputs > 0).all() and (outputs > 0).all()):
        raise InputError(
            f"the factors of layer {block.layer.name!r} have eigenvalues of 0, so they have no inverse; give "
            "damping > 0"
        )
    return inputs, outputs


@dataclass(frozen=True)
class DampedFactors:
    """B and C of one layer, and what steps and scores of some units are made of.

    Attributes:
        layer: name of the layer.
        inputs: eigenvalues of C, shape (g, i), in float64.
        outputs: eigenvalues of B, shape (g, o), in float64.
        input_basis: of C, as columns, shape (g, i, i); None where C is diagonal.
        output_basis: of B, as columns, shape (g, o, o), in float64; None where B is diagonal.
        dtype: of the curvature.
    """

    layer: str
    inputs: Tensor
    outputs: Tensor
    input_basis: Tensor | None
    output_basis: Tensor | None
    dtype: torch.dtype

    @classmethod
    def of(cls, block: Block, damping: float) -> DampedFactors:
        """Return the factors of a block.

        Raises:
            InputError: the block has no Kronecker factors, or an eigenvalue stays 0.
        """
        inputs, outputs = damped_eigenvalues(block, damping)
        U_A, U_S = block.basis.inputs, block.basis.outputs
        output_basis = None if U_S is None else U_S.double()
        return cls(block.layer.name, inputs, outputs, U_A, output_basis, block.eigenvalues.dtype)

    @cached_property
    def whitening(self) -> Tensor:
        """C^-1/2 up to a rotation, as columns, shape (g, i, i); its diagonal, (g, 1, i), where C is diagonal."""
        roots = self.inputs.rsqrt()[:, None].to(self.dtype)
        return roots if self.input_basis is None else self.input_basis * roots

    @cached_property
    def output_factor(self) -> Tensor:
        """B, shape (g, o, o)."""
        return self._function(self.outputs)

    @cached_property
    def inverse(self) -> Tensor:
        """B^-1, shape (g, o, o)."""
        return self._function(1 / self.outputs)

    @cached_property
    def whole(self) -> Tensor:
        """B of all units, block-diagonal in the groups, shape (u, u)."""
        return torch.block_diag(*self.output_factor)  # type: ignore[no-any-return, no-untyped-call]

    @cached_property
    def whole_square(self) -> Tensor:
        """B^2 of all units, shape (u, u)."""
        return torch.block_diag(*(self.output_factor @ self.output_factor))  # type: ignore[no-any-return, no-untyped-call]

    def root(self, square: Tensor) -> Tensor:
        """Return the Cholesky factor of a part of ``whole`` or ``whole_square``, or of several.

        Raises:
            InputError: it is singular to rounding.
        """
        root: Tensor
        root, info = torch.linalg.cholesky_ex(square)
        if info.any():
            raise InputError(f"the selected units of layer {self.layer!r} are dependent to rounding; give more damping")
        return root

    def _function(self, eigenvalues: Tensor) -> Tensor:
        if self.output_basis is None:
            return torch.diag_embed(eigenvalues)
        return self.output_basis * eigenvalues[:, None] @ self.output_basis.mT


def damped_factors(curvature: Curvature, damping: float) -> Curvature:
    """Return H_d = B (x) C of every layer as a curvature of kind ``kfac``; see :mod:`unlearn.curvature.damped_factors`.

    The damping is inside, so its ``solve`` takes 0: it is the operator that :func:`unlearn.detect.gif_scores` uses.

    Args:
        curvature: of kind ``kfac`` or ``ekfac`` (whose own eigenvalues are not used).
        damping: d, with the weight decay added to it.

    Raises:
        InputError: the damping is negative or not finite, a layer has no Kronecker factors, or an eigenvalue stays 0.

    >>> from torch import nn
    >>> from unlearn.curvature.fit import fit_curvature
    >>> model = nn.Linear(2, 2, bias=False)
    >>> H = damped_factors(fit_curvature(model, (torch.eye(2), torch.tensor([0, 1]))), damping=0.1)
    >>> v = {"weight": torch.ones(2, 2)}
    >>> torch.allclose(H.matvec(H.solve(v, damping=0.0))["weight"], v["weight"], atol=1e-5)
    True
    """
    check_damping(damping)
    blocks = curvature.per_layer(lambda block: _damped(block, damping))
    return replace(curvature, blocks=blocks, options={**curvature.options, "kind": "kfac", "factor_damping": damping})


def _damped(block: Block, damping: float) -> Block:
    dtype = block.eigenvalues.dtype
    C, B = damped_eigenvalues(block, damping)
    return replace(
        block,
        eigenvalues=(B[:, :, None] * C[:, None]).to(dtype),
        input_eigenvalues=C.to(dtype),
        output_eigenvalues=B.to(dtype),
    )
