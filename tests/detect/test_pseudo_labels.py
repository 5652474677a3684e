"""Pseudo-labels by a model of few labels, and layer-wise harm split into head and features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from unlearn.data import Rows, load_data
from unlearn.detect import LayerScores, layer_harm
from unlearn.detect.pseudo_labels import PseudoLabelled, head_and_features, pseudo_label
from unlearn.errors import InputError, RowNotFoundError
from unlearn.models import build_model
from unlearn.predict import predict
from unlearn.training import TrainSettings, train

SETTINGS = TrainSettings(lr=0.1, epochs=5, batch_size=16)


def start() -> nn.Module:
    return build_model("mlp", seed=0, inputs=64, classes=10, widths=[16])


@pytest.fixture(scope="module")
def rows() -> Rows:
    return load_data("digits").at(torch.arange(300))


@pytest.fixture(scope="module")
def made(rows: Rows) -> PseudoLabelled:
    return pseudo_label(start(), rows, SETTINGS, labelled=30, seed=1)


def test_labels_are_those_of_a_model_of_the_labelled_rows(rows: Rows, made: PseudoLabelled) -> None:
    labelled = [row for row in rows.ids if row not in made.ids]
    assert len(labelled) == 30
    assert made.rows.ids == rows.ids
    model, _ = train(start(), rows.only(labelled), SETTINGS, seed=1)
    logits = predict(model, rows.only(made.ids)).double()
    assert torch.equal(made.rows.only(made.ids).labels, logits.argmax(1))
    assert torch.equal(made.rows.only(labelled).labels, rows.only(labelled).labels)
    assert made.rows.truth is not None
    assert torch.equal(made.rows.truth, rows.labels)
    doubt = 1 - logits.softmax(1).max(1).values.numpy()
    np.testing.assert_allclose(made.doubt.values, doubt, rtol=1e-12, atol=1e-15)
    assert made.doubt.ids == made.ids


def test_given_labels_of_the_others_are_not_used(rows: Rows, made: PseudoLabelled) -> None:
    """Whatever the others were labelled, the pseudo-labels are the same; a truth that is known stays the truth."""
    noisy = rows.with_truth(rows.labels).relabelled(dict.fromkeys(made.ids, 0))
    again = pseudo_label(start(), noisy, SETTINGS, labelled=30, seed=1)
    assert torch.equal(again.rows.labels, made.rows.labels)
    assert again.rows.truth is not None
    assert torch.equal(again.rows.truth, rows.labels)


def test_labelled_rows_are_drawn_by_seed_and_id(rows: Rows, made: PseudoLabelled) -> None:
    turned = rows.at(torch.arange(len(rows)).flip(0))
    assert set(pseudo_label(start(), turned, SETTINGS, labelled=30, seed=1).ids) == set(made.ids)
    assert set(pseudo_label(start(), rows, SETTINGS, labelled=30, seed=2).ids) != set(made.ids)


def test_expected_wrong_is_the_error_of_the_labeller(made: PseudoLabelled) -> None:
    trusted = load_data("digits", "test").at(torch.arange(100))
    wrong = sum(int(predict(made.labeller, trusted)[i].argmax()) != int(trusted.labels[i]) for i in range(100))
    assert 0 < wrong < 100
    assert made.expected_wrong(trusted) == round(270 * wrong / 100)


def test_parts_sum_to_the_harm(made: PseudoLabelled) -> None:
    model, _ = train(start(), made.rows, SETTINGS)
    table = layer_harm(model, made.rows, load_data("digits", "test").at(torch.arange(50)))
    parts = head_and_features(table, rows=made.ids)
    at = [table.ids.index(row) for row in made.ids]
    np.testing.assert_array_equal(parts["head"].values, table.layer("3").values[at])
    np.testing.assert_array_equal(parts["features"].values, table.layer("1").values[at])
    np.testing.assert_allclose(parts["total"].values, table.total().values[at], rtol=1e-12)
    assert [parts[name].method for name in ("total", "head", "features")] == ["harm", "harm-head", "harm-features"]
    assert parts["head"].options["head"] == "3"


def test_rows_are_given_in_the_order_asked_for_and_the_head_may_be_named() -> None:
    parts = head_and_features(TABLE, rows=["b", "a"], head="0")
    assert parts["head"].ids == ("b", "a")
    assert parts["head"].values.tolist() == [4.0, 1.0]
    assert parts["features"].values.tolist() == [-1.0, 2.5]


TABLE = LayerScores(("a", "b"), ("0", "2", "4"), np.array([[1.0, 2.0, 0.5], [4.0, -3.0, 2.0]]), "harm")
NUMBERS = Rows.from_tensors(torch.eye(3), torch.tensor([0.1, 0.2, 0.3]))
CLASSES = Rows.from_tensors(torch.eye(3), torch.tensor([0, 0, 1]))

REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "regression": (
        lambda: pseudo_label(nn.Linear(3, 1), NUMBERS, SETTINGS, labelled=1),
        InputError,
        "data has labels without classes; pseudo-labels are of classes only",
    ),
    "none labelled": (
        lambda: pseudo_label(nn.Linear(3, 2), CLASSES, SETTINGS, labelled=0),
        InputError,
        "labelled is 0; give from 1 to 2 of the 3 rows",
    ),
    "all labelled": (
        lambda: pseudo_label(nn.Linear(3, 2), CLASSES, SETTINGS, labelled=3),
        InputError,
        "labelled is 3; give from 1 to 2",
    ),
    "one class": (
        lambda: pseudo_label(nn.Linear(3, 2), CLASSES, SETTINGS, labelled=1),
        InputError,
        "the 1 labelled rows are all of one class",
    ),
    "unknown head": (lambda: head_and_features(TABLE, head="fc"), InputError, "no layer 'fc' in the table"),
    "unknown row": (lambda: head_and_features(TABLE, rows=["z"]), RowNotFoundError, "no rows 'z' in the table"),
    "no features": (
        lambda: head_and_features(LayerScores(("a",), ("0",), np.ones((1, 1)), "harm")),
        InputError,
        "no layer beside '0'; a model without feature layers can not be split",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message) as found:
        make()
    assert "\n" not in str(found.value)
