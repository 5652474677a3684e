"""TracIn: what a row's gradients did along the recorded training (arXiv 2002.08484).

Axes: g group, b row, t position, i inputs, o outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.curvature import Layer, find_layers, layer_gradients
from unlearn.data import DEFAULT_BATCH, Rows, as_rows
from unlearn.detect.gradient_norms import squared_norms
from unlearn.detect.scores import Scores
from unlearn.errors import InputError, RecordError, some
from unlearn.tasks import Task, get_task
from unlearn.training import TrainingRecord


def tracin(
    model: nn.Module,
    data: Any,
    *,
    record: TrainingRecord,
    validation: Any = None,
    steps: Sequence[int] | None = None,
    skip: str | Iterable[str] = (),
    task: str | Task = "classification",
    batch_size: int = DEFAULT_BATCH,
) -> Scores:
    """Return TracInCP of each row over recorded snapshots (arXiv 2002.08484): sum_s lr_s g_z(s)^T g_q(s).

    With q the row itself (the default) it is its self-influence sum_s lr_s ||g_z(s)||^2, large for rows that training
    kept working on. With validation rows it is minus the mean over them: the paper counts a row that lowers a query's
    loss as positive (a proponent), here **positive is harmful**, as in :func:`unlearn.influence`.

    Departures: the learning rate of a snapshot is that of the step which led to it, so the weights before the first
    step do not count; the paper's factor of one over the batch size, the same for all rows, is left out; momentum and
    Adam's metric do not enter, as in the paper.

    Args:
        model: the architecture; the weights come from the snapshots. Left as found.
        data: the rows, with the labels to be judged. See :func:`unlearn.data.as_rows`.
        record: of the training, with snapshots.
        validation: rows that are trusted; None for self-influence.
        steps: snapshots to use, by their number of steps; all after the first step if None.
        skip: patterns of module or parameter names to leave out of the gradients.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        batch_size: rows at a time; changes time and memory, not the result.

    Returns:
        Scores of the method ``tracin`` or ``tracin-validation``, whose options hold ``snapshots`` (their steps),
        ``rates``, ``validation_rows`` and ``cost_epochs`` (one training epoch for each snapshot, and its share for
        the validation rows).

    Raises:
        RecordError: no snapshots, one that was not recorded or is damaged, or of another architecture.
        UnsupportedLayerError: a trained parameter belongs to no covered layer and was not skipped.
        InputError: no steps, one named twice or before the first, or a label outside the model's classes.

    >>> import tempfile
    >>> from unlearn.training import TrainSettings, train
    >>> rows = Rows.from_tensors(torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]]), torch.tensor([0, 0, 1, 1]))
    >>> with tempfile.TemporaryDirectory() as folder:  # row 2 has a wrong label
    ...     settings = TrainSettings(epochs=20, batch_size=4, lr=0.5)
    ...     model, record = train(nn.Linear(2, 2), rows, settings, folder=folder, snapshot_epochs=[5, 10, 20])
    ...     scores = tracin(model, rows, record=record)
    >>> scores.top(1)[0][0], scores.options["snapshots"], scores.options["cost_epochs"]
    ('2', [5, 10, 20], 3.0)
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")
    rows, the_task = as_rows(data), get_task(task)
    trusted = None if validation is None else as_rows(validation)
    chosen = _snapshots(record, steps)
    rates = [float(record.rates()[step - 1]) for step in chosen]
    layers = find_layers(model, rows, skip).layers
    there = copy.deepcopy(model)
    values = torch.zeros(len(rows), dtype=torch.float64)
    for step, rate in zip(chosen, rates, strict=True):
        record.snapshot(step).restore(there)
        pull = None if trusted is None else _mean_gradient(there, trusted, the_task, layers, batch_size)
        for positions, gradients in layer_gradients(there, rows, the_task, layers, batch_size):
            for name, (a, d) in gradients.items():
                found = squared_norms(a, d) if pull is None else -_products(pull[name], a, d)
                values[positions] += rate * found.cpu()
    passes = len(rows) + (0 if trusted is None else len(trusted))
    options = {
        "snapshots": chosen,
        "rates": rates,
        "validation_rows": 0 if trusted is None else len(trusted),
        "cost_epochs": len(chosen) * passes / len(rows),
    }
    return Scores(rows.ids, values.numpy(), "tracin" if trusted is None else "tracin-validation", options)


def _snapshots(record: TrainingRecord, steps: Sequence[int] | None) -> list[int]:
    """Return the steps of the snapshots to use, checked, in their order."""
    recorded = sorted(step for step in record.snapshots if step > 0)
    if not recorded:
        raise RecordError(
            "TracIn needs snapshots and the training record has none after the first step; train with snapshot_epochs, "
            "or choose another score"
        )
    if steps is None:
        return recorded
    if not steps or len(set(steps)) != len(steps):
        raise InputError(f"steps is {list(steps)}; name at least one snapshot, and each once (recorded: {recorded})")
    strange = [step for step in steps if step not in recorded]
    if strange:
        raise RecordError(f"no snapshot that a step led to was recorded at {some(strange)}; there are {recorded}")
    return sorted(steps)


def _mean_gradient(
    model: nn.Module, rows: Rows, task: Task, layers: Sequence[Layer], batch_size: int
) -> dict[str, Tensor]:
    """Return the mean gradient of the rows by layer name, each of shape (g, o, i), in float64."""
    total: dict[str, Tensor] = {}
    for _, gradients in layer_gradients(model, rows, task, layers, batch_size):
        for name, (a, d) in gradients.items():
            part = (d.flatten(1, 2).mT @ a.flatten(1, 2)).double() / len(rows)
            total[name] = total[name] + part if name in total else part
    return total


def _products(vector: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """Return the inner product of a vector (g, o, i) with each sample's gradient, sum_t d_t^T V a_t, shape (b,)."""
    along = a @ vector.to(a.dtype).mT[:, None]
    return (along * d).sum((2, 3), dtype=torch.float64).sum(0)
