"""One-vs-rest logistic regression with a random linear term in its objective, trained to its optimum in float64.

For each of K columns of signs y (n rows, d numbers in each)

    J(theta) = sum_i log(1 + exp(-y_i x_i'theta)) + (w n / 2) ||theta||^2 + b'theta,    b ~ N(0, sigma^2 I),

which is n times the mean loss with weight decay w, perturbed (arXiv 1911.03030, section 3). Two classes have one
column, more have one for each class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn.errors import ConvergenceError

# twice the unit roundoff of float64, so that products of (1 + rounding) stay below what is stated here
ROUNDING = torch.finfo(torch.float64).eps
STEPS = 100


@dataclass(frozen=True)
class SignedRows:
    """Rows of a linear logistic model.

    Attributes:
        features: shape (n, d), float64.
        signs: 1 where the row is in the column's class, else -1; shape (n, K).

    >>> rows = SignedRows.of(torch.eye(2).double(), torch.tensor([0, 2]), classes=3)
    >>> rows.signs.tolist()
    [[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]]
    """

    features: Tensor
    signs: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> SignedRows:
        """Return rows with the signs of their labels; of two classes, class 1 is the positive one."""
        positive = torch.ones(1, dtype=torch.long) if classes == 2 else torch.arange(classes)
        return cls(features, torch.where(labels[:, None] == positive, 1.0, -1.0).to(features.dtype))

    def __len__(self) -> int:
        return len(self.features)

    def losses(self, weight: Tensor) -> Tensor:
        """Return log(1 + exp(-y x'theta)), shape (n, K)."""
        return torch.nn.functional.softplus(-self.signs * (self.features @ weight.T))

    def slopes(self, weight: Tensor) -> Tensor:
        """Return the derivative of each loss by its output, shape (n, K)."""
        return -self.signs * torch.sigmoid(-self.signs * (self.features @ weight.T))

    def curvatures(self, weight: Tensor) -> Tensor:
        """Return the second derivative of each loss by its output, shape (n, K)."""
        p = torch.sigmoid(self.features @ weight.T)
        return p * (1 - p)

    def gradient(self, weight: Tensor) -> Tensor:
        """Return the gradient of the summed losses, shape (K, d)."""
        return self.slopes(weight).T @ self.features

    def hessian(self, curvatures: Tensor, weight_decay: float) -> Tensor:
        """Return the Hessian of one column's objective from its curvatures (n,), shape (d, d)."""
        matrix = (self.features * curvatures[:, None]).T @ self.features
        matrix.diagonal().add_(weight_decay * len(self))
        return matrix

    def solve(self, weight: Tensor, vectors: Tensor, weight_decay: float) -> Tensor:
        """Return H^-1 v for each column, H its Hessian at ``weight`` (K, d); ``vectors`` has the same shape.

        Raises:
            ConvergenceError: a Hessian is singular in float64.
        """
        curvatures = self.curvatures(weight)
        try:
            return torch.stack(
                [
                    torch.linalg.solve(self.hessian(c, weight_decay), v)
                    for c, v in zip(curvatures.T, vectors, strict=True)
                ]
            )
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ConvergenceError(
                f"the Hessian is singular in float64 with weight_decay {weight_decay:g}; use more weight decay"
            ) from error


def slope_rounding(rows: SignedRows, weight: Tensor) -> float:
    """Return a bound on the error of every computed slope (rows of length at most 1 or little above).

    A product of d terms errs by at most d roundings of ||x|| ||theta||, a slope changes by at most a quarter of that,
    and the sigmoid itself errs by a few roundings.
    """
    longest = float(rows.features.norm(dim=1).max() * weight.norm(dim=1).max())
    return ROUNDING * (0.25 * (rows.features.shape[1] + 2) * longest + 8)


def gradient_rounding(rows: SignedRows, slopes: Tensor, error: float) -> float:
    """Return a bound on the error of ``slopes.T @ features``, each slope being off by at most ``error``.

    A sum of n products errs by at most n roundings of the sum of their sizes, in any order of summation.
    """
    sizes = slopes.abs().T @ rows.features.abs()
    off = error * rows.features.abs().sum(0).norm() * slopes.shape[1] ** 0.5
    return float(ROUNDING * (len(rows) + 2) * sizes.norm() + off)


def objective_gradient(rows: SignedRows, weight: Tensor, weight_decay: float, noise: Tensor) -> tuple[Tensor, float]:
    """Return the gradient of J, shape (K, d), and a bound on the norm of its rounding error."""
    slopes = rows.slopes(weight)
    gradient = slopes.T @ rows.features + weight_decay * len(rows) * weight + noise
    error = gradient_rounding(rows, slopes, slope_rounding(rows, weight))
    added = (weight_decay * len(rows) * weight).norm() + noise.norm() + gradient.norm()
    return gradient, error + float(4 * ROUNDING * added)


def draw_noise(columns: int, inputs: int, sigma: float, seed: int) -> Tensor:
    """Return b ~ N(0, sigma^2 I), shape (columns, inputs), float64; the global generator is left alone.

    >>> bool((draw_noise(2, 3, 1.0, 0) == draw_noise(2, 3, 0.5, 0) * 2).all())
    True
    """
    generator = torch.Generator().manual_seed(seed)
    return sigma * torch.randn(columns, inputs, dtype=torch.float64, generator=generator)


def train_perturbed(rows: SignedRows, *, weight_decay: float, noise: Tensor) -> tuple[Tensor, float]:
    """Minimise J by Newton steps, until its gradient can not be told from 0.

    Args:
        rows: training rows.
        weight_decay: w > 0.
        noise: b, shape (K, d).

    Returns:
        The weights (K, d), and a bound on the norm of the gradient of J there, rounding included.

    Raises:
        ConvergenceError: the gradient does not fall to its rounding error.

    >>> rows = SignedRows.of(torch.eye(2).double(), torch.tensor([0, 1]), classes=2)
    >>> weight, residual = train_perturbed(rows, weight_decay=0.1, noise=torch.zeros(1, 2).double())
    >>> bool(weight[0, 1] == -weight[0, 0]), residual < 1e-13
    (True, True)
    """
    columns = [
        _minimise(SignedRows(rows.features, rows.signs[:, k : k + 1]), weight_decay, noise[k : k + 1])
        for k in range(rows.signs.shape[1])
    ]
    weight = torch.cat(columns)
    gradient, rounding = objective_gradient(rows, weight, weight_decay, noise)
    return weight, float(gradient.norm()) + rounding


def _minimise(rows: SignedRows, weight_decay: float, noise: Tensor) -> Tensor:
    """Return the minimiser of one column, shape (1, d)."""
    weight = torch.zeros_like(noise)

    def value(at: Tensor) -> float:
        penalty = 0.5 * weight_decay * len(rows) * at.square().sum()
        return float(rows.losses(at).sum() + penalty + (noise * at).sum())

    for _ in range(STEPS):
        gradient, rounding = objective_gradient(rows, weight, weight_decay, noise)
        size = float(gradient.norm())
        if size <= rounding:
            return weight
        step = rows.solve(weight, gradient, weight_decay)
        fall, before, length = float((gradient * step).sum()), value(weight), 1.0
        while length > 1e-6:
            tried = weight - length * step
            # near the optimum values no longer resolve a step, and gradients still do
            halved = float(objective_gradient(rows, tried, weight_decay, noise)[0].norm()) <= 0.5 * size
            if halved or value(tried) <= before - 1e-4 * length * fall:
                break
            length /= 2
        weight = tried
    raise ConvergenceError(
        f"the gradient is still {size:.1e} after {STEPS} Newton steps (rounding {rounding:.1e}); use more weight decay "
        "or less noise"
    )
