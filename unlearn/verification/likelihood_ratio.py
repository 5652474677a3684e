"""Likelihood-ratio attacks on single rows: LiRA (arXiv 2112.03570) and U-LiRA (arXiv 2403.01218).

Each row has its own normal distributions of phi: over models that learned the row, over models that never saw it, and
for U-LiRA over models that learned and then unlearned it. A score is larger the more the audited model looks like one
that learned (or unlearned) the row.

Axes: k models, n rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from unlearn.errors import InputError

Floats = npt.NDArray[np.float64]

ENOUGH_FOR_OWN_SPREAD = 64


@dataclass(frozen=True)
class Gaussians:
    """A normal distribution of phi for each row.

    Attributes:
        mean: (n,).
        std: (n,), above 0.
    """

    mean: Floats
    std: Floats

    @classmethod
    def fit(cls, phis: Floats, *, shared: bool | None = None) -> Gaussians:
        """Fit to phi of k models, (k, n); variances have k - 1 in the denominator.

        Args:
            phis: one row of numbers for each model.
            shared: one standard deviation for all rows, the root of the mean variance; by default below 64 models,
                where a row's own is too uncertain (the paper's global variance).

        Raises:
            InputError: fewer than two models, or all alike.

        >>> Gaussians.fit(np.array([[0.0, 5.0], [2.0, 9.0]]), shared=False).std.round(3).tolist()
        [1.414, 2.828]
        >>> Gaussians.fit(np.array([[0.0, 5.0], [2.0, 9.0]])).std.round(3).tolist()     # sqrt((2 + 8) / 2)
        [2.236, 2.236]
        """
        if len(phis) < 2:
            raise InputError(f"{len(phis)} models show no spread of phi; give at least two of each kind")
        variance = phis.var(0, ddof=1)
        if shared is None:
            shared = len(phis) < ENOUGH_FOR_OWN_SPREAD
        if shared:
            variance = np.full_like(variance, variance.mean())
        if not (variance > 0).all():
            raise InputError("models of one kind give the same phi; shadow models need different seeds")
        return cls(phis.mean(0), np.sqrt(variance))

    def log_density(self, phi: Floats) -> Floats:
        """Return log N(phi; mean, std^2)."""
        found: Floats = stats.norm.logpdf(phi, self.mean, self.std)
        return found


def log_likelihood_ratio(phi: Floats, positive: Gaussians, never: Gaussians) -> Floats:
    """Return log N(phi; positive) - log N(phi; never), (n,).

    With models that learned the rows this is LiRA's online attack (algorithm 1 of 2112.03570), with models that learned
    and unlearned them U-LiRA.

    >>> one, zero = Gaussians(np.array([1.0]), np.array([1.0])), Gaussians(np.array([0.0]), np.array([1.0]))
    >>> log_likelihood_ratio(np.array([2.0]), one, zero).tolist()                       # 2^2 / 2 - 1^2 / 2
    [1.5]
    """
    return positive.log_density(phi) - never.log_density(phi)


def offline_score(phi: Floats, never: Gaussians) -> Floats:
    """Return (phi - mean) / std among models that never saw the row, (n,): LiRA's offline attack.

    The paper's score 1 - Pr[Z > phi] is the normal distribution function of it: the same order, and no ties far out.
    """
    found: Floats = (phi - never.mean) / never.std
    return found


def two_sided_p(phi: Floats, never: Floats) -> Floats:
    """Return for each row how likely a model that never saw it is at least so far from the others, on either side.

    The k models that never saw it, phi (k, n), predict another one: (phi - mean) / (s sqrt(1 + 1/k)) has Student's t
    distribution of k - 1 degrees of freedom where phi is normal. A plug-in normal, as in LiRA, would call rows
    conspicuous far too often with few models.

    >>> two_sided_p(np.array([0.0, 4.0]), np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])).round(3).tolist()
    [1.0, 0.074]
    """
    k = len(never)
    fitted = Gaussians.fit(never, shared=False)
    t = np.abs(phi - fitted.mean) / (fitted.std * np.sqrt(1 + 1 / k))
    found: Floats = 2 * stats.t.sf(t, k - 1)
    return found


def calibrated_p(phi: Floats, never: Floats) -> Floats:
    """Return :func:`two_sided_p` of each row, ranked among those of the models that never saw the rows.

    Phi is not quite normal, and its tails would flag rows of innocent models. So each of the k models, left out, gives
    p-values against the others; a row's p-value is its rank (1 + how many are as small) / (1 + their number). The
    smallest that k models on n rows can show is 1 / (1 + k n).

    Raises:
        InputError: fewer than three models.
    """
    if len(never) < 3:
        raise InputError(f"{len(never)} models that never saw the rows can not be ranked; give at least three")
    own = [two_sided_p(never[k], np.delete(never, k, 0)) for k in range(len(never))]
    unseen = np.sort(np.concatenate(own))
    found: Floats = (1 + np.searchsorted(unseen, two_sided_p(phi, never), "right")) / (1 + len(unseen))
    return found
