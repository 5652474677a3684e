"""Every model of a group of rows measured against its retrains, with the floor beside each distance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from unlearn.errors import InputError
from unlearn.verification import distances
from unlearn.verification.distances import Array

Kind = TypeVar("Kind")
Other = TypeVar("Other")
Between = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Compared(Generic[Kind]):
    """What there is of each model that is compared: the model, its logits, its activations or its weights.

    Attributes:
        edited: of the model in question.
        unedited: of the model before the edit; None where there is none.
        coupled: of the coupled retrain; None where the original can not be reproduced.
        independent: of independent retrains; two or more give a floor.
        rivals: of other edits by name, such as fine-tuning at equal cost.
    """

    edited: Kind
    unedited: Kind | None = None
    coupled: Kind | None = None
    independent: Sequence[Kind] = ()
    rivals: Mapping[str, Kind] = field(default_factory=dict)

    def map(self, function: Callable[[Kind], Other]) -> Compared[Other]:
        """Return what a function gives of each."""

        def of(one: Kind | None) -> Other | None:
            return None if one is None else function(one)

        return Compared(
            function(self.edited),
            of(self.unedited),
            of(self.coupled),
            [function(one) for one in self.independent],
            {name: function(one) for name, one in self.rivals.items()},
        )

    def contenders(self) -> dict[str, Kind]:
        """Return what was not retrained, by name.

        Raises:
            InputError: a rival has the name of another model.
        """
        before = {} if self.unedited is None else {"unedited": self.unedited}
        taken = [name for name in self.rivals if name in ("unedited", "edited", "coupled", "independent")]
        if taken:
            raise InputError(f"a rival is called {taken[0]!r}; give it another name")
        return {**before, "edited": self.edited, **self.rivals}


@dataclass(frozen=True)
class Group:
    """Logits of several models on one group of rows (changed, kept or test).

    Attributes:
        name: what the group is called in tables.
        labels_for_accuracy: the labels a good model should predict, (rows,).
        phi_labels: the labels phi is taken at: the old labels of changed rows, else the given ones.
        unedited: logits of the model before the edit, or None.
        edited: logits of the model after it.
        coupled: logits of the coupled retrain, or None where the original can not be reproduced.
        independent: logits of independent retrains; two or more give a floor.
        rivals: logits of other edits by name, such as fine-tuning at equal cost.
        activations: of the same models in front of their last layer, on these rows or some of them; or None.
    """

    name: str
    labels_for_accuracy: Array
    phi_labels: Array
    unedited: Array | None
    edited: Array
    coupled: Array | None = None
    independent: Sequence[Array] = ()
    rivals: Mapping[str, Array] = field(default_factory=dict)
    activations: Compared[Array] | None = None

    def logits(self) -> Compared[Tensor]:
        """Return all logits, checked against each other, in float64.

        Raises:
            InputError: logits or labels that do not fit.
        """
        edited = distances.read_logits(self.edited, "edited")

        def read(z: Array, name: str) -> Tensor:
            return distances.read_logits_like(z, edited, name)

        found = Compared(
            edited,
            None if self.unedited is None else read(self.unedited, "unedited"),
            None if self.coupled is None else read(self.coupled, "coupled"),
            [read(z, f"independent[{k}]") for k, z in enumerate(self.independent)],
            {name: read(z, name) for name, z in self.rivals.items()},
        )
        found.contenders()
        return found


def measure(group: Group) -> list[dict[str, Any]]:
    """Measure every model of a group against its retrains.

    Distances are to the coupled retrain; without one, to the independent retrains together (phi error: root mean
    square over rows and retrains; the others: mean over retrains). The floor is the same measure over all pairs of
    independent retrains: for the phi error this is the spread of math.md section 0, for KL the mean over ordered
    pairs, for the cosine the mean cosine between their changes.

    What a model has by itself (accuracy, loss, mean phi, calibration error) has as its floor the mean difference
    between two independent retrains, and as its ratio the difference from the reference in floors.

    Returns:
        Rows with the keys ``group``, ``measure`` (phi_error, kl, jensen_shannon, agreement, change_cosine, cka;
        accuracy, loss, phi, calibration), ``model`` (unedited, edited, rivals by name; for what a model has by itself
        also coupled and independent, a mean), ``reference`` (coupled, independent, or labels), ``value``, ``floor``,
        ``ratio`` (value / floor), ``independent`` and ``spread`` (mean and standard deviation over the independent
        retrains: of the distance to each, or of what each has by itself). What can not be measured is None: the floor
        and spread of fewer than two retrains, the ratio to a floor of 0. For agreement, cosine and CKA larger is
        nearer, and a ratio of 1 or above is as near as retrains are.

    Raises:
        InputError: logits or labels that do not fit each other.

    >>> z = torch.tensor([[2.0, 0.0]])
    >>> group = Group("test", torch.tensor([0]), torch.tensor([0]), 3 * z, z, independent=[0.5 * z, 1.5 * z])
    >>> row = measure(group)[1]
    >>> row["measure"], row["model"], row["value"], row["floor"], row["ratio"], row["spread"]
    ('phi_error', 'edited', 1.0, 2.0, 0.5, 0.0)
    """
    logits = group.logits()
    table = _between("phi_error", lambda a, b: distances.phi_error(a, b, group.phi_labels), logits, squares=True)
    table += _between("kl", distances.kl, logits, symmetric=False)
    table += _between("jensen_shannon", distances.jensen_shannon, logits)
    table += _between("agreement", distances.agreement, logits)
    if logits.unedited is not None:
        before = logits.unedited
        table += _between("change_cosine", lambda a, b: distances.change_cosine(before, a, b), logits)
    if group.activations is not None:
        table += _between("cka", distances.linear_cka, group.activations)
    for name, by_itself, labels in (
        ("accuracy", distances.accuracy, group.labels_for_accuracy),
        ("loss", distances.loss, group.labels_for_accuracy),
        ("phi", distances.mean_phi, group.phi_labels),
        ("calibration", distances.calibration_error, group.labels_for_accuracy),
    ):
        table += _by_itself(name, logits.map(lambda z, f=by_itself, y=labels: f(z, y)))  # type: ignore[misc]
    return [{"group": group.name, **row} for row in table]


def measure_weights(weights: Compared[Mapping[str, Tensor]]) -> list[dict[str, Any]]:
    """Return the distances between weights, in the form of :func:`measure` without a group."""
    return _between("weight_distance", distances.weight_distance, weights)


def _between(
    name: str, distance: Between, models: Compared[Any], *, symmetric: bool = True, squares: bool = False
) -> list[dict[str, Any]]:
    retrains, coupled = models.independent, models.coupled
    pairs = combinations(retrains, 2) if symmetric else permutations(retrains, 2)
    floor = _pool([distance(a, b) for a, b in pairs], squares)
    kind = "independent" if coupled is None else "coupled"
    rows = []
    for model, one in models.contenders().items() if retrains or coupled is not None else ():
        to_each = [distance(retrain, one) for retrain in retrains]
        mean = _pool(to_each, squares)
        value = mean if coupled is None else distance(coupled, one)
        rows.append(_row(name, model, kind, value, floor, value, mean, _spread(to_each)))
    return rows


def _by_itself(name: str, values: Compared[float]) -> list[dict[str, Any]]:
    retrains = list(values.independent)
    floor = _pool([abs(a - b) for a, b in combinations(retrains, 2)])
    mean, spread = _pool(retrains), _spread(retrains)
    target = mean if values.coupled is None else values.coupled
    found = values.contenders()
    if values.coupled is not None:
        found["coupled"] = values.coupled
    if mean is not None:
        found["independent"] = mean
    return [
        _row(name, model, "labels", value, floor, None if target is None else abs(value - target), mean, spread)
        for model, value in found.items()
    ]


def _row(
    name: str,
    model: str,
    reference: str,
    value: float | None,
    floor: float | None,
    away: float | None,
    mean: float | None,
    spread: float | None,
) -> dict[str, Any]:
    return {
        "measure": name,
        "model": model,
        "reference": reference,
        "value": value,
        "floor": floor,
        "ratio": away / floor if floor and away is not None else None,
        "independent": mean,
        "spread": spread,
    }


def _pool(values: Sequence[float], squares: bool = False) -> float | None:
    if not values:
        return None
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.square().mean().sqrt()) if squares else float(x.mean())


def _spread(values: Sequence[float]) -> float | None:
    return float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else None
