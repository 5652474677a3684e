"""Fitting the blocks: K-FAC factors and their eigenbases, then the eigenvalues in a basis.

    A = (1/n) sum_b sum_t a a^T,    S = (1/n) sum_b (1/T) sum_t sum_c d d^T      (arXiv 1602.01407, eq. 27 and 28)
    Lambda = (1/n) sum_b sum_c (U_S^T G_bc U_A)^2,  G_bc = sum_t d a^T           (arXiv 1806.03884, eq. 10)

Gradients are those of the summed loss, so the size of a batch changes nothing. Of a linear layer or an embedding over
a sequence, a position that no output depends on (padding, what a classifier does not read) has d = 0; it is left out of
A and of T, so that rows padded to another length have the same factors.

Axes: g group, b sample, t position, i inputs, o outputs, c Fisher column.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from unlearn.curvature.block import Basis
from unlearn.curvature.fisher import FisherStream
from unlearn.errors import InputError
from unlearn.ranks import owners, sum_over_ranks, this_rank

_JITTER = (0.0, 1e-12, 1e-9, 1e-6)
_PANEL = 128


def kronecker_factors(stream: FisherStream) -> dict[str, tuple[Tensor, Tensor]]:
    """Return (A, S) of each layer, of shapes (g, i, i) and (g, o, o), in one pass; of diagonal ones the diagonal."""
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for layer in stream.layers:
        g, o, i = layer.shape
        A = stream.zeros(layer, g, i) if layer.unit_inputs else stream.zeros(layer, g, i, i)
        S = stream.zeros(layer, g, o) if layer.unit_outputs else stream.zeros(layer, g, o, o)
        factors[layer.name] = A, S
    for layer, inputs, columns in stream:
        A, S = factors[layer.name]
        if layer.kind in ("Linear", "Embedding") and inputs.shape[2] > 1:
            inputs, columns = _used_positions(inputs, columns)
        _add_second_moment(A, inputs.flatten(1, 2))
        for column in columns:
            _add_second_moment(S, column.flatten(1, 2), 1 / inputs.shape[2])
    for pair in factors.values():
        sum_over_ranks(*pair)
        for factor in pair:
            factor.div_(len(stream.rows))
            if factor.ndim == 3:
                _mirror(factor)
    return factors


def _used_positions(inputs: Tensor, columns: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return inputs that are 0 where no column is, and columns scaled so that 1/T is by the positions that are left."""
    used = torch.stack([(column != 0).any(3, keepdim=True) for column in columns]).any(0).to(inputs.dtype)
    scale = (inputs.shape[2] / used.sum(2, keepdim=True).clamp(min=1)).sqrt()
    return inputs * used, [column * scale for column in columns]


def _add_second_moment(total: Tensor, x: Tensor, scale: float = 1.0) -> None:
    """Add scale x^T x in place, for x (g, rows, k): panels of columns from the diagonal down, or the diagonal alone."""
    if total.ndim == 2:
        total.add_(x.square().sum(1), alpha=scale)
        return
    for start in range(0, x.shape[2], _PANEL):
        panel = slice(start, start + _PANEL)
        total[:, start:, panel].baddbmm_(x[:, :, start:].mT, x[:, :, panel], alpha=scale)


def _mirror(total: Tensor) -> None:
    """Fill what :func:`_add_second_moment` left out, above the panels."""
    for start in range(0, total.shape[1], _PANEL):
        stop = start + _PANEL
        total[:, start:stop, stop:] = total[:, stop:, start:stop].mT


def mean_squares(stream: FisherStream, bases: dict[str, Basis]) -> dict[str, Tensor]:
    """Return Lambda of each layer in its basis, shape (g, o, i), in one pass."""
    found = {layer.name: stream.zeros(layer, *layer.shape) for layer in stream.layers}
    for layer, a, columns in stream:
        basis, total = bases[layer.name], found[layer.name]
        if a.shape[2] == 1:
            a2, d2 = basis.squares(a, columns)
            total.baddbmm_(_without_noise(d2).mT, _without_noise(a2))
        else:
            for d in columns:
                for block in basis.gradients(a, d):
                    total += block.square_().sum(1)
    sum_over_ranks(*found.values())
    return {name: total.div_(len(stream.rows)) for name, total in found.items()}


def _without_noise(squares: Tensor) -> Tensor:
    """Set what is below the squared rounding error of the largest square to 0, in place; see :func:`without_noise`."""
    cutoff = float(squares.max()) * torch.finfo(squares.dtype).eps ** 2
    return F.threshold(squares, cutoff, 0.0, inplace=True)


def eigenbases(factors: dict[str, Tensor]) -> list[tuple[Tensor, Tensor | None, int]]:
    """Return :func:`eigenbasis` of each factor, the factors shared out among the ranks; a diagonal is its own.

    Args:
        factors: of shape (g, k, k) or (g, k), by what to call them in messages; taken out as they are used.

    Returns:
        In their order eigenvalues (g, k), eigenvectors (g, k, k) (None for the unit vectors) and how many were clamped.
    """
    costs = [float(factor.shape[0] * factor.shape[-1] ** 3) * (factor.ndim - 2) for factor in factors.values()]
    found: list[tuple[Tensor, Tensor | None, int]] = []
    for what, owner in zip(list(factors), owners(costs), strict=True):
        factor = factors.pop(what)
        if factor.ndim == 2:
            found.append((factor, None, 0))
        elif owner == this_rank():
            found.append(eigenbasis(factor, what))
        else:
            found.append((factor.new_zeros(factor.shape[:2]), torch.zeros_like(factor), 0))
    counts = torch.tensor([clamped for _, _, clamped in found], device="cpu")
    sum_over_ranks(counts, *(part for values, vectors, _ in found if vectors is not None for part in (values, vectors)))
    return [(values, vectors, count) for (values, vectors, _), count in zip(found, counts.tolist(), strict=True)]


def eigenbasis(factor: Tensor, what: str) -> tuple[Tensor, Tensor, int]:
    """Return eigenvalues (g, k), eigenvectors (g, k, k) and how many negative eigenvalues were set to 0.

    Decomposed in float64, whatever the type of the factor; a decomposition that fails is tried again with a little
    added to the diagonal.

    Raises:
        InputError: the factor is not finite, or no decomposition was found.

    >>> values, vectors, clamped = eigenbasis(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), "A")
    >>> values.tolist(), clamped
    ([[1.0, 2.0]], 0)
    """
    if not torch.isfinite(factor).all():
        raise InputError(f"{what} is not finite: activations or gradients overflow; pass dtype=torch.float64")
    pairs = [_decompose(matrix, what) for matrix in factor.double()]
    values, vectors = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    clamped = int((values < 0).sum())
    return values.clamp_(min=0).to(factor.dtype), vectors.to(factor.dtype), clamped


def _decompose(matrix: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of one matrix (k, k); unit vectors that it maps to 0 are taken out first.

    Dead inputs (a border pixel, a unit that never fires) are common, and the time goes with the cube of the size.
    """
    alive = matrix.diagonal() > 0
    dead, live = (~alive).nonzero().squeeze(1), alive.nonzero().squeeze(1)
    small = matrix[live][:, live]
    shift = torch.eye(len(live), dtype=matrix.dtype, device=matrix.device) * matrix.diagonal().mean()
    for jitter in _JITTER:
        try:
            found, basis = torch.linalg.eigh(small + jitter * shift)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        values, vectors = matrix.new_zeros(len(matrix)), torch.zeros_like(matrix)
        values[len(dead) :] = found - jitter * matrix.diagonal().mean()
        vectors[dead, : len(dead)] = torch.eye(len(dead), dtype=matrix.dtype, device=matrix.device)
        vectors[live, len(dead) :] = basis
        return values, vectors
    raise InputError(f"no eigendecomposition of {what} was found; skip the layer or pass dtype=torch.float64")
