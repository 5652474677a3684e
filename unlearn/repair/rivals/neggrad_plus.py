"""NegGrad+: fine-tuning on what is left, and gradient ascent on the changed rows, in one loss."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.inputs import call_model, map_tensors
from unlearn.repair.changes import Changes
from unlearn.repair.descent import batch_size, descend, shuffled
from unlearn.repair.rivals.rates import rates_to_try, usual_rate
from unlearn.repair.rivals.rival import Rival, RivalEdit, epochs_of
from unlearn.tasks import get_task
from unlearn.training import TrainingRecord

ALPHAS = (0.9, 0.99, 0.999)


def neggrad_plus(
    model: nn.Module, data: Rows, changes: Changes, record: TrainingRecord, setting: dict[str, float], seed: int
) -> RivalEdit:
    """Minimise alpha * (mean loss of a batch left) - (1 - alpha) * (mean loss of a batch changed, at the old labels).

    arXiv 2302.09880, section 4, and its authors' ``train_negrad``: one batch of each kind a step, the changed rows'
    batches going round. Departures: they are shuffled anew each round, and relabelled rows are among the rows left,
    with their new labels.

    Settings: ``epochs`` over the rows left; ``alpha``, above 0 and at most 1; ``lr``, by default the median recorded
    one. Both kinds of batches are paid for.

    Raises:
        InputError: alpha is above 1.
    """
    setting = {"lr": usual_rate(record), **setting}
    alpha = setting["alpha"]
    if alpha > 1:
        raise InputError(f"alpha of NegGrad+ is {alpha:g}; give a number above 0 and at most 1")
    task = get_task(record.task)
    device = next(model.parameters()).device
    edited, changed = changes.apply(data), data.only(changes.ids)
    order = shuffled(edited, record, setting["epochs"], seed)
    rounds = (shuffled(changed, record, 1, seed + 1 + k).on(changed) for k in itertools.count())
    batches = itertools.chain.from_iterable(rounds)
    ascended = 0

    def contrast(student: nn.Module, loss: Tensor) -> Tensor:
        nonlocal ascended
        batch = next(batches)
        batch = batch[batch >= 0]
        inputs, labels = changed.batch(batch)
        outputs = call_model(student, map_tensors(lambda x: x.to(device), inputs))
        ascended += len(batch)
        return alpha * loss - (1 - alpha) * task.loss(outputs, labels.to(device)).mean()

    rates = [setting["lr"]] * len(order)
    moved, processed = descend(
        model, edited, order, rates, record, seed=seed, objective=contrast, description="NegGrad+"
    )
    return RivalEdit(moved, epochs_of(processed + ascended, data), setting)


def grid(data: Rows, changes: Changes, record: TrainingRecord, cost: float) -> list[dict[str, float]]:
    """Return as many epochs as may be spent on both kinds of batches, for every alpha at every rate."""
    size = batch_size(record)
    epochs = cost / (1 + min(1.0, len(changes.ids) / size))
    return [{"epochs": epochs, "alpha": a, "lr": lr} for a in ALPHAS for lr in rates_to_try(record)]


NEGGRAD_PLUS = Rival("NegGrad+", neggrad_plus, grid, required=("epochs", "alpha"), optional=("lr",))
