"""How well an attack's scores tell rows that were seen from rows that were not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.metrics import roc_auc_score

from unlearn.errors import InputError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rates:
    """Rates of an attack at one threshold.

    Attributes:
        auc: area under the ROC curve; ties count half.
        tpr: share of the attacked rows above the threshold.
        lower: Clopper-Pearson bound of the true positive rate, 95 % with ``upper``.
        upper: the other bound.
        fpr: share of the rows never seen above the threshold; at most what was asked for.
        fpr_upper: upper Clopper-Pearson bound of the false positive rate.
        rows: attacked rows.
        never: scores of rows never seen that the threshold comes from.
    """

    auc: float
    tpr: float
    lower: float
    upper: float
    fpr: float
    fpr_upper: float
    rows: int
    never: int


def rates(scores: Floats, never: Floats, fpr: float) -> Rates:
    """Return AUC and true positive rate at a false positive rate.

    Args:
        scores: of the attacked rows; larger is more like a member.
        never: of rows that the model in question never saw.
        fpr: false positive rate that the threshold may have, such as 0.01.

    Raises:
        InputError: an empty side, or scores that are not finite.

    >>> found = rates(np.array([0.5, 3.0, 4.0]), np.arange(0.0, 1.0, 0.01), fpr=0.01)
    >>> round(found.tpr, 3), round(found.lower, 3), round(found.upper, 3), found.fpr
    (0.667, 0.094, 0.992, 0.01)
    """
    scores, never = scores.ravel(), never.ravel()
    if not len(scores) or not len(never):
        raise InputError(f"there are {len(scores)} attacked and {len(never)} other scores; give at least one of each")
    if not (np.isfinite(scores).all() and np.isfinite(never).all()):
        raise InputError("attack scores are NaN or infinite; a model's outputs on these rows are damaged")
    threshold = threshold_at(never, fpr)
    hits, false = int((scores > threshold).sum()), int((never > threshold).sum())
    lower, upper = clopper_pearson(hits, len(scores))
    auc = roc_auc_score(np.repeat([1, 0], [len(scores), len(never)]), np.concatenate([scores, never]))
    return Rates(
        auc=float(auc),
        tpr=hits / len(scores),
        lower=lower,
        upper=upper,
        fpr=false / len(never),
        fpr_upper=clopper_pearson(false, len(never))[1],
        rows=len(scores),
        never=len(never),
    )


def threshold_at(never: Floats, fpr: float) -> float:
    """Return the smallest of these scores that at most the share ``fpr`` of them lies strictly above.

    Rows tied with the threshold are not called members, so ties never push the rate above what was asked for.

    >>> threshold_at(np.array([1.0, 2.0, 3.0, 3.0]), 0.25), threshold_at(np.array([1.0, 2.0, 3.0, 4.0]), 0.25)
    (3.0, 3.0)
    """
    if not 0 < fpr < 1:
        raise InputError(f"fpr is {fpr}; give a false positive rate above 0 and below 1, such as 0.01")
    allowed = math.floor(fpr * len(never) + 1e-9)
    return float(np.sort(never)[len(never) - 1 - allowed])


def clopper_pearson(hits: int, trials: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a share; the trials are taken as independent.

    >>> tuple(round(bound, 4) for bound in clopper_pearson(0, 20))                  # 1 - 0.025^(1/20)
    (0.0, 0.1684)
    """
    interval = stats.binomtest(hits, trials).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)
