"""Cutting outputs that no row is labelled with any more out of the last layer."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from unlearn.curvature.layers import find_layers, last_called
from unlearn.data import Rows
from unlearn.errors import InputError, UnsupportedLayerError, some
from unlearn.predict import predict

CHECKED_ROWS = 64


@dataclass(frozen=True)
class OutputCut:
    """What was cut out of an edited model.

    Attributes:
        whole: the edited model with all its outputs, as retrained models have them: verification compares this one.
        layer: name of the layer whose rows were cut.
        dropped: the labels that have no output any more.
        labels: output of the cut model by label: {0: 0, 1: 1, 3: 2} where output 2 of four was cut.
    """

    whole: nn.Module
    layer: str
    dropped: tuple[int, ...]
    labels: dict[int, int]

    def __str__(self) -> str:
        moved = [f"label {old} is output {new}" for old, new in self.labels.items() if old != new]
        return f"output {some(self.dropped)} was cut from layer {self.layer!r}; " + (
            "afterwards " + ", ".join(moved) if moved else "the other labels keep theirs"
        )


def cut_outputs(model: nn.Module, data: Rows, labels: Collection[int]) -> tuple[nn.Module, OutputCut]:
    """Return a copy of a model without the outputs of these labels, and what was cut.

    The rows of the last layer's weight and bias are left out, nothing else changes: the outputs that stay are the same
    numbers, and their probabilities those given that the class is one of them.

    Args:
        model: any classifier whose outputs are those of its last matrix product; not changed.
        data: rows it can be called with, by which the cut is checked.
        labels: outputs to cut.

    Raises:
        InputError: fewer than two outputs would be left.
        UnsupportedLayerError: the outputs are not those of the last layer, or its weight has another use.

    >>> rows = Rows.from_tensors(torch.eye(3), torch.tensor([0, 1, 2]))
    >>> cut, what = cut_outputs(nn.Linear(3, 3), rows, [1])
    >>> cut.out_features, what.labels
    (2, {0: 0, 2: 1})
    """
    shown = data.at(torch.arange(min(CHECKED_ROWS, len(data))))
    before = predict(model, shown)
    kept = [label for label in range(before.shape[1]) if label not in set(labels)]
    if len(kept) < 2:
        raise InputError(f"{len(kept)} of {before.shape[1]} outputs would be left; keep at least two")
    layer = last_called(find_layers(model, shown).layers)
    cut = copy.deepcopy(model)
    for name, shape in layer.parameters.items():
        home, _, own = name.rpartition(".")
        module = cut.get_submodule(home)
        old = module.get_parameter(own)
        if shape[0] != before.shape[1]:
            raise UnsupportedLayerError(
                f"{name!r} of the last layer {layer.name!r} has {shape[0]} rows and the model {before.shape[1]} "
                "outputs, so no row of it is an output; keep the output (drop_output=False)"
            )
        setattr(module, own, nn.Parameter(old.detach()[torch.tensor(kept)].clone(), requires_grad=old.requires_grad))
        if isinstance(module, nn.Linear):
            module.out_features = len(kept)
    try:
        same = torch.allclose(predict(cut, shown), before[:, kept], rtol=1e-4, atol=1e-5)
    except (RuntimeError, IndexError):
        same = False
    if not same:
        raise UnsupportedLayerError(
            f"the model's outputs are not those of its last layer {layer.name!r} alone, so none can be cut there; keep "
            "the output (drop_output=False)"
        )
    dropped = tuple(sorted(set(range(before.shape[1])) - set(kept)))
    return cut, OutputCut(
        model, layer.name or next(iter(layer.parameters)), dropped, {label: k for k, label in enumerate(kept)}
    )
