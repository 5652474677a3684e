"""Deterministic training over a stated row order; training, replay, retraining and fine-tuning are this one loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from unlearn.data import Rows, draws
from unlearn.errors import InputError
from unlearn.inputs import call_model, map_tensors
from unlearn.precision import precision_of_weights, refuse_half
from unlearn.progress import track
from unlearn.ranks import world_size
from unlearn.tasks import Task, get_task
from unlearn.training.order import EMPTY, BatchOrder
from unlearn.training.random_streams import seed_streams, streams_kept
from unlearn.training.record import TrainingRecord
from unlearn.training.recorder import Recorder, describe
from unlearn.training.settings import TrainSettings
from unlearn.training.shared_batches import own_rows, rows_stand_apart, say_not_shared, sum_gradients

OnStep = Callable[[Sequence[str], Tensor, Tensor], None]
Objective = Callable[[nn.Module, Tensor], Tensor]


def run_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    order: BatchOrder,
    rates: Sequence[float],
    *,
    task: Task,
    start: int = 0,
    stop: int | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    objective: Objective | None = None,
    shared: bool = False,
    description: str = "training",
) -> int:
    """Run the steps of ``order`` from ``start`` to before ``stop`` (all, if None), in place.

    Rows that are not in ``rows`` leave their places empty.

    They are run in the type of the weights, whatever :func:`unlearn.half_precision` says, as they were recorded.
    Random layers (dropout) draw by (seed, step), so that a replay from the middle draws the same; the global seeds are
    left as found. What is minimised is the mean loss of the batch, or
    ``objective(model, mean loss)``. With ``shared`` (and no objective) several ranks share each batch out, where its
    rows stand apart (:mod:`unlearn.training.shared_batches`); ``on_step`` gets the rows of this rank.

    Returns:
        The number of rows processed, by all ranks (each costs forward 1 and backward 2).

    Raises:
        InputError: labels that do not fit the outputs, or a loss that is not finite; the step is named.
    """
    device = next(model.parameters()).device
    positions = order.on(rows)
    processed = 0
    apart = None if shared and objective is None and world_size() > 1 else False
    model.train()
    deterministic = torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False)
    with deterministic, precision_of_weights(), streams_kept(device):
        for step in track(range(start, len(order) if stop is None else stop), description):
            batch = positions[step]
            batch = batch[batch != EMPTY]
            if apart is None and len(batch) > 1:
                apart = rows_stand_apart(model, rows, batch, device)
                if not apart:
                    say_not_shared()
            own = own_rows(batch) if apart else batch
            for group in optimizer.param_groups:
                group["lr"] = rates[step]
            optimizer.zero_grad(set_to_none=False)
            seed_streams(device, draws.derived_seed(seed, "step", step))
            loss = torch.zeros((), device=device)
            if len(own):
                inputs, labels = rows.batch(own)
                labels = labels.to(device)
                outputs = call_model(model, map_tensors(lambda x: x.to(device), inputs))
                loss = _summed_loss(task, outputs, labels, diverging=processed > 0) / len(batch)
                if objective is not None:
                    loss = objective(model, loss)
                loss.backward()  # type: ignore[no-untyped-call]
            _zero_missing_gradients(optimizer)
            if apart:
                loss = sum_gradients(loss, optimizer)
            if not torch.isfinite(loss):
                raise InputError(f"the loss of step {step} is not finite: training diverged; lower the learning rate")
            optimizer.step()
            processed += len(batch)
            if on_step is not None and len(own):
                on_step([rows.ids[i] for i in own.tolist()], outputs, labels)
    return processed


def _summed_loss(task: Task, outputs: Tensor, labels: Tensor, *, diverging: bool) -> Tensor:
    """Return the sum of the losses, checked; at first outputs that are not finite are the data's or the start's fault.

    After that they make the sum not finite either, on which all ranks end alike.
    """
    if diverging and not torch.isfinite(outputs).all():
        return outputs.sum() * math.nan
    task.check(outputs, labels)
    return task.loss(outputs, labels).sum()


def _zero_missing_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters without a gradient a zero one: weight decay and momentum act in an empty batch too."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def train(
    model: nn.Module,
    data: Rows,
    settings: TrainSettings,
    *,
    seed: int = 0,
    task: str | Task = "classification",
    folder: str | Path | None = None,
    snapshot_epochs: Collection[int] = (),
    description: str = "training",
) -> tuple[nn.Module, TrainingRecord]:
    """Train a copy of ``model`` deterministically.

    Args:
        model: initial weights; not changed.
        data: rows.
        settings: optimizer, schedule, epochs, batch size.
        seed: decides the row order, with the epoch's number, and the draws of random layers.
        task: name of the task or a task.
        folder: where snapshots, row order and trajectory go; nothing is written without it.
        snapshot_epochs: epochs after which a snapshot is taken (0: before the first step). The final weights are
            always taken.
        description: of the progress bar.

    Returns:
        The trained copy, in eval mode, and its training record.

    Raises:
        InputError: a snapshot after an epoch that is not run, labels that do not fit, a loss that is not finite, or
            half precision around it.

    >>> rows = Rows.from_tensors(torch.eye(4), torch.tensor([0, 1, 0, 1]))
    >>> start = nn.Linear(4, 2)
    >>> model, record = train(start, rows, TrainSettings(epochs=2, batch_size=2))
    >>> record.steps
    4
    """
    refuse_half("training is")
    the_task = get_task(task)
    outside = [epoch for epoch in snapshot_epochs if not 0 <= epoch <= settings.epochs]
    if outside:
        raise InputError(f"a snapshot is asked for after epoch {outside[0]}; the training has {settings.epochs} epochs")
    model = copy.deepcopy(model)
    order = BatchOrder.shuffled(data.ids, epochs=settings.epochs, batch_size=settings.batch_size, seed=seed)
    rates = settings.rates(len(data))
    optimizer = settings.build_optimizer(model)
    if folder is None:
        run_steps(model, optimizer, data, order, rates, task=the_task, seed=seed, description=description)
        model.zero_grad()
        record = TrainingRecord(
            **describe(optimizer),  # type: ignore[arg-type]
            lr=tuple(rates),
            steps=len(rates),
            task=the_task.name,
            seed=seed,
            data_fingerprint=data.fingerprint,
            order=order,
        )
        return model.eval(), record
    recorder = Recorder(
        model,
        optimizer,
        folder,
        snapshots={epoch * settings.steps_per_epoch(len(data)) for epoch in snapshot_epochs},
        task=the_task.name,
        seed=seed,
        data_fingerprint=data.fingerprint,
    )
    classes = the_task.name == "classification"

    def note(ids: Sequence[str], outputs: Tensor, labels: Tensor) -> None:
        recorder.step(ids, *((outputs, labels) if classes else (None, None)))

    run_steps(model, optimizer, data, order, rates, task=the_task, seed=seed, on_step=note, description=description)
    model.zero_grad()  # as large as the weights, and of one batch
    return model.eval(), recorder.finish()
