"""The head of an edited model, trained again on the features that its body has now.

With the body held still the last linear layer is a small convex problem, and running all recorded steps of it on stored
features costs next to nothing beside one pass of the data. H(body, rows) is the head that these steps leave, from the
recorded first weights (zeros where those were not recorded). An edit sets

    head = head_0 + H(edited body, changed rows) - H(old body, old rows)

so that what was wrong with holding the body still is wrong twice and cancels, and an edit of nothing changes nothing.
Where the change is large and nothing mends it afterwards, H(edited body, changed rows) itself comes nearer. No step
along one quadratic can do this for the softmax of a class that no row has any more. For few rows it brings nothing that
is worth the pass over the data (docs/limits.md), so it is done where many change or a class goes.

Source: our own; "last layer retraining" on other data (arXiv 2204.02937) is the nearest known. It differs by the
recorded order, rates and first weights, and by the difference.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from unlearn.atomic import make_folder, write_atomically
from unlearn.curvature.digest import weights_digest
from unlearn.data import DEFAULT_BATCH, Rows, within_memory
from unlearn.errors import InputError, did_you_mean
from unlearn.inputs import Inputs, call_model
from unlearn.modes import evaluation
from unlearn.repair.method import UNROLLED
from unlearn.tasks import Task
from unlearn.training import TrainingRecord, optimizer_of, run_steps

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
        cost: row passes of the request: features of the edited body, steps on the changed rows.
        shared: row passes of the old head's run, which belongs to the training; 0 where it was kept.
        notes: why it was left, where a reader would expect otherwise.
    """

    model: nn.Module
    name: str | None = None
    cost: float = 0.0
    shared: float = 0.0
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
    called: dict[str, Tensor] = {}
    uses: dict[str, int] = {}

    def note(name: str, output: Tensor) -> None:
        called[name], uses[name] = output, uses.get(name, 0) + 1

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if type(module) is nn.Linear
    ]
    device = next(model.parameters()).device
    try:
        with evaluation(model), torch.no_grad():
            _, inputs, _ = next(rows.batches(1, device))
            outputs = call_model(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found = [name for name, output in called.items() if output is outputs and output.ndim == 2 and uses[name] == 1]
    if not found or not found[0]:
        return None
    own = list(model.get_submodule(found[0]).parameters())
    names = sum(any(p is one for one in own) for _, p in model.named_parameters(remove_duplicate=False))
    return found[0] if all(p.requires_grad for p in own) and names == len(own) else None


def head_epochs(model: nn.Module, head: str, record: TrainingRecord, steps: int) -> float:
    """Return what so many recorded steps of the head cost, in training epochs, by its share of the weights.

    A layer that shares its weights over positions (a convolution) costs more for each weight than the head does, so the
    true cost is lower.
    """
    if record.order is None or steps == 0:
        return 0.0
    left: list[int] = [*record.order.rows_left().tolist(), 0]
    return _share(model, head) * (left[0] - left[steps]) / len(record.order.ids)


def _share(model: nn.Module, head: str) -> float:
    own, everything = (
        sum(parameter.numel() for parameter in part.parameters()) for part in (model.get_submodule(head), model)
    )
    return own / everything


def replay_head(
    old: nn.Module,
    edited: nn.Module,
    rows: Rows,
    changed: Rows,
    record: TrainingRecord,
    task: Task,
    *,
    stop: int,
    most: float = HEAD_EPOCHS,
    whole: bool = False,
    folder: Path | None = None,
) -> ReplayedHead:
    """Return a copy of ``edited`` with the head that training on the changed rows would have left on its features.

    Args:
        old: the model before the edit, at the same step.
        edited: the model after it.
        rows: rows before the change.
        changed: rows after it. Features of all rows are held: rows times inputs of the head.
        record: of the training, with its row order.
        task: the task.
        stop: the step that the weights belong to; so many steps of the head are run.
        most: training epochs that they may cost; with a larger head, it is left, and a note says so.
        whole: take the new head itself, not the old one plus the difference.
        folder: where the run on the old rows is kept and looked for; requests share it.
    """
    if record.order is None or record.optimizer not in UNROLLED:
        return ReplayedHead(edited)
    head = head_of(edited, rows)
    if head is None:
        return ReplayedHead(
            edited, notes=("the outputs are not those of a linear layer alone, so no head was replayed",)
        )
    needed = head_epochs(edited, head, record, stop)
    if needed > most:
        return ReplayedHead(
            edited,
            notes=(
                f"the head {head!r} was not replayed: with {_share(edited, head):.0%} of the weights that would cost "
                f"{needed:.1f} training epochs, and {most:g} are allowed; a larger budget allows more",
            ),
        )
    shared = 0.0
    try:
        new, cost = _run(edited, head, changed, record, task, stop)
        if not whole:
            before, shared = _kept(old, head, rows, record, task, stop, folder)
            own = old.get_submodule(head).state_dict()
            new = {name: own[name] + (new[name] - before[name].to(own[name])) for name in own}
    except InputError as error:
        return ReplayedHead(edited, notes=(f"the head {head!r} was not replayed: {error}",))
    model = copy.deepcopy(edited)
    model.get_submodule(head).load_state_dict(new)
    return ReplayedHead(model, head, cost, shared)


def _run(
    model: nn.Module, head: str, rows: Rows, record: TrainingRecord, task: Task, stop: int
) -> tuple[dict[str, Tensor], float]:
    """Return H(body of the model, rows) as a state dict, and what it cost in row passes."""
    features = Rows.from_tensors(
        _features(model, head, rows), rows.labels, ids=rows.ids, classes=rows.classes, name=rows.name
    )
    layer = copy.deepcopy(model.get_submodule(head))
    if 0 in record.snapshots and record.folder is not None:
        first = record.snapshot(0).weights
        layer.load_state_dict({name: first[f"{head}.{name}"] for name in layer.state_dict()})
    else:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    assert record.order is not None
    steps = run_steps(
        layer,
        optimizer_of(layer, record),
        features,
        record.order,
        record.rates().tolist(),
        task=task,
        stop=stop,
        seed=record.seed or 0,
        description="training the head",
    )
    return layer.state_dict(), _FORWARD * len(rows) + _STEP * _share(model, head) * steps


def _features(model: nn.Module, head: str, rows: Rows) -> Tensor:
    """Return the inputs of the head on all rows, shape (n, inputs), on the CPU, in evaluation mode."""
    caught: list[Tensor] = []
    hook = model.get_submodule(head).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))

    def work(_: Tensor, inputs: Inputs, __: Tensor) -> Tensor:
        caught.clear()
        call_model(model, inputs)
        return caught.pop().cpu()

    try:
        with evaluation(model), torch.no_grad():
            device = next(model.parameters()).device
            return torch.cat(list(within_memory(rows, DEFAULT_BATCH, device, work, "features of the head")))
    finally:
        hook.remove()


def _kept(
    old: nn.Module, head: str, rows: Rows, record: TrainingRecord, task: Task, stop: int, folder: Path | None
) -> tuple[dict[str, Tensor], float]:
    """Return H(old body, old rows) from the folder, or run and keep it."""
    if folder is None:
        return _run(old, head, rows, record, task, stop)
    said = {"weights": weights_digest(old), "rows": rows.fingerprint, "record": _digest(record), "stop": stop}
    path = folder / f"head-{stop:06d}.safetensors"
    try:
        with safe_open(path, "pt") as file:
            if json.loads((file.metadata() or {}).get("head", "{}")) == said:
                return {name: file.get_tensor(name) for name in file.keys()}, 0.0  # noqa: SIM118 - not a dictionary
    except (OSError, SafetensorError):
        pass  # none yet, or damaged: run below
    found, cost = _run(old, head, rows, record, task, stop)
    make_folder(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in found.items()}
    write_atomically(path, save(tensors, {"head": json.dumps(said)}))
    return found, cost


def _digest(record: TrainingRecord) -> str:
    order = None if record.order is None else record.order.digest
    return hashlib.sha256(json.dumps([record.rates().tolist(), record.snapshots.get(0), order]).encode()).hexdigest()
