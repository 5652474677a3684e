"""Whether a model still answers changed rows by their old labels: what tells wrong labels from right ones.

A model without the changed rows, or from before it learnt them, gives rows that were labelled rightly their class all
the same, for the others teach it; of wrong labels it gives next to none (measured on three recipes: .75 to .9 of right
ones, .08 at most of wrong ones, after any edit). So it needs no truth, and no list of what was wrong.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from unlearn.data import Rows
from unlearn.predict import predict

MOST = 200
"""Rows that are looked at; where there are more, so many of them. It is not counted in the cost of an edit."""


def still_answered(model: nn.Module, before: Rows) -> bool | None:
    """Return whether the model gives most of these rows the class of their label.

    Args:
        model: at weights that have not learnt the rows, or no longer.
        before: the rows, with their old labels.

    Returns:
        None where the outputs are not those of classes.

    >>> import torch
    >>> rows = Rows.from_tensors(torch.eye(3), torch.tensor([0, 1, 0]))
    >>> model = nn.Linear(3, 3)
    >>> _ = model.load_state_dict({"weight": torch.eye(3), "bias": torch.zeros(3)})
    >>> still_answered(model, rows), still_answered(model, rows.only(["2"]))
    (True, False)
    """
    if before.classes is None:
        return None
    some = before.sample(MOST, stream="old-answers")
    outputs = predict(model, some)
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    return float((outputs.argmax(1) == some.labels).double().mean()) >= 0.5


def learnt_less(model: nn.Module, rows: Rows, changed: Collection[str]) -> bool | None:
    """Return whether a model that gives most of the other rows their class does not so with the changed ones.

    None where it does not know the others either, where there are no others, or without classes.

    >>> import torch
    >>> rows = Rows.from_tensors(torch.eye(3), torch.tensor([0, 1, 0]))
    >>> model = nn.Linear(3, 3)
    >>> _ = model.load_state_dict({"weight": torch.eye(3), "bias": torch.zeros(3)})
    >>> learnt_less(model, rows, ["2"]), learnt_less(model, rows, ["0"]), learnt_less(model, rows, ["0", "1"])
    (True, False, None)
    """
    if len(changed) == len(rows) or not still_answered(model, rows.without(changed)):
        return None
    return still_answered(model, rows.only(changed)) is False
