"""Confidence in the given label of models that never saw the row: k-fold training with the settings of the original."""

from __future__ import annotations

from collections import defaultdict
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from unlearn.data import DEFAULT_BATCH, Rows, as_rows, draws
from unlearn.detect.scores import Scores
from unlearn.errors import InputError, MissingExtraError, did_you_mean
from unlearn.predict import predict
from unlearn.tasks import get_task
from unlearn.training import TrainSettings, train

Through = Literal["auto", "cleanlab", "plain"]


def out_of_sample(
    model: nn.Module,
    data: Any,
    settings: TrainSettings,
    *,
    folds: int = 5,
    seed: int = 0,
    through: Through = "auto",
    batch_size: int = DEFAULT_BATCH,
) -> Scores:
    """Return 1 - p of each row's given label, p from a model trained on the other folds (arXiv 1911.00068).

    It is one minus cleanlab's label quality score ``self_confidence``, which is p itself: both ways give the same
    values up to rounding, and the options say which was taken.

    Args:
        model: initial weights of every fold's training; not changed.
        data: the rows, with the labels to be judged. See :func:`unlearn.data.as_rows`.
        settings: of the training that is to be imitated.
        folds: how many; each row is left out of one training. Every label is spread evenly over them.
        seed: of the folds, the row order and random layers.
        through: ``cleanlab``: by the package; ``plain``: without it; ``auto``: by the package where it is installed.
        batch_size: rows at a time in prediction; changes time and memory, not the result.

    Returns:
        Scores whose options hold ``folds``, ``seed``, ``epochs``, ``through`` (``plain``, or cleanlab with its
        version) and ``cost_epochs``: (folds - 1) trainings, and one prediction.

    Raises:
        MissingExtraError: cleanlab is asked for and not installed.
        InputError: rows without classes, an unknown option, or a number of folds that does not fit the rows.

    >>> rows = Rows.from_tensors(torch.eye(2).repeat(6, 1), torch.tensor([0, 1] * 5 + [1, 1]))  # row 10 is wrong
    >>> scores = out_of_sample(nn.Linear(2, 2), rows, TrainSettings(lr=0.5, batch_size=4), folds=3)
    >>> scores.top(1)[0][0], round(scores.options["cost_epochs"], 2)
    ('10', 30.33)
    """
    if through not in get_args(Through):
        raise InputError(f"unknown value of through {through!r}; {did_you_mean(through, get_args(Through))}")
    rows = as_rows(data)
    cleanlab = None if through == "plain" else _cleanlab(needed=through == "cleanlab")
    logits = out_of_sample_logits(model, rows, settings, folds=folds, seed=seed, batch_size=batch_size).double()
    if cleanlab is None:
        # the sum of the others' probabilities: 1 - p has no digits left where p is near 1
        others = logits.scatter(1, rows.labels[:, None], float("-inf")).logsumexp(1)
        values: npt.NDArray[np.float64] = (others - logits.logsumexp(1)).exp().numpy()
    else:
        rank = import_module("cleanlab.rank")
        quality = rank.get_label_quality_scores(
            rows.labels.numpy(), logits.softmax(1).numpy(), method="self_confidence", adjust_pred_probs=False
        )
        values = 1.0 - np.asarray(quality, dtype=np.float64)
    options = {
        "folds": folds,
        "seed": seed,
        "epochs": settings.epochs,
        "through": "plain" if cleanlab is None else f"cleanlab {cleanlab.__version__}",
        "cost_epochs": (folds - 1) * settings.epochs + 1 / 3,
    }
    return Scores(rows.ids, values, "out-of-sample", options)


def out_of_sample_logits(
    model: nn.Module,
    data: Any,
    settings: TrainSettings,
    *,
    folds: int = 5,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
) -> Tensor:
    """Return each row's logits by a model trained on the folds it is not in, shape (n, classes); see `out_of_sample`.

    They suit :func:`unlearn.suggest_labels` too.

    Raises:
        InputError: rows without classes, or a number of folds that does not fit the rows.

    >>> rows = Rows.from_tensors(torch.eye(2).repeat(6, 1), torch.tensor([0, 1] * 6))
    >>> out_of_sample_logits(nn.Linear(2, 2), rows, TrainSettings(lr=0.5, batch_size=4), folds=3).argmax(1).tolist()
    [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    """
    given = as_rows(data)
    if given.classes is None:
        raise InputError(f"{given.name} has numbers for labels; out-of-sample confidence is of classes only")
    if not 2 <= folds <= len(given):
        raise InputError(f"folds is {folds}; give from 2 to the {len(given)} rows")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")
    rows = given.only(sorted(given.ids))  # training shuffles positions; in the order of ids, any order gives the same
    held_out = _folds(rows, folds, seed)
    parts = []
    for k, positions in enumerate(held_out):
        kept = rows.without([rows.ids[i] for i in positions.tolist()])
        trained, _ = train(model, kept, settings, seed=seed, description=f"fold {k + 1} of {folds}")
        parts.append(predict(trained, rows.at(positions), batch_size=batch_size))
        get_task("classification").check(parts[-1], rows.labels[positions])
    logits = torch.cat(parts)[torch.cat(held_out).argsort()]
    return logits[rows.positions(given.ids)]


def _folds(rows: Rows, folds: int, seed: int) -> list[Tensor]:
    """Return the positions of each fold, dealt out label by label in an order drawn by id."""
    of_label: dict[int, list[int]] = defaultdict(list)
    for i in draws.permutation(seed, rows.ids, "out-of-sample-folds").tolist():
        of_label[int(rows.labels[i])].append(i)
    dealt = [i for label in sorted(of_label) for i in of_label[label]]
    return [torch.tensor(sorted(dealt[k::folds])) for k in range(folds)]


def _cleanlab(*, needed: bool) -> Any:
    """Return the package, or None where it is not installed."""
    try:
        return import_module("cleanlab")
    except ImportError as error:
        if needed:
            raise MissingExtraError(
                "through='cleanlab' needs the package cleanlab, which is not installed: pip install cleanlab, or pass "
                "through='plain' for the same self-confidence without it"
            ) from error
        return None
