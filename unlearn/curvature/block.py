"""The curvature of one layer: an eigenbasis and the eigenvalues in it.

A block is U diag(Lambda) U^T with U = U_S (x) U_A: vec(V) of a matrix V (o, i) is rotated to U_S^T V U_A. K-FAC
(arXiv 1503.05671, section 4.2) has Lambda = lambda_S lambda_A^T; EK-FAC (arXiv 1806.03884, eq. 10) has the mean square
of rotated gradients; a diagonal has U = 1.

Axes: g group, b sample, t position, i inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from unlearn.curvature.layers import Layer

_CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Basis:
    """Orthonormal bases of a layer's inputs and outputs, as columns; None stands for the unit vectors.

    Attributes:
        inputs: U_A, shape (g, i, i).
        outputs: U_S, shape (g, o, o).
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None

    def rotate(self, block: Tensor) -> Tensor:
        """Return U_S^T V U_A of a block (g, o, i)."""
        return _times(_times(block, self.inputs).mT, self.outputs).mT

    def rotate_back(self, block: Tensor) -> Tensor:
        """Return U_S V U_A^T, the inverse of :meth:`rotate`."""
        inverse = Basis(*(None if basis is None else basis.mT for basis in (self.inputs, self.outputs)))
        return inverse.rotate(block)

    def squared(self) -> Basis:
        """Return the squares of the bases: rotating diag(P) with them gives the diagonal of U^T diag(P) U."""
        return Basis(*(None if basis is None else basis.square() for basis in (self.inputs, self.outputs)))

    def squares(self, a: Tensor, columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return squared rotated inputs (g, b, i) and output gradients (g, b, o) of samples with one position.

        The square of a rotated gradient is their outer product, so no (b, o, i) tensor is needed, and columns add up.
        """
        a2 = self._rotated_inputs(a.squeeze(2)).square()
        d2 = _times_squared(columns[0].squeeze(2), self.outputs)
        for d in columns[1:]:
            d2 += _times_squared(d.squeeze(2), self.outputs)
        return a2, d2

    def gradients(self, a: Tensor, d: Tensor) -> Iterator[Tensor]:
        """Yield rotated gradients (g, b, o, i), a few samples at a time.

        Each basis is applied where it meets fewer rows: before the sum over positions, or after it.
        """
        g, b, t, i = a.shape
        o = d.shape[3]
        early_inputs, early_outputs = t <= o, t <= i
        sample = g * (o * i + t * (o + i)) * a.element_size()
        step = max(1, _CHUNK_BYTES // sample)
        for start in range(0, b, step):
            samples = slice(start, start + step)
            yield self._product(a[:, samples], d[:, samples], early_inputs, early_outputs)

    def outer_sum(self, a: Tensor, d: Tensor) -> Tensor:
        """Return the rotated sum of the gradients of all samples, (g, o, i), from (g, b, t, i) and (g, b, t, o).

        Each basis is applied where it meets fewer rows: to the samples, or to their sum. No (b, o, i) tensor exists.
        """
        x, y = a.flatten(1, 2), d.flatten(1, 2)
        rows = x.shape[1]
        if rows == 0:
            return a.new_zeros(len(a), d.shape[3], a.shape[3])
        return self._product(x, y, rows <= d.shape[3], rows <= a.shape[3])

    def _product(self, x: Tensor, y: Tensor, early_inputs: bool, early_outputs: bool) -> Tensor:
        """Return y^T x (g, ..., o, i), each side rotated before the product or after it."""
        if early_inputs:
            x = self._rotated_inputs(x)
        if early_outputs:
            y = _times(y, self.outputs)
        block = y.mT @ x
        if not early_inputs:
            block = self._rotated_inputs(block)
        return block if early_outputs else _times(block.mT, self.outputs).mT

    @cached_property
    def _units(self) -> Tensor | None:
        """Which inputs the leading vectors are, where these are unit vectors in all groups, shape (g, k).

        Dead inputs (a border pixel, a unit that never fires) are, and are common; a product with them is a copy.
        """
        if self.inputs is None:
            return None
        alone = ((self.inputs != 0).sum(1) == 1) & (self.inputs.sum(1) == 1)
        leading = int(alone.all(0).long().cumprod(0).sum())
        return self.inputs[:, :, :leading].abs().argmax(1) if 0 < leading < self.inputs.shape[2] else None

    def _rotated_inputs(self, x: Tensor) -> Tensor:
        """Rows of ``x`` (g, ..., i) times U_A."""
        if self.inputs is None or self._units is None:
            return _times(x, self.inputs)
        flat, units = x.flatten(1, -2), self._units
        copied = flat.gather(2, units[:, None].expand(-1, flat.shape[1], -1))
        return torch.cat([copied, flat @ self.inputs[:, :, units.shape[1] :]], 2).reshape(x.shape)


def _times(x: Tensor, basis: Tensor | None) -> Tensor:
    """Rows of ``x`` (g, ..., k) times a basis (g, k, k), as one product for each group."""
    if basis is None:
        return x
    return (x.flatten(1, -2) @ basis).reshape(x.shape)


def _times_squared(x: Tensor, basis: Tensor | None) -> Tensor:
    """Squares of ``x`` times a basis, as a tensor of their own."""
    return x.square() if basis is None else _times(x, basis).square_()


@dataclass(frozen=True)
class Block:
    """The curvature of one layer.

    Attributes:
        layer: names and shape.
        basis: the eigenbasis.
        eigenvalues: Lambda, shape (g, o, i), none negative.
        input_eigenvalues: lambda_A of the K-FAC factor A, shape (g, i); None for a diagonal.
        output_eigenvalues: lambda_S of the K-FAC factor S, shape (g, o); None for a diagonal.
        clamped: how many eigenvalues of A and S came out negative and were set to 0.
    """

    layer: Layer
    basis: Basis
    eigenvalues: Tensor
    input_eigenvalues: Tensor | None = None
    output_eigenvalues: Tensor | None = None
    clamped: int = 0

    @property
    def input_basis(self) -> Tensor | None:
        """U_A, shape (g, i, i); None for the unit vectors."""
        return self.basis.inputs

    @property
    def output_basis(self) -> Tensor | None:
        """U_S, shape (g, o, o); None for the unit vectors."""
        return self.basis.outputs

    @property
    def input_factor(self) -> Tensor | None:
        """A = U_A diag(lambda_A) U_A^T, shape (g, i, i); None for a diagonal."""
        return _factor(self.basis.inputs, self.input_eigenvalues)

    @property
    def output_factor(self) -> Tensor | None:
        """S = U_S diag(lambda_S) U_S^T, shape (g, o, o); None for a diagonal."""
        return _factor(self.basis.outputs, self.output_eigenvalues)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name; what is None is left out."""
        parts = {
            "eigenvalues": self.eigenvalues,
            "input_basis": self.basis.inputs,
            "output_basis": self.basis.outputs,
            "input_eigenvalues": self.input_eigenvalues,
            "output_eigenvalues": self.output_eigenvalues,
        }
        return {name: tensor for name, tensor in parts.items() if tensor is not None}

    def matvec(self, block: Tensor) -> Tensor:
        """Return the curvature times a block (g, o, i)."""
        return self.basis.rotate_back(self.basis.rotate(block) * self.eigenvalues)

    def solve(self, block: Tensor, damping: float) -> Tensor:
        """Return (curvature + damping)^-1 times a block (g, o, i)."""
        return self.basis.rotate_back(self.basis.rotate(block) / (self.eigenvalues + damping))

    def quadratic(self, a: Tensor, d: Tensor, damping: float) -> Tensor:
        """Return v^T (curvature + damping)^-1 v of each sample's gradient v; see :meth:`quadratic_form`."""
        return self.quadratic_form(damping)(a, d)

    def quadratic_form(self, damping: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function (a, d) -> v^T (curvature + damping)^-1 v of each sample's gradient v, for many batches.

        Args:
            damping: added to every eigenvalue.

        Returns:
            A function of inputs (g, b, t, i) and output gradients (g, b, t, o), with values (b,). With one position it
            takes three matrix products; else gradients are formed for a few samples at a time.
        """
        inverse = 1 / (self.eigenvalues + damping)
        by_coordinate = inverse.flatten(1)[:, :, None]

        def form(a: Tensor, d: Tensor) -> Tensor:
            a, d = a.to(inverse.dtype), d.to(inverse.dtype)
            if a.shape[2] == 1:
                a2, d2 = self.basis.squares(a, [d])
                return (a2 @ inverse.mT).mul_(d2).sum((0, 2))
            parts = [(v.square_().flatten(2) @ by_coordinate).sum((0, 2)) for v in self.basis.gradients(a, d)]
            return torch.cat(parts)

        return form


def _factor(basis: Tensor | None, eigenvalues: Tensor | None) -> Tensor | None:
    if eigenvalues is None:
        return None
    return eigenvalues.diag_embed() if basis is None else basis * eigenvalues[:, None] @ basis.mT
