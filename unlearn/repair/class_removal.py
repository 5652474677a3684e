"""Removing a class: its rows go; its output stays, or is cut off on request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from unlearn.data import as_rows
from unlearn.errors import InputError
from unlearn.repair.apply import apply_changes
from unlearn.repair.changes import Changes
from unlearn.repair.edit import Edit
from unlearn.repair.output_cut import cut_outputs


def remove_class(model: nn.Module, data: Any, label: int, *, drop_output: bool = False, **options: Any) -> Edit:
    """Edit a model as if no row of this class had been in its training.

    A retrained model that keeps the output learns never to give it, so that is what the edit aims at; the verdict
    compares these models. Cutting the output is done last, to the edited weights, and leaves all others as they are.

    Args:
        model: the trained model; not changed.
        data: the rows it was trained on. See :func:`unlearn.as_rows`.
        label: the class to remove.
        drop_output: cut the class's output from the edited model. ``edit.cut`` says how labels map afterwards and
            holds the model before the cut.
        **options: those of :func:`apply_changes`.

    Raises:
        InputError: no row is of this class, or only one class would be left.
        UnsupportedLayerError: the output to cut is not a row of the last layer.

    >>> import torch
    >>> rows = as_rows((torch.eye(6), torch.tensor([0, 1, 2, 0, 1, 2])))
    >>> edit = remove_class(nn.Linear(6, 3), rows, 1, drop_output=True, damping=0.1, weight_decay=0.01)
    >>> edit.changes.removed, edit.model.out_features, edit.cut.labels
    (('1', '4'), 2, {0: 0, 2: 1})
    """
    if isinstance(label, bool) or int(label) != label:
        raise InputError(f"label is {label!r}; give the class to remove as a whole number")
    rows, changes = as_rows(data), Changes(removed_classes=(label,))
    if drop_output:
        changes.on(rows).check(rows)
        cut_outputs(model, rows, changes.removed_classes)
    edit = apply_changes(model, rows, changes, **options)
    return drop_outputs(edit) if drop_output else edit


def drop_outputs(edit: Edit) -> Edit:
    """Return the edit with the outputs of its removed classes cut from the edited model.

    Raises:
        InputError: it removed no class, or its outputs are cut already.
        UnsupportedLayerError: an output is not a row of the last layer.
    """
    if not edit.changes.removed_classes or edit.cut is not None:
        raise InputError("no output to cut: the edit removed no class, or its outputs are cut already")
    model, cut = cut_outputs(edit.model, edit.data, edit.changes.removed_classes)
    return replace(edit, model=model, cut=cut, notes=(*edit.notes, str(cut)))
