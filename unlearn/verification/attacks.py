"""Attacks on the rows of a model, and the same attacks on models whose past is known.

Scores are larger the more a row looks like a member. The models that never saw the rows are scored too, each by
distributions that are fitted without it: the false positive rate of a threshold comes from there. So are the models
that learned the rows: what they show is the power of the attack.

Axes: k models, n rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unlearn.verification.likelihood_ratio import Gaussians, log_likelihood_ratio, offline_score
from unlearn.verification.signals import Signals

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """One attack's scores.

    Attributes:
        name: of the attack.
        audited: of the audited model, (n,).
        never: of models that never saw the rows, (k, n).
        known: of models that have what the attack looks for, (k, n); None where there are none.
        known_as: ``learned`` or ``unlearned``.
    """

    name: str
    audited: Floats
    never: Floats
    known: Floats | None
    known_as: str


@dataclass(frozen=True)
class Read:
    """Signals of the audited model and of the shadow models of each kind.

    Attributes:
        audited: of the audited model.
        never: of models that never saw the rows.
        learned: of models that learned them.
        unlearned: of models that learned and unlearned them; may be none.
    """

    audited: Signals
    never: list[Signals]
    learned: list[Signals]
    unlearned: list[Signals]

    def phi(self, kind: str) -> Floats:
        """Return phi of the shadow models of a kind, (k, n)."""
        return np.stack([one.phi for one in getattr(self, kind)])


def scored_attacks(read: Read) -> list[Scored]:
    """Return every attack's scores; U-LiRA where there are models that learned and unlearned.

    ``lira``, ``u-lira``, ``lira-offline``, ``loss`` and ``gradient-norm`` look for a memory: a confident model, a small
    loss, a small gradient. ``less-confident`` is the other side, phi below that of models that never saw the row, and
    ``two-sided`` the distance on either.
    """
    found = [_ratio("lira", read, "learned")]
    if read.unlearned:
        found.append(_ratio("u-lira", read, "unlearned"))
    found += [
        _offline("lira-offline", read, lambda z: z),
        _offline("less-confident", read, lambda z: -z),
        _offline("two-sided", read, np.abs),
        _plain("loss", read, lambda signals: -signals.loss),
        _plain("gradient-norm", read, lambda signals: -signals.gradient_norm),
    ]
    return found


def _ratio(name: str, read: Read, kind: str) -> Scored:
    positive, never = read.phi(kind), read.phi("never")
    fitted_positive, fitted_never = Gaussians.fit(positive), Gaussians.fit(never)
    return Scored(
        name,
        audited=log_likelihood_ratio(read.audited.phi, fitted_positive, fitted_never),
        never=np.stack([log_likelihood_ratio(one, fitted_positive, Gaussians.fit(rest)) for one, rest in _each(never)]),
        known=np.stack([log_likelihood_ratio(one, Gaussians.fit(rest), fitted_never) for one, rest in _each(positive)]),
        known_as=kind,
    )


def _offline(name: str, read: Read, side: Callable[[Floats], Floats]) -> Scored:
    never = read.phi("never")
    fitted = Gaussians.fit(never)
    return Scored(
        name,
        audited=side(offline_score(read.audited.phi, fitted)),
        never=np.stack([side(offline_score(one, Gaussians.fit(rest))) for one, rest in _each(never)]),
        known=side(offline_score(read.phi("learned"), fitted)),
        known_as="learned",
    )


def _plain(name: str, read: Read, score: Callable[[Signals], Floats]) -> Scored:
    return Scored(
        name,
        audited=score(read.audited),
        never=np.stack([score(one) for one in read.never]),
        known=np.stack([score(one) for one in read.learned]),
        known_as="learned",
    )


def _each(phis: Floats) -> list[tuple[Floats, Floats]]:
    """Return each model's phi and those of the others."""
    return [(phis[k], np.delete(phis, k, 0)) for k in range(len(phis))]
