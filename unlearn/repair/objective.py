"""The objective that an edit minimises, around the weights theta_0 that are to be edited.

With n' rows left after the change, of which R stand for all (a sample, or all of them), and changed rows U,

    E(theta) = (1/|R|) sum_R D(f0_i, f_i(theta)) + (1/n') sum_U c_i . f_i(theta)
               + (w/2) ||s||^2 + (1/2) s . d s - (m w / n') theta_0 . s,    s = theta - theta_0

where f0 are the outputs at theta_0, D is the loss's Bregman divergence in outputs (KL, or half the squared distance),
c_i is the change of row i's output gradient at f0 (new label minus old; minus old for a removed row), m counts removed
rows. Its gradient at theta_0 is minus the right-hand side of math.md 3: only the changed rows' terms are followed, not
the rest of an unfinished training. It is the proximal Bregman objective (arXiv 2209.05364, eq. 9) with the changed
rows' terms taken linear in outputs; for a model that is linear in its weights and stands at its optimum, E with d = 0
is the edited training objective up to a constant. ``full=True`` takes that objective itself, for any model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from unlearn.curvature import Vector
from unlearn.curvature.vectors import add_scaled_, zeros_like
from unlearn.data import DEFAULT_BATCH, Rows
from unlearn.inputs import Inputs, call_model
from unlearn.modes import evaluation
from unlearn.precision import refuse_half, widened
from unlearn.predict import predict, rows_within
from unlearn.repair.changes import Changes
from unlearn.tasks import Task

Damping = float | Vector


def regularised(vector: Vector, weight_decay: float, damping: Damping) -> Vector:
    """Return (w + d) v.

    >>> regularised({"a": torch.tensor([2.0])}, 0.5, {"a": torch.tensor([1.0])})
    {'a': tensor([3.])}
    """
    if isinstance(damping, dict):
        return {name: (weight_decay + damping[name]) * part for name, part in vector.items()}
    return {name: (weight_decay + damping) * part for name, part in vector.items()}


def mean_damping(damping: Damping, names: Collection[str]) -> float:
    """Return d as one number: the mean of its entries for these parameters, where it is a metric.

    >>> mean_damping({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([9.0])}, ["a"])
    2.0
    """
    if not isinstance(damping, dict):
        return damping
    metric = [part for name, part in damping.items() if name in names]
    return sum(float(part.sum()) for part in metric) / sum(part.numel() for part in metric)


@dataclass
class EditedObjective:
    """E, its gradient, and what they cost.

    Attributes:
        model: at theta_0; left as found. Weights of half precision are taken in float32, in a copy.
        data: rows before the change.
        changes: the change.
        task: the task.
        names: parameters that may change.
        weight_decay: w.
        damping: d, a number or a positive vector.
        sample: how many of the changed data's rows stand for all in D; None for all.
        seed: of the sample, drawn by row id.
        full: take the edited training objective itself.
        batch_size: rows at a time; fewer where their outputs take much memory.
        cost: row passes so far: forward 1, backward 2, product 4.
    """

    model: nn.Module
    data: Rows
    changes: Changes
    task: Task
    names: list[str]
    weight_decay: float
    damping: Damping
    sample: int | None = None
    seed: int = 0
    full: bool = False
    batch_size: int = DEFAULT_BATCH
    cost: int = 0

    def __post_init__(self) -> None:
        refuse_half("edits are", only=torch.float16)
        self.model = widened(self.model)
        self.edited = self.changes.apply(self.data)
        self.changed = self.data.only(self.changes.ids)
        self.rows = self.edited if self.sample is None else self.edited.sample(self.sample, self.seed, "operator-rows")
        self.start: Vector = {name: self.model.get_parameter(name).detach() for name in self.names}
        self._most = rows_within(self.model, self.data, sys.maxsize)  # rows whose outputs take little memory
        self.batch_size = min(self.batch_size, self._most)
        self._kept: dict[str, Tensor] = {}

    def regulariser(self, vector: Vector) -> Vector:
        """Return (w + d) v."""
        return regularised({name: vector[name] for name in self.names}, self.weight_decay, self.damping)

    def add_regularised(self, total: Vector, vector: Vector) -> Vector:
        """Add (w + d) v to a vector in place, one parameter at a time, and return it."""
        for name, part in total.items():
            part += regularised({name: vector[name]}, self.weight_decay, self.damping)[name]
        return total

    def at_start(self) -> tuple[float, Vector]:
        """Return E and its gradient at theta_0, from the changed rows alone (from all, if ``full``)."""
        if self.full:
            return self.value_and_gradient(self.start)
        value, gradient = self._summed(self._changed_terms, self.start)
        self.cost += 3 * len(self.changed)
        return value, add_scaled_(gradient, -self._removed_pull(), self.start)

    def value(self, weights: Vector) -> float:
        """Return E at these weights."""
        with torch.no_grad():
            total = sum(float(term) for term in self._terms(weights))
        self.cost += self._evaluated()
        return total

    def value_and_gradient(self, weights: Vector) -> tuple[float, Vector]:
        """Return E and its gradient."""
        found = self._summed(self._terms, weights)
        self.cost += 3 * self._evaluated()
        return found

    def _summed(self, terms: Callable[[Vector], Iterator[Tensor]], weights: Vector) -> tuple[float, Vector]:
        """Return the sum of these terms and its gradient, one term's graph at a time."""
        leaves = {name: weights[name].detach().requires_grad_() for name in self.names}
        total = zeros_like(weights)
        value = 0.0
        for term in terms(leaves):
            parts = torch.autograd.grad(term, list(leaves.values()), materialize_grads=True)
            add_scaled_(total, 1.0, dict(zip(self.names, parts, strict=True)))
            value += float(term.detach())
            del term, parts
        return value, total

    def _evaluated(self) -> int:
        return len(self.rows) if self.full else len(self.rows) + len(self.changed)

    def _removed_pull(self) -> float:
        return self.weight_decay * len(self.changes.removed) / len(self.edited)

    def _terms(self, weights: Vector) -> Iterator[Tensor]:
        """Yield the terms of E, batch by batch, then the quadratic ones."""
        device = next(iter(weights.values())).device
        for positions, inputs, labels in self.rows.batches(self.batch_size, device):
            outputs = self._run(weights, inputs)
            if self.full:
                yield self.task.loss(outputs, labels).sum() / len(self.rows)
            else:
                reference = self._at_start("rows", positions, inputs).to(outputs)
                yield self.task.divergence(reference, outputs, labels).sum() / len(self.rows)
        if not self.full:
            yield from self._changed_terms(weights)
        yield self._quadratic(weights)

    def _quadratic(self, weights: Vector) -> Tensor:
        quadratic = pull = torch.tensor(0.0)
        for name in self.names:
            step = weights[name] if self.full else weights[name] - self.start[name]
            quadratic = quadratic + (step * regularised({name: step}, self.weight_decay, self.damping)[name]).sum()
            pull = pull + (self.start[name] * step).sum()
        return 0.5 * quadratic if self.full else 0.5 * quadratic - self._removed_pull() * pull

    def _changed_terms(self, weights: Vector) -> Iterator[Tensor]:
        """Yield c_i . f_i / n' of the changed rows."""
        device = next(iter(weights.values())).device
        for positions, inputs, labels in self.changed.batches(self.batch_size, device):
            change = self._output_changes(positions, inputs, labels)
            yield (change * self._run(weights, inputs)).sum() / len(self.edited)

    def _output_changes(self, positions: Tensor, inputs: Inputs, labels: Tensor) -> Tensor:
        """Return c_i of changed rows, from the outputs at theta_0; in ``changes.ids`` the removed come first."""
        outputs = self._at_start("changed", positions, inputs).to(labels.device)
        self.task.check(outputs, labels)
        change = -self.task.output_gradient(outputs, labels)
        here = positions >= len(self.changes.removed)
        if here.any():
            new = self.edited.only(self.changes.relabelled).labels[positions[here] - len(self.changes.removed)]
            there = here.to(labels.device)
            change[there] += self.task.output_gradient(outputs[there], new.to(labels.device))
        return change

    def _at_start(self, which: Literal["rows", "changed"], positions: Tensor, inputs: Inputs) -> Tensor:
        """Return outputs at theta_0 of rows or changed rows: kept, or where all would take much memory, made again."""
        rows = self.rows if which == "rows" else self.changed
        if which not in self._kept and len(rows) <= self._most:
            self._kept[which] = predict(self.model, rows, batch_size=self.batch_size)
            self.cost += len(rows)
        if which in self._kept:
            return self._kept[which][positions]
        self.cost += len(positions)
        with torch.no_grad(), evaluation(self.model):
            return call_model(self.model, inputs)

    def _run(self, weights: Vector, inputs: Inputs) -> Tensor:
        with evaluation(self.model):
            return call_model(self.model, inputs, weights)
