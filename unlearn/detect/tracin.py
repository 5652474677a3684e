"""TracIn: what a row's gradients did along the recorded training (arXiv 2002.08484).

Axes: g group, b row, t position, i inputs, o outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from unlearn.curvature import find_layers, layer_gradients
from unlearn.data import DEFAULT_BATCH, as_rows
from unlearn.detect.gradient_norms import squared_norms
from unlearn.detect.harm import gradient_products, mean_gradient
from unlearn.detect.recorded_steps import recorded_steps
from unlearn.detect.scores import Scores
from unlearn.errors import InputError
from unlearn.precision import precision_option
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
        InputError: no steps, one named twice or before the first, or a label outside the model's classes.

    >>> import tempfile
    >>> from unlearn.data import Rows
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
    chosen = recorded_steps(record, steps)
    rates = [float(record.rates()[step - 1]) for step in chosen]
    layers = find_layers(model, rows, skip).layers
    covered = [name for layer in layers for name in layer.parameters]
    there = copy.deepcopy(model)
    values = torch.zeros(len(rows), dtype=torch.float64)
    for step, rate in zip(chosen, rates, strict=True):
        record.snapshot(step).restore(there)
        if trusted is None:
            for positions, gradients in layer_gradients(there, rows, the_task, layers, batch_size):
                values[positions] += (
                    rate * torch.stack([squared_norms(*pair) for pair in gradients.values()]).sum(0).cpu()
                )
        else:
            pull = mean_gradient(there, trusted, the_task, covered, batch_size)
            for positions, parts in gradient_products(there, rows, the_task, layers, pull, batch_size):
                values[positions] -= rate * torch.stack(list(parts.values())).sum(0)
    passes = len(rows) + (0 if trusted is None else len(trusted))
    options = {
        "snapshots": chosen,
        "rates": rates,
        "validation_rows": 0 if trusted is None else len(trusted),
        "cost_epochs": len(chosen) * passes / len(rows),
        **precision_option(),
    }
    return Scores(rows.ids, values.numpy(), "tracin" if trusted is None else "tracin-validation", options)
