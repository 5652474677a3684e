"""Distances between models, computed from their logits on the same rows; nothing here runs a model.

Logits are tensors or arrays of shape (rows, classes), read as float64. They are defined up to a constant per row, and
every measure is blind to it. A distance means nothing without its floor, the same measure between independent
retrains (math.md, sections 0 and 3), so :func:`measure` puts the two side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unlearn import tasks
from unlearn.errors import InputError

Array: TypeAlias = Tensor | npt.NDArray[Any]
_Distance: TypeAlias = Callable[[Tensor, Tensor], float]


def phi_error(a: Array, b: Array, labels: Array) -> float:
    """Root mean square over rows of phi(a) - phi(b), phi = log p_y / (1 - p_y) (math.md, section 0).

    Args:
        a: logits of one model, (rows, classes).
        b: logits of the other.
        labels: the *old* labels of changed rows, the given labels of kept and test rows.

    Raises:
        InputError: logits or labels that do not fit each other.

    >>> a = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    >>> round(phi_error(a, torch.zeros(2, 2), torch.tensor([0, 0])), 4)        # sqrt((3^2 + 4^2) / 2), not 3.5
    3.5355
    """
    a, b = _same_shape(a, b)
    labels = _labels(labels, a)
    return _root_mean_square(tasks.phi(a, labels) - tasks.phi(b, labels))


def kl(reference: Array, model: Array) -> float:
    """Mean over rows of KL(p_reference || p_model), in nats.

    >>> p = torch.tensor([[0.5, 0.5]])
    >>> round(kl(p.log(), torch.tensor([[0.9, 0.1]]).log()), 4)        # 0.5 log(0.5 / 0.9) + 0.5 log(0.5 / 0.1)
    0.5108
    """
    reference, model = _same_shape(reference, model)
    rows = tasks.kl_divergence(reference, model)
    return max(float(rows.mean()), 0.0)


def agreement(a: Array, b: Array) -> float:
    """Share of rows whose largest logit is at the same class.

    >>> agreement(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    0.5
    """
    a, b = _same_shape(a, b)
    return float((a.argmax(1) == b.argmax(1)).double().mean())


def accuracy(logits: Array, labels: Array) -> float:
    """Share of rows whose largest logit is at the label.

    >>> accuracy(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    0.5
    """
    z = _logits(logits)
    return float((z.argmax(1) == _labels(labels, z)).double().mean())


def change_cosine(unedited: Array, edited: Array, reference: Array) -> float:
    """Cosine between the logit changes (edited - unedited) and (reference - unedited) over all rows at once.

    The constant of each row is taken out first (the row's mean change), then all rows are one long vector. A model
    that changed nothing has no direction; its cosine is 0.

    >>> base, edit = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
    >>> round(change_cosine(base, edit, torch.tensor([[0.0, -1.0]])), 12)   # the same change, but for a constant
    1.0
    >>> change_cosine(base, base, edit)
    0.0
    """
    unedited, edited = _same_shape(unedited, edited)
    unedited, reference = _same_shape(unedited, reference)
    return _cosine(_centred(edited - unedited), _centred(reference - unedited))


@dataclass(frozen=True)
class Group:
    """Logits of several models on one group of rows (changed, kept or test).

    Attributes:
        name: what the group is called in tables.
        labels_for_accuracy: the labels a good model should predict, (rows,).
        phi_labels: the labels phi is taken at: the old labels of changed rows, else the given ones.
        unedited: logits of the model before the edit.
        edited: logits of the model after it.
        coupled: logits of the coupled retrain, or None where the original can not be reproduced.
        independent: logits of independent retrains; two or more give a floor.
        rivals: logits of other edits by name, such as fine-tuning at equal cost.
    """

    name: str
    labels_for_accuracy: Array
    phi_labels: Array
    unedited: Array
    edited: Array
    coupled: Array | None = None
    independent: Sequence[Array] = ()
    rivals: Mapping[str, Array] = field(default_factory=dict)


def measure(group: Group) -> list[dict[str, Any]]:
    """Measure every model of a group against its retrains.

    Distances are to the coupled retrain; without one, to the independent retrains together (phi error: root mean
    square over rows and retrains; the others: mean over retrains). The floor is the same measure over all pairs of
    independent retrains: for the phi error this is the spread of math.md section 0, for KL the mean over ordered
    pairs, for the cosine the mean cosine between their changes.

    Returns:
        Rows with the keys ``group``, ``measure`` (phi_error, kl, agreement, change_cosine, accuracy), ``model``
        (unedited, edited, rivals by name; for accuracy also coupled and independent, a mean), ``reference`` (coupled,
        independent, or labels), ``value``, ``floor``, ``ratio`` (value / floor). What can not be measured is None:
        the floor of fewer than two retrains, the ratio to a floor of 0, both for accuracy. For agreement and cosine
        larger is nearer, and a ratio of 1 or above is as near as retrains are.

    Raises:
        InputError: logits or labels that do not fit each other.

    >>> z = torch.tensor([[2.0, 0.0]])
    >>> group = Group("test", torch.tensor([0]), torch.tensor([0]), 3 * z, z, independent=[0.5 * z, 1.5 * z])
    >>> row = measure(group)[1]
    >>> row["measure"], row["model"], row["value"], row["floor"], row["ratio"]
    ('phi_error', 'edited', 1.0, 2.0, 0.5)
    """
    unedited = _logits(group.unedited, "unedited")
    models = {"unedited": unedited, "edited": group.edited, **group.rivals}
    if len(models) != 2 + len(group.rivals):
        raise InputError("a rival is called 'unedited' or 'edited'; give it another name")
    logits = {name: _like(z, unedited, name) for name, z in models.items()}
    retrains = [_like(z, unedited, f"independent[{k}]") for k, z in enumerate(group.independent)]
    coupled = [] if group.coupled is None else [_like(group.coupled, unedited, "coupled")]
    labels, phi_labels = _labels(group.labels_for_accuracy, unedited), _labels(group.phi_labels, unedited)

    def change(z: Tensor) -> Tensor:
        return _centred(z - unedited)

    distances: dict[str, tuple[_Distance, bool, bool]] = {  # of (reference, model); symmetric; pooled as squares
        "phi_error": (lambda a, b: phi_error(a, b, phi_labels), True, True),
        "kl": (kl, False, False),
        "agreement": (agreement, True, False),
        "change_cosine": (lambda a, b: _cosine(change(a), change(b)), True, False),
    }
    table: list[dict[str, Any]] = []

    def add(measured: str, model: str, reference: str, value: float, floor: float | None) -> None:
        ratio = value / floor if floor else None
        keys = ("group", "measure", "model", "reference", "value", "floor", "ratio")
        table.append(dict(zip(keys, (group.name, measured, model, reference, value, floor, ratio), strict=True)))

    references, kind = (coupled, "coupled") if coupled else (retrains, "independent")
    for name, (distance, symmetric, squares) in distances.items():
        pairs = combinations(retrains, 2) if symmetric else permutations(retrains, 2)
        floor = _pool([distance(a, b) for a, b in pairs], squares) if len(retrains) > 1 else None
        for model, z in logits.items() if references else ():
            add(name, model, kind, _pool([distance(reference, z) for reference in references], squares), floor)
    for model, z in logits.items():
        add("accuracy", model, "labels", accuracy(z, labels), None)
    for model, zs in (("coupled", coupled), ("independent", retrains)):
        if zs:
            add("accuracy", model, "labels", _pool([accuracy(z, labels) for z in zs], squares=False), None)
    return table


def _pool(values: list[float], squares: bool) -> float:
    x = torch.tensor(values, dtype=torch.float64)
    return _root_mean_square(x) if squares else float(x.mean())


def _root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _centred(change: Tensor) -> Tensor:
    return (change - change.mean(1, keepdim=True)).flatten()


def _cosine(a: Tensor, b: Tensor) -> float:
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths else 0.0


def _logits(z: Array, name: str = "logits") -> Tensor:
    if not isinstance(z, Tensor | np.ndarray):
        raise InputError(f"{name} is {type(z).__name__}; give a tensor or an array of shape (rows, classes)")
    t = torch.as_tensor(z).detach().to("cpu", torch.float64)
    if t.ndim != 2 or not len(t) or t.shape[1] < 2:
        raise InputError(
            f"{name} has shape {tuple(t.shape)}; give (rows, classes) with at least one row and two classes"
        )
    if not torch.isfinite(t).all():
        raise InputError(f"{name} has NaN or infinite values; the model that made them is damaged")
    return t


def _like(z: Array, other: Tensor, name: str) -> Tensor:
    t = _logits(z, name)
    if t.shape != other.shape:
        raise InputError(
            f"{name} has shape {tuple(t.shape)}, the other logits {tuple(other.shape)}; compute both on the same rows"
        )
    return t


def _same_shape(a: Array, b: Array) -> tuple[Tensor, Tensor]:
    first = _logits(a, "the first model's logits")
    return first, _like(b, first, "the second model's logits")


def _labels(labels: Array, logits: Tensor) -> Tensor:
    y = torch.as_tensor(labels).detach().cpu()
    if y.is_floating_point() or y.shape != logits.shape[:1]:
        raise InputError(f"labels are {y.dtype} of shape {tuple(y.shape)}; give {len(logits)} integers, one a row")
    y = y.long()
    if int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        raise InputError(f"labels run from {int(y.min())} to {int(y.max())}, outside the {logits.shape[1]} classes")
    return y
