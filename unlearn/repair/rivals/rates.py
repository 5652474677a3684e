"""Learning rates that rivals are tried at."""

from __future__ import annotations

import numpy as np

from unlearn.training import TrainingRecord

RATES = (0.2, 0.4, 1.0, 2.0)


def usual_rate(record: TrainingRecord) -> float:
    """Return the median of the recorded learning rates: after a cosine schedule the last is next to nothing."""
    return float(np.median(record.rates()))


def rates_to_try(record: TrainingRecord) -> list[float]:
    """Return the grid of learning rates, the same for every rival: multiples of the recorded peak.

    >>> rates_to_try(TrainingRecord("sgd", 0.05, 480))
    [0.01, 0.02, 0.05, 0.1]
    """
    return [round(share * float(record.rates().max()), 12) for share in RATES]
