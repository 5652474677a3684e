"""The epsilon estimate of the 2023 NeurIPS machine-unlearning challenge (arXiv 2406.09073, section 3).

For one row there are phi of N models that learned and unlearned it and of N that never saw it. An attack tells the two
apart with false positive rate FPR and false negative rate FNR; (epsilon, delta)-unlearning would allow no attack with

    epsilon < max(log (1 - delta - FPR) / FNR, log (1 - delta - FNR) / FPR).

The row's epsilon is the largest over the attacks: phi inside, or outside, of an interval, for every pair of thresholds.
This contains every single threshold, and the likelihood ratio of two normal distributions, whose level sets are such
intervals. An attack without an error of one kind is left out; one without any error means that the row's models can be
told apart, and epsilon is infinite. It is put at the largest value that N models can show, about log N.

Attacks are chosen and judged on the same models, so epsilon is above 0 also where nothing can be told.
:func:`epsilon_by_chance` says how far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unlearn.errors import InputError

Floats = npt.NDArray[np.float64]

BIN = 0.5


@dataclass(frozen=True)
class Epsilons:
    """Epsilon of each row.

    Attributes:
        values: (n,), at most ``cap``.
        models: N of either kind.
        cap: the largest epsilon that so many models can show; rows that are told apart without error are there.
        delta: of the definition.
    """

    values: Floats
    models: tuple[int, int]
    cap: float
    delta: float

    @property
    def quality(self) -> float:
        """The challenge's forgetting quality: mean of 2^-b, b the row's bin of width 0.5, from 0. 1 is best."""
        return float(np.mean(2.0 ** -np.floor(self.values / BIN)))

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        return {
            "median": float(np.median(self.values)),
            "mean": float(self.values.mean()),
            "largest": float(self.values.max()),
            "at_cap": int((self.values >= self.cap).sum()),
            "quality": self.quality,
            "models": list(self.models),
            "cap": self.cap,
            "delta": self.delta,
        }


def epsilons(unlearned: Floats, never: Floats, *, delta: float = 0.0) -> Epsilons:
    """Return epsilon of each row from phi of models that unlearned it and that never saw it, (N, n) each.

    Raises:
        InputError: fewer than two models of a kind, other rows, or a delta that can not be meant.

    >>> apart = epsilons(np.array([[5.0], [6.0], [7.0], [8.0]]), np.array([[1.0], [2.0], [3.0], [4.0]]))
    >>> round(apart.values[0], 4) == round(apart.cap, 4) == round(math.log(3), 4)
    True
    >>> mixed = epsilons(np.array([[5.0], [6.0], [2.5], [8.0]]), np.array([[1.0], [2.0], [3.0], [4.0]]))
    >>> round(float(mixed.values[0]), 4)                                 # FPR and FNR of 1/4: log(3/4) - log(1/4)
    1.0986
    """
    if unlearned.ndim != 2 or never.ndim != 2 or unlearned.shape[1:] != never.shape[1:]:
        raise InputError(f"phi has shapes {unlearned.shape} and {never.shape}; give (models, rows) with the same rows")
    if min(len(unlearned), len(never)) < 2:
        raise InputError(f"{len(unlearned)} and {len(never)} models show no epsilon; give at least two of each kind")
    if not 0 <= delta < 0.5:
        raise InputError(f"delta is {delta}; give a number from 0 to below 1/2")
    by_errors = _by_errors(len(never), len(unlearned), delta)
    cap = float(by_errors[1, 1])
    return Epsilons(np.minimum(_largest(unlearned, never, by_errors), cap), (len(unlearned), len(never)), cap, delta)


def epsilon_by_chance(unlearned: Floats, never: Floats, *, delta: float = 0.0, draws: int = 10, seed: int = 0) -> float:
    """Return the median epsilon over rows where both kinds are dealt out anew at random: what says nothing."""
    pooled, rng = np.concatenate([unlearned, never]), np.random.default_rng(seed)
    medians = []
    for _ in range(draws):
        dealt = pooled[rng.permutation(len(pooled))]
        found = epsilons(dealt[: len(unlearned)], dealt[len(unlearned) :], delta=delta)
        medians.append(float(np.median(found.values)))
    return float(np.mean(medians))


def _largest(unlearned: Floats, never: Floats, by_errors: Floats) -> Floats:
    """Return the largest epsilon over all intervals and their complements, (n,)."""
    pooled = np.concatenate([never, unlearned])
    order = np.argsort(pooled, axis=0, kind="stable")
    # an interval may begin and end only between different values; at other edges the last count stands
    ordered = np.take_along_axis(pooled, order, 0)
    edge = np.ones((len(pooled) + 1, pooled.shape[1]), dtype=bool)
    edge[1:-1] = ordered[1:] != ordered[:-1]
    below_never, below_unlearned = (
        np.maximum.accumulate(np.where(edge, np.pad(np.cumsum(kind, 0), ((1, 0), (0, 0))), 0), axis=0)
        for kind in (order < len(never), order >= len(never))
    )
    first, last = np.triu_indices(len(pooled) + 1, 1)
    inside_never, inside_unlearned = (below[last] - below[first] for below in (below_never, below_unlearned))
    inside = by_errors[inside_never, len(unlearned) - inside_unlearned]
    outside = by_errors[len(never) - inside_never, inside_unlearned]
    found: Floats = np.maximum(inside, outside).max(0)
    return found


def _by_errors(never: int, unlearned: int, delta: float) -> Floats:
    """Return epsilon by the numbers of false positives (of ``never``) and false negatives (of ``unlearned``)."""
    fpr, fnr = np.meshgrid(np.arange(never + 1) / never, np.arange(unlearned + 1) / unlearned, indexing="ij")
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.log(np.maximum(1 - delta - np.stack([fpr, fnr]), 0) / np.stack([fnr, fpr]))
    found: Floats = np.maximum(both.max(0), 0)
    found[(fpr == 0) | (fnr == 0)] = 0
    found[0, 0] = math.inf
    return found
