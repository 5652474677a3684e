"""What a shift of Gaussian noise hides: the residual that epsilon, delta and sigma allow.

A residual u moves the noise b ~ N(0, sigma^2 I) by u. N(0, sigma^2 I) and N(u, sigma^2 I) can be told apart with odds
of at most e^epsilon but for a probability of

    delta(epsilon) = Phi(a / 2 - epsilon / a) - e^epsilon Phi(-a / 2 - epsilon / a),    a = ||u|| / sigma

and that is exact (1805.06530, theorem 8). Theorem 4 of 1911.03030 asks for ||u|| <= sigma epsilon / sqrt(2 log(1.5 /
delta)) instead: sufficient for moderate epsilon, there 1.1 to 2.5 times smaller than need be, and too large for large
ones (at delta 1e-4 from epsilon 9 on). The exact form is used.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from unlearn.errors import InputError

LARGEST_EPSILON = 50.0


def shift_delta(shift: float, epsilon: float) -> float:
    """Return the least delta with which a shift by ``shift`` standard deviations is (epsilon, delta) hidden.

    >>> round(shift_delta(0.2, 0.0), 4)  # the total variation distance, 2 Phi(a / 2) - 1
    0.0797
    """
    if shift <= 0:
        return 0.0
    part = shift / 2 - epsilon / shift, -shift / 2 - epsilon / shift
    return max(0.0, float(ndtr(part[0]) - math.exp(epsilon + log_ndtr(part[1]))))


def largest_shift(epsilon: float, delta: float) -> float:
    """Return the largest shift, in standard deviations, that is (epsilon, delta) hidden, rounded down.

    Raises:
        InputError: epsilon or delta is not allowed.

    >>> round(largest_shift(1.0, 1e-4), 4), round(theorem_shift(1.0, 1e-4), 4)
    (0.3139, 0.228)
    """
    if not 0 < epsilon <= LARGEST_EPSILON:
        raise InputError(f"epsilon is {epsilon}; give a number above 0, at most {LARGEST_EPSILON:g} (1 is usual)")
    if not 0 < delta < 1:
        raise InputError(f"delta is {delta}; give a number between 0 and 1, well below 1 / rows (1e-4 is usual)")
    found = float(brentq(lambda a: shift_delta(a, epsilon) - delta, 1e-12, 100.0, xtol=1e-14, rtol=1e-13))
    return found * (1 - 1e-9)


def theorem_shift(epsilon: float, delta: float) -> float:
    """Return what Theorem 4 of 1911.03030 allows, in standard deviations; shown beside the exact value."""
    return epsilon / math.sqrt(2 * math.log(1.5 / delta))


def least_epsilon(shift: float, delta: float) -> float:
    """Return the least epsilon with which a shift is (epsilon, delta) hidden: what was spent.

    >>> least_epsilon(1e-5, 1e-4), round(least_epsilon(0.3139, 1e-4), 3)
    (0.0, 1.0)
    """
    if shift_delta(shift, 0.0) <= delta:
        return 0.0
    high = 1.0
    while shift_delta(shift, high) > delta:
        high *= 2
    return float(brentq(lambda epsilon: shift_delta(shift, epsilon) - delta, 0.0, high, xtol=1e-12))
