"""The ratio r of a verdict with its bounds.

r = distance(model, references) / distance(reference, reference), where a distance is the root mean square of
differences of phi over rows and references, or pairs of references (math.md, section 5).

Bounds. Rows and references are resampled apart, and log r has the variance of both:
log r -+ sqrt((t_K s_references)^2 + (t_n s_rows)^2), where s_references is the delete-one jackknife over references
(leaving one out of both distances at once), s_rows the standard deviation over bootstrap draws of the n rows, times
sqrt(n / (n - 1)), and t_K and t_n the 95 % quantiles of Student's t with K - 1 and n - 1 degrees of freedom: each
deviation is known as well as there are references, or rows. One quantile of K - 1 degrees for both is wider than need
be where rows vary by themselves. Welch and Satterthwaite's degrees of freedom are narrower still, and let through more
false passes where references are many and rows few. A
percentile bootstrap over both is not used: a draw that picks one reference K times has no floor (one draw in nine for
K = 3), and without those its bounds are too narrow. Two references have one difference and no jackknife: s_references
is then that of a single squared normal number, which decides only extreme cases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from unlearn.errors import InputError

Floats: TypeAlias = npt.NDArray[np.float64]

_MOST_REFERENCES = 100  # no one trains more, so no more are suggested


@dataclass(frozen=True)
class Ratio:
    """r of one model on one group of rows.

    Attributes:
        r: the ratio.
        references: number of references K.
        s_references: standard deviation of log r by the choice of references.
        s_rows: the same by the choice of rows.
        rows: number of rows.
    """

    r: float
    references: int
    s_references: float
    s_rows: float
    rows: int

    def width(self, references: int) -> float:
        """Half the width of log r's bounds, were there so many references."""
        shrunk = self.s_references * math.sqrt(self.references / references)
        by_rows = t95(self.rows - 1) * self.s_rows if self.rows > 1 else 0.0
        return math.hypot(t95(references - 1) * shrunk, by_rows)

    @property
    def lower(self) -> float:
        """One-sided 95 % bound; 0 for one reference."""
        return 0.0 if self.references == 1 else self.r * math.exp(-self.width(self.references))

    @property
    def upper(self) -> float:
        """One-sided 95 % bound; infinite for one reference."""
        width = math.inf if self.references == 1 else self.width(self.references)
        return self.r * math.exp(width) if width < 500 else math.inf

    def row(self) -> tuple[float | None, float | None, float | None]:
        """Return r, lower and upper; None for what is not known."""
        if self.references == 1:
            return None, None, None
        return self.r, self.lower, self.upper if math.isfinite(self.upper) else None

    def more_references(self, tolerance: float) -> int | None:
        """How many more references would put the tolerance outside the bounds, if any number would."""
        gap = abs(math.log(self.r / tolerance)) if self.r > 0 else math.inf
        for references in range(self.references + 1, _MOST_REFERENCES + 1):
            if self.width(references) < gap:
                return references - self.references
        return None


def ratios_of(name: str, models: Floats, references: Floats, seed: int, draws: int) -> list[Ratio]:
    """Return r of each model.

    Args:
        name: of the group, for messages and the draws.
        models: phi of the models, (models, rows).
        references: phi of the references, (K, rows).
        seed: of the draws.
        draws: of the bootstrap over rows.

    Raises:
        InputError: two references are the same.
    """
    # k l references, m models (edited, unedited), i rows
    count = len(references)
    to_models = (models[:, None] - references) ** 2  # m k i
    between = np.stack([((references - one) ** 2).mean(1) for one in references])  # k l
    if count == 1:
        return [Ratio(math.nan, 1, math.inf, math.inf, references.shape[1]) for _ in models]
    same = np.argwhere(np.triu(between == 0, 1))
    if len(same):
        k, l = same[0]  # noqa: E741
        raise InputError(
            f"references {k} and {l} are the same on {name} rows; independent retrains need different seeds"
        )
    floor_rows = 2 * references.var(0, ddof=1)  # mean over pairs of squared differences
    distances = to_models.mean(2)  # m k
    others = [np.delete(np.arange(count), k) for k in range(count)]
    resampled = _row_means(
        np.vstack([to_models.mean(1), floor_rows]), np.random.default_rng([seed, *name.encode()]), draws
    )

    ratios = []
    for m in range(len(models)):
        r = math.sqrt(distances[m].mean() / floor_rows.mean())
        s_references = math.sqrt(0.5)  # of half the log of one squared normal number
        if count > 2:
            left_out = [distances[m, kept].mean() for kept in others]
            left_floor = [between[np.ix_(kept, kept)].sum() / ((count - 1) * (count - 2)) for kept in others]
            logs = 0.5 * np.log(np.divide(left_out, left_floor))
            s_references = math.sqrt((count - 1) * logs.var())
        with np.errstate(divide="ignore", invalid="ignore"):
            rows = 0.5 * np.log(resampled[:, m] / resampled[:, -1])
        n = references.shape[1]
        s_rows = float(rows.std()) * math.sqrt(n / max(n - 1, 1)) if np.isfinite(rows).all() else math.inf
        ratios.append(Ratio(r, count, s_references, s_rows, n))
    return ratios


def _row_means(values: Floats, rng: np.random.Generator, draws: int) -> Floats:
    """Means of each series over rows drawn with replacement, (draws, series)."""
    n = values.shape[1]
    block = max(1, 2_000_000 // n)
    means = []
    for start in range(0, draws, block):
        size = min(block, draws - start)
        rows = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(rows.ravel(), minlength=size * n).reshape(size, n)
        means.append(counts @ values.T / n)
    return np.concatenate(means)


@cache
def t95(freedom: int) -> float:
    """Return the 95 % quantile of Student's t."""
    return float(stats.t.ppf(0.95, freedom))
