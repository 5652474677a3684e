"""Distances between models, computed from what they put out on the same rows; nothing here runs a model.

Logits are tensors or arrays of shape (rows, classes), read as float64. They are defined up to a constant per row, and
every measure of them is blind to it. A distance means nothing without its floor, the same measure between independent
retrains (math.md, sections 0 and 3): :mod:`unlearn.verification.measures` puts the two side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from unlearn import tasks
from unlearn.errors import InputError

Array: TypeAlias = Tensor | npt.NDArray[Any]


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
    labels = read_labels(labels, a)
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
    z = read_logits(logits)
    return float((z.argmax(1) == read_labels(labels, z)).double().mean())


def loss(logits: Array, labels: Array) -> float:
    """Mean over rows of -log p_y, in nats.

    >>> round(loss(torch.tensor([[0.8, 0.2]]).log(), torch.tensor([1])), 4)        # -log 0.2
    1.6094
    """
    z = read_logits(logits)
    return float(F.cross_entropy(z, read_labels(labels, z)))


def mean_phi(logits: Array, labels: Array) -> float:
    """Mean over rows of phi = log p_y / (1 - p_y) (math.md, section 0).

    >>> mean_phi(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    1.0
    """
    z = read_logits(logits)
    return float(tasks.phi(z, read_labels(labels, z)).mean())


def calibration_error(logits: Array, labels: Array, bins: int = 15) -> float:
    """Expected calibration error: mean over rows of |accuracy - confidence| of the row's bin (1706.04599, eq. 3).

    Confidence is the largest probability; the bins are of equal width, closed on the right. It is biased upwards where
    bins hold few rows, so it is to be read beside that of retrains on the same rows.

    >>> z = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log()
    >>> round(calibration_error(z, torch.tensor([0, 0])), 4)        # right in one of two, and sure of three in four
    0.25
    """
    z = read_logits(logits)
    confidence, predicted = z.softmax(1).max(1)
    right = (predicted == read_labels(labels, z)).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, place, right - confidence)
    return float(gaps.abs().sum()) / len(z)


def jensen_shannon(a: Array, b: Array) -> float:
    """Mean over rows of the Jensen-Shannon divergence, in nats: at most log 2, and symmetric.

    >>> sure = torch.tensor([[0.0, -100.0]])
    >>> round(jensen_shannon(sure, sure.flip(1)), 4)        # log 2
    0.6931
    """
    a, b = _same_shape(a, b)
    p, q = a.log_softmax(1), b.log_softmax(1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return max(0.5 * (kl(p, middle) + kl(q, middle)), 0.0)


def linear_cka(a: Array, b: Array) -> float:
    """Linear centred kernel alignment of two models' activations on the same rows (1905.00414, eq. 3 and section 3).

    |B'A|^2 / (|A'A| |B'B|) in Frobenius norms, columns centred: 1 for the same activations up to a rotation, a scale
    and a constant. With fewer rows than columns it is near 1 whatever the models; its floor has the same bias.
    Activations that do not differ between rows have no alignment; it is then 0.

    Args:
        a: (rows, columns).
        b: (rows, other columns).

    >>> a = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> round(linear_cka(a, 3 * a.flip(1) + 5), 12)
    1.0
    """
    x, y = (_activations(z) for z in (a, b))
    if len(x) != len(y):
        raise InputError(f"activations of {len(x)} and of {len(y)} rows; compute both on the same rows")
    x, y = x - x.mean(0), y - y.mean(0)
    if len(x) < min(x.shape[1], y.shape[1]):  # the same sums over pairs of rows
        across, own = float((x @ x.T * (y @ y.T)).sum()), [float((z @ z.T).norm()) for z in (x, y)]
    else:
        across, own = float((y.T @ x).square().sum()), [float((z.T @ z).norm()) for z in (x, y)]
    return across / (own[0] * own[1]) if own[0] * own[1] else 0.0


def weight_distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Euclidean distance between two models' parameters, all as one vector.

    Retrains from other initial weights are far apart here though they agree in what they put out.

    >>> weight_distance({"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 4.0])})
    5.0
    """
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        raise InputError("the two models have other parameters; weights are compared within one architecture")
    squares = [(a[name].detach().cpu().double() - b[name].detach().cpu().double()).square().sum() for name in a]
    return math.sqrt(float(sum(squares)))


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


def _root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _centred(change: Tensor) -> Tensor:
    return (change - change.mean(1, keepdim=True)).flatten()


def _cosine(a: Tensor, b: Tensor) -> float:
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths else 0.0


def read_logits(z: Array, name: str = "logits") -> Tensor:
    """Return logits as float64 on the CPU, checked."""
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


def _activations(z: Array) -> Tensor:
    t = torch.as_tensor(z).detach().to("cpu", torch.float64)
    if t.ndim != 2 or not t.numel() or not torch.isfinite(t).all():
        raise InputError(f"activations have shape {tuple(t.shape)}; give (rows, columns) of finite numbers")
    return t


def read_logits_like(z: Array, other: Tensor, name: str) -> Tensor:
    """Return logits as float64 on the CPU, checked to be of the other's shape."""
    t = read_logits(z, name)
    if t.shape != other.shape:
        raise InputError(
            f"{name} has shape {tuple(t.shape)}, the other logits {tuple(other.shape)}; compute both on the same rows"
        )
    return t


def _same_shape(a: Array, b: Array) -> tuple[Tensor, Tensor]:
    first = read_logits(a, "the first model's logits")
    return first, read_logits_like(b, first, "the second model's logits")


def read_labels(labels: Array, logits: Tensor) -> Tensor:
    """Return class labels as int64, checked against the logits."""
    y = torch.as_tensor(labels).detach().cpu()
    if y.is_floating_point() or y.shape != logits.shape[:1]:
        raise InputError(f"labels are {y.dtype} of shape {tuple(y.shape)}; give {len(logits)} integers, one a row")
    y = y.long()
    if int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        raise InputError(f"labels run from {int(y.min())} to {int(y.max())}, outside the {logits.shape[1]} classes")
    return y
