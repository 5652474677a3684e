"""Held-out rows as the reference of changed rows: how would phi of such a row be, had training not seen it?

A kind is a pair of classes: the old label y, at which phi is taken, and the class c that the row looks like. For a
rightly labelled row both are the same. A mislabelled row is compared with held-out rows of class c, their phi taken at
the same wrong label y: held-out rows *labelled* y would be far too confident, and every removal of label errors would
seem to forget too much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from unlearn.data import Rows
from unlearn.errors import InputError, some
from unlearn.repair import Changes
from unlearn.tasks import phi

Floats = npt.NDArray[np.float64]
Kind = tuple[int, int]

BOUND = float(stats.norm.ppf(0.95))


def kinds_of(changed: Rows, changes: Changes, looks_like: Mapping[str, int] | None = None) -> list[Kind]:
    """Return (old label, class it looks like) of each changed row.

    Args:
        changed: changed rows, at their old labels.
        changes: a new label is what a relabelled row looks like.
        looks_like: the same for other rows; a row that is named nowhere looks like its old label.

    Raises:
        InputError: a class that the data does not have.

    >>> rows = Rows.from_tensors(torch.zeros(3, 1), torch.tensor([0, 1, 1]))
    >>> kinds_of(rows, Changes(removed=("0", "1"), relabelled={"2": 0}), {"0": 1})
    [(0, 1), (1, 1), (1, 0)]
    """
    given = {**(looks_like or {}), **changes.relabelled}
    kinds = [
        (label, int(given.get(row, label))) for row, label in zip(changed.ids, changed.labels.tolist(), strict=True)
    ]
    outside = [kind[1] for kind in kinds if changed.classes is None or not 0 <= kind[1] < changed.classes]
    if outside:
        raise InputError(
            f"looks_like has class {outside[0]}; the classes of {changed.name} are 0..{(changed.classes or 0) - 1}"
        )
    return kinds


@dataclass(frozen=True)
class HeldOutPhi:
    """Phi of held-out rows by kind.

    Attributes:
        by_kind: phi of the held-out rows of class c at label y, under (y, c).
    """

    by_kind: Mapping[Kind, Floats]

    @classmethod
    def of(cls, logits: Tensor, held_out: Rows, kinds: list[Kind]) -> HeldOutPhi:
        """Take phi from the model's logits on the held-out rows, (h, classes).

        Raises:
            InputError: no held-out row is of a class that is needed.
        """
        found: dict[Kind, Floats] = {}
        for label, looks in dict.fromkeys(kinds):
            here = (held_out.labels == looks).nonzero().flatten()
            if len(here):
                found[label, looks] = phi(logits[here], torch.full((len(here),), label)).numpy()
        missing = sorted({looks for label, looks in kinds if (label, looks) not in found})
        if missing:
            raise InputError(
                f"no held-out row is of class {some(missing)}, which changed rows look like; give held-out rows of "
                "every such class, or leave those changed rows out"
            )
        return cls(found)

    def shares(self, values: Floats, kinds: list[Kind]) -> Floats:
        """Return the share of held-out rows of its kind that are below each value; ties count half, (m,).

        >>> held = HeldOutPhi({(0, 0): np.array([0.0, 1.0, 1.0, 2.0])})
        >>> held.shares(np.array([1.0, 5.0]), [(0, 0), (0, 0)]).tolist()
        [0.5, 1.0]
        """
        found = np.empty(len(values))
        for kind in dict.fromkeys(kinds):
            here = [i for i, one in enumerate(kinds) if one == kind]
            found[here] = _shares_below(self.by_kind[kind], values[here])
        return found

    @property
    def own_shares(self) -> Floats:
        """Shares of the held-out rows among their own kind: what rows that were never seen would show."""
        return np.concatenate([self.shares(values, [kind] * len(values)) for kind, values in self.by_kind.items()])


@dataclass(frozen=True)
class Difference:
    """Two samples held against each other.

    Attributes:
        auc: share of pairs in which the changed row has the larger value, ties counted half; 1/2 if there is no
            difference.
        lower: one-sided 95 % bound of the auc, with the variance of DeLong et al. (Biometrics 44, 1988).
        upper: the other bound.
        p_place: two-sided Mann-Whitney test: is one sample larger?
        p_form: two-sided Kolmogorov-Smirnov test: is there any difference?
        changed: changed rows.
        held_out: held-out rows.
    """

    auc: float
    lower: float
    upper: float
    p_place: float
    p_form: float
    changed: int
    held_out: int

    @property
    def p(self) -> float:
        """Of both tests together: twice the smaller, at most 1 (Bonferroni)."""
        return min(1.0, 2 * min(self.p_place, self.p_form))


def difference(changed: Floats, held_out: Floats) -> Difference:
    """Hold changed rows against held-out ones, (m,) and (h,). The rows are taken as independent draws of one kind.

    Raises:
        InputError: fewer than two values on a side.

    >>> found = difference(np.array([0.9, 0.95, 0.99]), np.linspace(0, 1, 100))
    >>> round(found.auc, 2), found.p < 0.05
    (0.95, True)
    """
    if min(len(changed), len(held_out)) < 2:
        raise InputError(
            f"{len(changed)} changed and {len(held_out)} held-out rows can not be compared; give two of each at least"
        )
    u = stats.mannwhitneyu(changed, held_out, alternative="two-sided")
    ks = stats.ks_2samp(changed, held_out)
    auc = float(u.statistic) / (len(changed) * len(held_out))
    below, above = _shares_below(held_out, changed), _shares_below(changed, held_out)
    width = BOUND * float(np.sqrt(below.var(ddof=1) / len(changed) + above.var(ddof=1) / len(held_out)))
    bounds = max(0.0, auc - width), min(1.0, auc + width)
    return Difference(auc, *bounds, float(u.pvalue), float(ks.pvalue), len(changed), len(held_out))


def _shares_below(sample: Floats, values: Floats) -> Floats:
    """Return the share of the sample that is below each value; ties count half."""
    ordered = np.sort(sample)
    twice = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    shares: Floats = twice / (2 * len(ordered))
    return shares


def matched_rows(held_out: Rows, kinds: list[Kind], seed: int) -> Rows:
    """Return one held-out row of its kind for each changed row, at the changed row's old label, drawn by the seed."""
    rng = np.random.default_rng(seed)
    of_class = {c: (held_out.labels == c).nonzero().flatten().numpy() for c in {looks for _, looks in kinds}}
    chosen = torch.tensor([int(rng.choice(of_class[looks])) for _, looks in kinds])
    inputs, _ = held_out.batch(chosen)
    labels = torch.tensor([label for label, _ in kinds])
    return Rows.from_tensors(inputs, labels, classes=held_out.classes, name=f"held-out rows of {held_out.name}")
