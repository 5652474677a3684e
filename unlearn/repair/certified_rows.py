"""Rows that a certified head can be trained on: features in float64, of length at most 1, with class labels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unlearn.data import Rows
from unlearn.errors import InputError, UncertifiedError, some
from unlearn.inputs import named_tensors
from unlearn.models import LinearHead
from unlearn.models.linear import unit_length
from unlearn.precision import refuse_half
from unlearn.predict import predict
from unlearn.training import SignedRows

LONGEST_ROW = 1 + 1e-6  # rows that were scaled in float32 pass


def check_certified(model: LinearHead, data: Rows) -> None:
    """Refuse rows and a model of which no certified head can be made, before anything is trained.

    Raises:
        UncertifiedError: rows longer than 1.
        InputError: the number of outputs is not that of the columns of these classes.
    """
    wanted = 1 if data.classes == 2 else data.classes
    if len(model.weight) != wanted:
        raise InputError(
            f"the model has {len(model.weight)} outputs; a certified head of {data.classes} classes has {wanted}: set "
            f"options.outputs = {wanted}"
        )
    feature_rows(data, None, model.unit_rows)


def features_of(data: Rows, extractor: nn.Module | None) -> Tensor:
    """Return features in float64, shape (n, d)."""
    refuse_half("a certified head is")
    if extractor is not None:
        return predict(extractor, data).flatten(1).double()
    inputs: Mapping[str, Tensor] = named_tensors(data.batch(torch.arange(len(data)))[0])
    if list(inputs) != [""]:
        raise InputError(f"inputs of {data.name} have the parts {some(inputs)}; give an extractor that joins them")
    return inputs[""].flatten(1).double()


def feature_rows(data: Rows, extractor: nn.Module | None, unit_rows: bool) -> Rows:
    """Return the rows as features of length at most 1."""
    if data.classes is None or data.labels.ndim != 1 or data.classes < 2:
        raise UncertifiedError(
            f"labels of {data.name} are no classes (at least two); a certificate exists for the logistic loss of class "
            "labels only"
        )
    features = features_of(data, extractor)
    features = unit_length(features) if unit_rows else features
    longest = float(features.norm(dim=1).max())
    if not longest <= LONGEST_ROW:
        raise UncertifiedError(
            f"the longest row of {data.name} has length {longest:.4g}; a certificate needs rows of length at most 1: "
            "scale them, or pass unit_rows=True to divide each row by its own length"
        )
    return Rows.from_tensors(features, data.labels, ids=data.ids, classes=data.classes, name=data.name)


def signed_rows(rows: Rows) -> SignedRows:
    """Return the rows of a head as features and signs."""
    inputs, labels = rows.batch(torch.arange(len(rows)))
    return SignedRows.of(named_tensors(inputs)[""], labels, rows.classes or 2)
