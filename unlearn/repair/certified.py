"""Certified removal from a linear head (arXiv 1911.03030): Newton steps for each request, and a budget.

The guarantee. Weights that came about by removals and weights trained without those rows from the start can be told
apart with odds of at most e^epsilon but for a probability of delta, over the noise b, for who sees the weights alone.
It holds while the norm of the gradient on the rows left stays under sigma times the shift that epsilon and delta allow
(:mod:`unlearn.repair.gaussian_budget`). Each removal spends its part (:mod:`unlearn.repair.residual`); norms add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.checkpoint import read_checkpoint, save_checkpoint
from unlearn.checkpoint.digests import sha256_of_text
from unlearn.data import Rows
from unlearn.errors import BudgetSpentError, InputError, UncertifiedError, some
from unlearn.models import LinearHead
from unlearn.models.linear import unit_length
from unlearn.repair.certified_rows import feature_rows, features_of, signed_rows
from unlearn.repair.gaussian_budget import largest_shift, least_epsilon
from unlearn.repair.residual import ResidualBounds, gradient_change, residual_bounds
from unlearn.training import draw_noise, train_perturbed

FORMAT = 1
METHOD = "certified-newton"


@dataclass(frozen=True)
class Guarantee:
    """What a certified head was trained with, and promises.

    Attributes:
        weight_decay: w of the mean loss plus w / 2 ||theta||^2.
        sigma: standard deviation of each entry of the noise b in the summed objective.
        epsilon: log of the largest odds.
        delta: probability outside them.
        unit_rows: whether rows were divided by their length.

    Raises:
        UncertifiedError: no weight decay or no noise.
        InputError: epsilon or delta is not allowed.
    """

    weight_decay: float
    sigma: float
    epsilon: float
    delta: float
    unit_rows: bool

    def __post_init__(self) -> None:
        if not 0 < self.weight_decay < float("inf"):
            raise UncertifiedError(
                f"weight_decay is {self.weight_decay}; a certificate needs strong convexity: give a number above 0"
            )
        if not 0 < self.sigma < float("inf"):
            raise UncertifiedError(
                f"sigma is {self.sigma}; without noise in the objective there is no certificate: give a number above 0"
            )
        largest_shift(self.epsilon, self.delta)

    @property
    def budget(self) -> float:
        """The largest norm of the gradient that the noise hides."""
        return self.sigma * largest_shift(self.epsilon, self.delta)


@dataclass(frozen=True)
class Removal:
    """One request, carried out.

    Attributes:
        head: the head after it; the one before is unchanged.
        ids: rows removed.
        bounds: bounds on what its first Newton step added to the gradient's norm.
        residual: what the request spent; ``bounds.direct`` where it took one step.
    """

    head: CertifiedHead
    ids: tuple[str, ...]
    bounds: ResidualBounds
    residual: float

    def to_dict(self) -> dict[str, Any]:
        """Return every number as JSON-able data; rows are counted, not named."""
        bounds = self.bounds.to_dict()
        return {"rows": len(self.ids), "residual": self.residual, "bounds": bounds, **self.head.account()}


@dataclass(frozen=True)
class CertifiedHead:
    """A linear head with a budget for certified removals. It does not change: a removal returns a new head.

    Attributes:
        weight: shape (K, d), float64; K is 1 for two classes.
        rows: the rows left, as features (float64, shape (n, d)), labels and ids.
        guarantee: settings of training and what is promised.
        spent: upper bound on the norm of the gradient of the perturbed objective on the rows left.
        removed: sha256 of the id of each removed row.
        extractor: what turns inputs into features; None where they are the inputs themselves, flattened.
    """

    weight: Tensor
    rows: Rows
    guarantee: Guarantee
    spent: float
    removed: tuple[str, ...] = ()
    extractor: nn.Module | None = None

    @property
    def left(self) -> float:
        """What is left of the budget."""
        return max(0.0, self.guarantee.budget - self.spent)

    @property
    def epsilon_spent(self) -> float:
        """The least epsilon for which the guarantee holds now, at its delta."""
        return least_epsilon(self.spent / self.guarantee.sigma, self.guarantee.delta)

    @property
    def weight_distance(self) -> float:
        """Upper bound on the distance of the weights to those retrained with the same noise; no probability in it.

        The objective on the rows left is strongly convex with modulus w n, so the distance is at most the gradient's
        norm over it.
        """
        return self.spent / (self.guarantee.weight_decay * len(self.rows))

    def remove(self, ids: Iterable[str], *, steps: int = 1) -> Removal:
        """Remove rows by Newton steps on the rows left, and charge the residual to the budget.

        Args:
            ids: rows to remove together; several calls remove in turn.
            steps: Newton steps. One is the paper's; each further one takes away most of what the request would spend,
                and costs one more Hessian of the rows left. With three or so it is retraining with the same noise.

        Raises:
            BudgetSpentError: the budget does not cover it; nothing is changed.
            RowNotFoundError: an id is not among the rows left.
            InputError: no id, an id named twice, no row would be left, or no step.

        >>> data = Rows.from_tensors(torch.eye(4).double().repeat(9, 1), torch.arange(36) % 2)
        >>> head = train_certified_head(data, weight_decay=0.1, sigma=1.0, epsilon=1.0, delta=1e-4)
        >>> removal = head.remove(["0", "5"])
        >>> len(removal.head.rows), removal.head.spent > head.spent, len(head.rows)
        (34, True, 36)
        """
        wanted = (ids,) if isinstance(ids, str) else tuple(ids)
        if not wanted:
            raise InputError("no rows to remove were given; give at least one id")
        if steps < 1:
            raise InputError(f"steps is {steps}; give at least 1")
        kept, gone = self.rows.without(wanted), signed_rows(self.rows.only(wanted))
        left, decay, old = signed_rows(kept), self.guarantee.weight_decay, self.weight
        new = old - left.solve(old, gradient_change(left, gone, old, old, decay)[0], decay)
        bounds = residual_bounds(left, gone, old, new, decay)
        residual = bounds.direct
        for _ in range(steps - 1):
            new = new - left.solve(new, gradient_change(left, gone, old, new, decay)[0], decay)
            change, rounding = gradient_change(left, gone, old, new, decay)
            residual = float(change.norm()) + rounding
        spent = (self.spent + residual) * (1 + 1e-15)
        if not spent <= self.guarantee.budget:
            raise BudgetSpentError(
                f"removing {some(map(repr, wanted), 3)} adds {residual:.3g} to a residual of {self.spent:.3g}, and "
                f"epsilon {self.guarantee.epsilon:g}, delta {self.guarantee.delta:g}, sigma {self.guarantee.sigma:g} "
                f"allow {self.guarantee.budget:.3g}: retrain without these rows, with new noise; the head is unchanged"
            )
        removed = (*self.removed, *(sha256_of_text(row) for row in wanted))
        return Removal(replace(self, weight=new, rows=kept, spent=spent, removed=removed), wanted, bounds, residual)

    def account(self) -> dict[str, float]:
        """Return the state of the budget."""
        return {
            "budget": self.guarantee.budget,
            "spent": self.spent,
            "left": self.left,
            "epsilon": self.guarantee.epsilon,
            "epsilon_spent": self.epsilon_spent,
            "delta": self.guarantee.delta,
            "weight_distance": self.weight_distance,
        }

    def statement(self) -> str:
        """Return in words what is guaranteed now, and what is not."""
        return (
            f"After removing {len(self.removed)} rows: for who sees these weights alone, they and weights trained "
            f"without the rows differ in odds by at most e^{self.epsilon_spent:.3g}, but for a probability of "
            f"{self.guarantee.delta:g}. This speaks for an honest operator, who drew the noise, kept it secret and "
            "deleted the rows; it proves nothing to a third party. It does not cover who has seen earlier weights, the "
            "features if the rows shaped them, or the residual's dependence on the noise (docs/limits.md)."
        )

    def logits(self, data: Rows) -> Tensor:
        """Return outputs on rows of the kind that the head was trained from, shape (n, K)."""
        features = features_of(data, self.extractor)
        return (unit_length(features) if self.guarantee.unit_rows else features) @ self.weight.T

    def accuracy(self, data: Rows) -> float:
        """Return the share of rows whose label has the largest output (of two classes: the right sign)."""
        outputs = self.logits(data)
        found = outputs.argmax(1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).long()
        return float((found == data.labels).double().mean())

    def model(self) -> LinearHead:
        """Return a copy as a module that takes features; of two classes the output is positive for class 1."""
        head = LinearHead(self.weight.shape[1], len(self.weight), self.guarantee.unit_rows)
        with torch.no_grad():
            head.weight.copy_(self.weight)
        return head.eval()

    def provenance(self) -> dict[str, Any]:
        """Return what a checkpoint says of the removals; row ids as sha256 only."""
        rows = [{"id_sha256": row, "action": "remove", "label": None} for row in sorted(self.removed)]
        return {"method": METHOD, "rows": rows}

    def save(self, path: str | Path, *, recipe: tuple[str, str] | None = None) -> str:
        """Write weights, guarantee and budget to one safetensors file, atomically; return its digest.

        The file is the operator's: its account of the budget depends on the removed rows, and the guarantee speaks of
        the weights alone. Give away ``head.model()``, not this file.
        """
        state = {
            "format": FORMAT,
            "guarantee": asdict(self.guarantee),
            "spent": self.spent,
            "rows_fingerprint": self.rows.fingerprint,
            "extractor": self.extractor is not None,
        }
        options = {"inputs": self.weight.shape[1], "outputs": len(self.weight), "unit_rows": self.guarantee.unit_rows}
        return save_checkpoint(
            path,
            self.model(),
            edit=self if self.removed else None,
            recipe=recipe,
            spec={"name": "linear", "options": options},
            extra={"certified": state},
        )

    @classmethod
    def load(cls, path: str | Path, data: Rows, *, extractor: nn.Module | None = None) -> CertifiedHead:
        """Load a head with the rows it stands on.

        Args:
            path: a file of :meth:`save`.
            data: the training rows; removed ones may be among them, and are left out.
            extractor: the one it was trained with.

        Raises:
            UncertifiedError: the file holds no certified head.
            InputError: the rows, their features or labels are not those of the head.
            CheckpointError: the file is damaged.
        """
        checkpoint = read_checkpoint(path, require_provenance=False)
        state = ((checkpoint.metadata or {}).get("extra") or {}).get("certified")
        if state is None:
            raise UncertifiedError(
                f"{str(path)!r} is no certified head: it was not trained with objective perturbation, so there is no "
                "bound; edit it with unlearn.remove, or train a head with unlearn.train_certified_head"
            )
        if state["format"] != FORMAT:
            raise InputError(f"{str(path)!r} has format {state['format']!r}; this release reads {FORMAT}")
        guarantee = Guarantee(**state["guarantee"])
        removed = tuple(row["id_sha256"] for row in (checkpoint.edit or {"rows": []})["rows"])
        hidden = set(removed)
        kept = data.without([row for row in data.ids if sha256_of_text(row) in hidden])
        rows = feature_rows(kept, extractor, guarantee.unit_rows)
        if rows.fingerprint != state["rows_fingerprint"]:
            raise InputError(
                f"the rows of {data.name} left by {str(path)!r} are not those it was saved with (ids, features or "
                "labels differ); give the training rows it was made from, and the same extractor"
            )
        return cls(checkpoint.tensors["weight"], rows, guarantee, float(state["spent"]), removed, extractor)


def train_certified_head(
    data: Rows,
    *,
    weight_decay: float,
    sigma: float,
    epsilon: float,
    delta: float,
    seed: int = 0,
    unit_rows: bool = False,
    extractor: nn.Module | None = None,
) -> CertifiedHead:
    """Train a linear head, perturbed so that rows can be removed with a certificate (1911.03030, Algorithm 1).

    The objective is binary logistic loss for two classes, one-vs-rest for more, with weight decay and a random linear
    term, in float64 and to its optimum. There is no bias; add a column of ones (and scale) if you need one.

    Args:
        data: training rows with class labels; inputs are flattened.
        weight_decay: w > 0 of the mean loss plus w / 2 ||theta||^2. Larger spends less and fits less.
        sigma: standard deviation of the noise in the *summed* objective. Larger allows more and fits less.
        epsilon: log of the largest odds.
        delta: probability outside them.
        seed: of the noise. Keep it secret where the guarantee is meant; who knows it knows the noise.
        unit_rows: divide each row by its length. Without it a row longer than 1 is refused.
        extractor: a frozen module that turns inputs into features. The guarantee holds only if it was **not trained
            on any row that may be removed**, as on public data.

    Raises:
        UncertifiedError: rows longer than 1, labels that are no classes, or no noise: what has no certificate.
        InputError: a setting that is not allowed.
        ConvergenceError: the optimum is not reached.
        BudgetSpentError: it is not reached nearly enough for the budget.

    >>> data = Rows.from_tensors(torch.eye(3).repeat(9, 1), torch.arange(27) % 3)
    >>> head = train_certified_head(data, weight_decay=0.1, sigma=1.0, epsilon=1.0, delta=1e-4)
    >>> head.weight.shape, head.spent < 1e-12
    (torch.Size([3, 3]), True)
    """
    guarantee = Guarantee(weight_decay, sigma, epsilon, delta, unit_rows)
    rows = feature_rows(data, extractor, unit_rows)
    signed = signed_rows(rows)
    noise = draw_noise(signed.signs.shape[1], signed.features.shape[1], sigma, seed)
    weight, residual = train_perturbed(signed, weight_decay=weight_decay, noise=noise)
    if not residual <= guarantee.budget:
        raise BudgetSpentError(
            f"training reaches the optimum to {residual:.3g} only, and the noise hides {guarantee.budget:.3g}; use "
            "more weight decay or a larger sigma"
        )
    return CertifiedHead(weight, rows, guarantee, residual, extractor=extractor)
