"""The head of an edited model, trained again on the features that its body has now.

With the body held still the last linear layer is a small convex problem, and running all recorded steps of it, from the
recorded first weights (zeros where those were not recorded; in a drawn order where none was), on stored features of the
changed rows costs next to nothing beside one pass over them. No step along one quadratic can do this for the softmax of
a class that no row has any more, or for hundreds of new labels.

It is off by as much whatever the change, because the body did move in training: so it is done where many labels were
wrong or a class goes, and left where few rows change or their labels were right (:mod:`unlearn.repair.old_answers`,
docs/limits.md).

Source: our own; "last layer retraining" on other data (arXiv 2204.02937) is the nearest known. It differs by the
recorded order, rates and first weights.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from unlearn.data import DEFAULT_BATCH, Rows, within_memory
from unlearn.errors import InputError, did_you_mean
from unlearn.inputs import Inputs, call_model
from unlearn.modes import evaluation
from unlearn.precision import precision_of_weights, widened
from unlearn.ranks import own_span, sum_over_ranks
from unlearn.repair.changes import Changes
from unlearn.repair.descent import batch_size, shuffled
from unlearn.repair.method import UNROLLED
from unlearn.repair.old_answers import learnt_less
from unlearn.tasks import Task
from unlearn.training import BatchOrder, TrainingRecord, optimizer_of, run_steps

HeadRule = Literal["replay", "leave"]
HEAD_EPOCHS = 1.0
"""Training epochs that the steps of the head may cost where the budget is smaller."""
_FORWARD, _STEP = 1, 3


@dataclass(frozen=True)
class ReplayedHead:
    """A model with its head trained again, and what that cost in row passes.

    Attributes:
        model: a copy with the new head; the edited model itself where it has none.
        name: of the head; None where it was left as it is.
        cost: row passes: features of all rows, steps of the head.
        notes: that it was trained again; or why it was left, where a reader would expect otherwise.
    """

    model: nn.Module
    name: str | None = None
    cost: float = 0.0
    notes: tuple[str, ...] = ()


def check_head_rule(rule: str) -> None:
    """Refuse an unknown rule.

    Raises:
        InputError: with those that are known.
    """
    if rule not in get_args(HeadRule):
        raise InputError(f"unknown head {rule!r}; {did_you_mean(rule, get_args(HeadRule))}")


def head_of(model: nn.Module, rows: Rows) -> str | None:
    """Return the name of the head: a trained linear layer of its own whose outputs are the model's, (b, outputs).

    None where there is no such layer, as in models of sequences with an output for every token.

    >>> rows = Rows.from_tensors(torch.eye(3), torch.tensor([0, 1, 1]))
    >>> head_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), rows)
    '2'
    >>> head_of(nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=1)), rows)
    """
    wide = widened(model)  # whose outputs are the layer's own tensor, not cast from it
    called: dict[str, Tensor] = {}
    uses: dict[str, int] = {}

    def note(name: str, output: Tensor) -> None:
        called[name], uses[name] = output, uses.get(name, 0) + 1

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in wide.named_modules()
        if type(module) is nn.Linear
    ]
    device = next(model.parameters()).device
    try:
        with evaluation(wide), precision_of_weights(), torch.no_grad():
            _, inputs, _ = next(rows.batches(1, device))
            outputs = call_model(wide, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found = [name for name, output in called.items() if output is outputs and output.ndim == 2 and uses[name] == 1]
    if not found or not found[0]:
        return None
    own = list(model.get_submodule(found[0]).parameters())
    names = sum(any(p is one for one in own) for _, p in model.named_parameters(remove_duplicate=False))
    return found[0] if all(p.requires_grad for p in own) and names == len(own) else None


def head_steps(record: TrainingRecord, rows: Rows) -> tuple[BatchOrder, list[float]]:
    """Return the recorded batches and rates; without a row order as many batches of these rows, drawn by the seed.

    >>> rows = Rows.from_tensors(torch.eye(300), torch.arange(300))
    >>> order, rates = head_steps(TrainingRecord("sgd", 0.1, 7), rows)
    >>> len(order), len(rates), int(order.rows_left()[0])
    (7, 7, 728)
    """
    if record.order is not None:
        return record.order, record.rates().tolist()
    epochs = record.steps / math.ceil(len(rows) / batch_size(record))
    return shuffled(rows, record, epochs, record.seed or 0), record.rates().tolist()


def head_epochs(model: nn.Module, head: str, record: TrainingRecord, rows: Rows) -> float:
    """Return what the recorded steps of the head cost, in training epochs, by its share of the weights.

    A layer that shares its weights over positions (a convolution) costs more for each weight than the head does, so the
    true cost is lower.
    """
    order, _ = head_steps(record, rows)
    return _share(model, head) * float(order.rows_left()[0]) / len(order.ids)


def _share(model: nn.Module, head: str) -> float:
    own, everything = (
        sum(parameter.numel() for parameter in part.parameters()) for part in (model.get_submodule(head), model)
    )
    return own / everything


def replayable_head(
    model: nn.Module, rows: Rows, record: TrainingRecord, *, most: float = HEAD_EPOCHS
) -> tuple[str | None, tuple[str, ...]]:
    """Return the name of the head whose recorded steps can be run again; or None, and why where that needs saying.

    Args:
        model: the model, before or after its edit.
        rows: rows that it takes.
        record: of the training.
        most: training epochs that the steps of the head may cost; a larger head is left.
    """
    if record.optimizer not in UNROLLED:
        return None, ()
    head = head_of(model, rows)
    if head is None:
        return None, ("no head was replayed: the outputs are not those of a linear layer alone",)
    needed = head_epochs(model, head, record, rows)
    if needed > most:
        return None, (
            f"the head {head!r} was not replayed: with {_share(model, head):.0%} of the weights that would cost "
            f"{needed:.1f} training epochs, and {most:g} are allowed; a larger budget allows more",
        )
    return head, ()


def renewed_head(
    edited: nn.Module, rows: Rows, changes: Changes, record: TrainingRecord, task: Task, head: str, *, sure: bool
) -> ReplayedHead:
    """Return the edited model with its head trained again, if the labels of the changed rows were wrong.

    Args:
        edited: the model.
        rows: before the change.
        changes: the change.
        record: of the training.
        task: the task.
        head: its name, of :func:`replayable_head`.
        sure: whether it is known that much was wrong; else the edited model's answers to the changed rows tell.
    """
    wrong = sure or learnt_less(edited, rows, changes.ids)
    if not wrong:
        why = (
            "it can not be told whether labels were wrong, without classes or where most other rows miss theirs"
            if wrong is None
            else "most changed rows are still given their old labels, which were right, and taught less than it blurs"
        )
        note = f"the last linear layer, {head!r}, was not trained again: {why}"
        return ReplayedHead(edited, notes=(note,))
    return replay_head(edited, changes.apply(rows), record, task, head)


def replay_head(edited: nn.Module, changed: Rows, record: TrainingRecord, task: Task, head: str) -> ReplayedHead:
    """Return a copy of a model with the head that training on these rows would have left on its features.

    Args:
        edited: the model; its body stays as it is.
        changed: the rows. Their features are held: rows times inputs of the head.
        record: of the training.
        task: the task.
        head: its name, of :func:`replayable_head`.
    """
    features = Rows.from_tensors(
        _features(edited, head, changed), changed.labels, ids=changed.ids, classes=changed.classes, name=changed.name
    )
    model = copy.deepcopy(edited)
    layer = model.get_submodule(head)
    if 0 in record.snapshots and record.folder is not None:
        first = record.snapshot(0).weights
        layer.load_state_dict({name: first[f"{head}.{name}"] for name in layer.state_dict()})
    else:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    try:
        steps = run_steps(
            layer,
            optimizer_of(layer, record),
            features,
            *head_steps(record, features),
            task=task,
            seed=record.seed or 0,
            description="training the head",
        )
        for parameter in layer.parameters():
            parameter.grad = None
    except InputError as error:
        return ReplayedHead(edited, notes=(f"failed: the head {head!r} was left as it was: {error}",))
    cost = _FORWARD * len(changed) + _STEP * _share(edited, head) * steps
    return ReplayedHead(
        model, head, cost, (f"the last linear layer, {head!r}, was trained again on the edited features",)
    )


def _features(model: nn.Module, head: str, rows: Rows) -> Tensor:
    """Return the inputs of the head on all rows, shape (n, inputs), on the CPU, in evaluation mode."""
    caught: list[Tensor] = []
    hook = model.get_submodule(head).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))

    def work(_: Tensor, inputs: Inputs, __: Tensor) -> Tensor:
        caught.clear()
        call_model(model, inputs)
        return caught.pop().cpu()

    weight = model.get_parameter(f"{head}.weight")
    found = torch.zeros(len(rows), weight.shape[1], dtype=weight.dtype)
    try:
        with evaluation(model), precision_of_weights(), torch.no_grad():
            done, device = own_span(len(rows)).start, next(model.parameters()).device
            for part in within_memory(rows, DEFAULT_BATCH, device, work, "features of the head", shared=True):
                found[done : done + len(part)] = part
                done += len(part)
    finally:
        hook.remove()
    sum_over_ranks(found)
    return found
