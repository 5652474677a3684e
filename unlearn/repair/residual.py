"""How far one Newton step leaves the gradient from 0: the residual itself, and the bounds that never form it.

A head minimises J of n rows (see :mod:`unlearn.training.perturbed_logistic`); m rows leave. The step is D = H^-1 Delta
with H the Hessian of the rows left, w (n - m) included, and Delta = the gradients of the rows that leave + w m theta.
With s_i = x_i'D and r_i = l'(z_i + s_i) - l'(z_i) - l''(z_i) s_i the gradient on the rows left becomes exactly

    grad J_left(theta + D) = grad J(theta) + X'r,

for H D = Delta cancels what is linear, and the noise b is in both gradients. Five bounds on ||X'r||, each below the one
before but for the rounding of the last:

    worst case   (1/4) (n - m) ||D||^2 with ||D|| <= m (1 + w ||theta||) / (w (n - m)): nothing of the rows
                 (Theorem 1 of arXiv 1911.03030 and its batch form, where w ||theta|| <= 1 is set in)
    basic        (1/4) ||X||_2 ||D||_2 ||X D||_2                                   (its Corollary 1, gamma = 1/4)
    lipschitz    (1/2) (1 / (6 sqrt 3)) ||X||_2 ||X D||_inf ||X D||_2
    by row       ||X||_2 ||r||_2
    direct       ||X'r||_2

1/4 is a Lipschitz constant of l'', but not the least one: l''' = p (1 - p) (1 - 2 p) is at most 1 / (6 sqrt 3) = 0.0962
in size. By Taylor's theorem |r_i| <= (1/2) max |l'''| s_i^2, which is the third bound; r_i needs no bound at all, as
both slopes are at hand, which is the fourth; nor does its sum, which is the last and costs as much as X D.

One-vs-rest: the K columns are one parameter of K d numbers with one noise vector N(0, sigma^2 I) of as many. Its
residual is that of all columns stacked, so the norms of columns combine as the root of their sum of squares.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from unlearn.training import SignedRows
from unlearn.training.perturbed_logistic import ROUNDING, gradient_rounding, slope_rounding

CURVATURE_BOUND = 0.25
THIRD_DERIVATIVE_BOUND = 1 / (6 * 3**0.5)


@dataclass(frozen=True)
class ResidualBounds:
    """Upper bounds on what one Newton step adds to the norm of the gradient.

    Attributes:
        worst_case: from the counts of rows alone.
        basic: through ||D|| and ||X D||, with gamma = 1/4.
        lipschitz: through the largest and the mean square output change, with the least Lipschitz constant.
        by_row: through the exact remainder of each row.
        direct: the residual itself, with a bound on its rounding.
        rounding: what of ``direct`` is rounding.
    """

    worst_case: float
    basic: float
    lipschitz: float
    by_row: float
    direct: float
    rounding: float

    def to_dict(self) -> dict[str, float]:
        """Return the bounds by name."""
        return asdict(self)


def spectral_norm_bound(features: Tensor) -> float:
    """Return an upper bound on ||X||_2: the largest eigenvalue of X'X and all that rounding can hide, as a root.

    Forming X'X errs by at most n roundings of |X|'|X|, whose norm is at most ||X||_F^2; the symmetric eigenvalues by a
    modest multiple of d roundings of the norm, for which 10 d is set in. No power iteration: that comes from below.

    >>> bound = spectral_norm_bound(torch.tensor([[3.0, 0.0], [0.0, 4.0]]).double())
    >>> 4 <= bound < 4 + 1e-12
    True
    """
    rows, inputs = features.shape
    largest = float(torch.linalg.eigvalsh(features.T @ features)[-1])
    hidden = ROUNDING * (rows + 10 * inputs) * float(features.square().sum())
    return float((max(largest, 0.0) + hidden) ** 0.5)


def gradient_change(
    left: SignedRows, gone: SignedRows, old: Tensor, new: Tensor, weight_decay: float
) -> tuple[Tensor, float]:
    """Return grad J_left(new) - grad J(old), shape (K, d), and a bound on the norm of its rounding error.

    The noise b is in both and needs not be known. At ``new = old`` it is -Delta: what the rows that leave had added.
    """
    rise, lost = left.slopes(new) - left.slopes(old), gone.slopes(old)
    pulled = lost.T @ gone.features
    penalty = weight_decay * (len(left) * (new - old) - len(gone) * old)
    change = rise.T @ left.features - pulled + penalty
    rounding = gradient_rounding(left, rise, slope_rounding(left, old) + slope_rounding(left, new))
    rounding += gradient_rounding(gone, lost, slope_rounding(gone, old))
    return change, rounding + 8 * ROUNDING * float(penalty.norm() + pulled.norm() + change.norm())


def residual_bounds(
    left: SignedRows, gone: SignedRows, old: Tensor, new: Tensor, weight_decay: float
) -> ResidualBounds:
    """Bound what one step from ``old`` on all rows to ``new`` on the rows left adds to the gradient.

    The direct bound is computed from the two weights alone, so that it holds for whatever step was taken, with the
    error of its solve. To the others, which speak of the exact step, that error is added.

    Args:
        left: rows that stay, X; shape (n - m, d).
        gone: rows that leave, shape (m, d).
        old: weights before, shape (K, d).
        new: weights after.
        weight_decay: w.
    """
    change, rounding = gradient_change(left, gone, old, new, weight_decay)
    step = new - old
    outputs = left.features @ step.T
    remainder = left.slopes(new) - left.slopes(old) - left.curvatures(old) * outputs
    solve_error = float((change - remainder.T @ left.features).norm()) + rounding
    longest = step.norm(dim=1)
    # products of d terms, each off by at most d roundings of ||x|| ||D||
    off = ROUNDING * (left.features.shape[1] + 8) * longest
    size = outputs.abs() + off
    rest = remainder.abs() + off + slope_rounding(left, old) + slope_rounding(left, new)
    norm, squares = spectral_norm_bound(left.features), size.norm(dim=0)
    row = max(1.0, float(left.features.norm(dim=1).max()), float(gone.features.norm(dim=1).max()))
    reach = len(gone) * (row + weight_decay * old.norm(dim=1)) / (weight_decay * len(left))
    return ResidualBounds(
        worst_case=CURVATURE_BOUND * len(left) * row**3 * float(reach.square().norm()) + solve_error,
        basic=CURVATURE_BOUND * norm * float((longest * squares).norm()) + solve_error,
        lipschitz=0.5 * THIRD_DERIVATIVE_BOUND * norm * float((size.amax(0) * squares).norm()) + solve_error,
        by_row=norm * float(rest.norm()) + solve_error,
        direct=float(change.norm()) + rounding,
        rounding=rounding,
    )
