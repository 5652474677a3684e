"""Who pays for an edit: accuracy and distances by class, and by groups that the user names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from unlearn.errors import RowNotFoundError, some
from unlearn.verification.distances import accuracy, kl, phi_error, read_labels
from unlearn.verification.measures import Group


def measure_subgroups(group: Group, ids: Sequence[str], named: Mapping[str, str]) -> list[dict[str, Any]]:
    """Measure the edited model on the parts of a group of rows, those made worse first.

    A part is made worse where the edited model's accuracy is below the one-sided 95 % prediction limit of one further
    retrain, mean - t s sqrt(1 + 1/K) over K >= 2 independent retrains, where s is at least one row. One part in twenty
    that is no worse looks so by chance.

    Args:
        group: logits of all models on the rows.
        ids: of the rows.
        named: name of the user's group by row id; other rows are in none.

    Returns:
        For each class (of the labels phi is taken at) and each named group that has rows here, the keys ``group``,
        ``kind`` (class, named), ``part``, ``rows``, ``unedited``, ``edited``, ``independent`` (accuracies, the last a
        mean), ``spread``, ``change`` (edited - independent, or - unedited without retrains), ``phi_error``,
        ``phi_floor``, ``kl`` (root mean square and mean over the independent retrains, or to the coupled one), and
        ``worse``. What can not be measured is None.
    """
    logits = group.logits()
    labels = read_labels(group.phi_labels, logits.edited)
    wanted = read_labels(group.labels_for_accuracy, logits.edited)
    parts = [("class", str(c), labels == c) for c in sorted(set(labels.tolist()))]
    names = np.array([named.get(row, "") for row in ids])
    parts += [("named", name, labels.new_tensor(names == name).bool()) for name in sorted({*names.tolist()} - {""})]

    def row(kind: str, part: str, rows: Tensor) -> dict[str, Any]:
        here = logits.map(lambda z: z[rows])
        right = here.map(lambda z: accuracy(z, wanted[rows]))
        retrained = list(right.independent)
        mean = float(np.mean(retrained)) if retrained else None
        spread = float(np.std(retrained, ddof=1)) if len(retrained) > 1 else None
        before = right.unedited if mean is None else mean
        references = here.independent or ([] if here.coupled is None else [here.coupled])
        errors = [phi_error(z, here.edited, labels[rows]) for z in references]
        pairs = [
            phi_error(a, b, labels[rows]) for k, a in enumerate(here.independent) for b in here.independent[k + 1 :]
        ]
        count = int(rows.sum())
        return {
            "group": group.name,
            "kind": kind,
            "part": part,
            "rows": count,
            "unedited": right.unedited,
            "edited": right.edited,
            "independent": mean,
            "spread": spread,
            "change": None if before is None else right.edited - before,
            "phi_error": _root_mean_square(errors),
            "phi_floor": _root_mean_square(pairs),
            "kl": float(np.mean([kl(z, here.edited) for z in references])) if references else None,
            "worse": None if spread is None else right.edited < _limit(retrained, count),
        }

    found = [row(*part) for part in parts]
    return sorted(found, key=lambda one: (not one["worse"], one["change"] if one["change"] is not None else 0.0))


def _limit(values: Sequence[float], rows: int) -> float:
    count = len(values)
    spread = max(float(np.std(values, ddof=1)), 1 / rows)
    return float(np.mean(values)) - float(stats.t.ppf(0.95, count - 1)) * spread * math.sqrt(1 + 1 / count)


def _root_mean_square(values: Sequence[float]) -> float | None:
    return float(np.sqrt(np.mean(np.square(values)))) if values else None


def check_groups(named: Mapping[str, str], ids: set[str]) -> None:
    """Refuse named groups with rows that are not there.

    Raises:
        RowNotFoundError: ids that are in none of the rows.
    """
    missing = [row for row in named if row not in ids]
    if missing:
        raise RowNotFoundError(
            f"{len(missing)} of {len(named)} rows of the named groups are neither training nor test rows: "
            f"{some(map(repr, missing))}"
        )
