"""Removing a class: its rows as any others; its output kept, or cut with nothing else changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from repair_cases import digits, same_bits, tiny, training
from torch import Tensor, nn

import unlearn
from unlearn.data import Rows
from unlearn.errors import InputError, UnsupportedLayerError
from unlearn.predict import predict
from unlearn.repair import Changes, apply_changes, cut_outputs, drop_outputs

FINE: dict[str, Any] = {"damping": 0.1, "weight_decay": 0.01}


def test_the_rows_of_the_class_go_as_if_named_one_by_one() -> None:
    model, rows = tiny()
    edit = unlearn.remove_class(model, rows, 1, **FINE)
    of_class = [row for row, label in zip(rows.ids, rows.labels.tolist(), strict=True) if label == 1]
    assert edit.changes.removed == tuple(of_class)
    by_hand = unlearn.remove(model, rows, of_class, allow_empty_class=True, **FINE)
    assert same_bits(edit.model, by_hand.model)
    assert (edit.to_dict()["action"], edit.to_dict()["removed_classes"]) == ("remove-class", [1])
    assert edit.cut is None
    assert edit.comparable is edit.model
    assert edit.after["changed_phi"] < edit.before["changed_phi"]


def test_mixed_decisions_in_one_edit() -> None:
    """Rejects edits one after the other, whose second step starts elsewhere."""
    model, rows = tiny()
    changes = Changes(("row-0",), {"row-3": 2, "row-1": 0}, (1,))
    edit = apply_changes(model, rows, changes, **FINE)
    assert edit.changes.action == "mixed"
    assert edit.changes.removed == ("row-0", "row-4", "row-7", "row-10")  # row-1 is of class 1, and goes on as a 0
    named = Changes(edit.changes.removed, {"row-3": 2, "row-1": 0})
    assert same_bits(edit.model, apply_changes(model, rows, named, allow_empty_class=True, **FINE).model)
    assert edit.edited_data.labels.tolist() == [0, 2, 2, 2, 0, 2, 0, 2]


def test_a_cut_output_leaves_every_other_number_as_it_was() -> None:
    model, rows = tiny()
    before = copy.deepcopy(model.state_dict())
    edit = unlearn.remove_class(model, rows, 1, drop_output=True, **FINE)
    whole = unlearn.remove_class(model, rows, 1, **FINE)
    assert edit.cut is not None
    assert same_bits(edit.comparable, whole.model)
    torch.testing.assert_close(predict(edit.model, rows), predict(whole.model, rows)[:, [0, 2]])
    assert edit.cut.labels == {0: 0, 2: 1}
    assert (edit.cut.layer, edit.cut.dropped) == ("2", (1,))
    assert edit.notes[-1] == "output 1 was cut from layer '2'; afterwards label 2 is output 1"
    assert torch.equal(edit.model.get_parameter("2.bias"), whole.model.get_parameter("2.bias")[[0, 2]])
    assert torch.equal(edit.model.get_parameter("0.weight"), whole.model.get_parameter("0.weight"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="its outputs are cut already"):
        drop_outputs(edit)
    with pytest.raises(InputError, match="removed no class"):
        drop_outputs(unlearn.remove(model, rows, ["row-1"], **FINE))


def test_the_verdict_compares_the_model_before_the_cut(tmp_path: Path) -> None:
    model, rows, record = training(tmp_path)
    edits = [
        unlearn.remove_class(model, rows, 3, drop_output=drop, record=record, budget=1.0) for drop in (False, True)
    ]
    said = [unlearn.verify(edit, test=digits(60, "test"), references=2).to_dict() for edit in edits]
    assert said[0] == said[1]


class OwnHead(nn.Module):
    """A head that is no nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 2, 3)
        self.weight = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.body(x).relu().flatten(1), self.weight)


class Tied(nn.Module):
    """Its weight makes features too, so its rows are no outputs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weight).tanh(), self.weight)


def test_a_head_of_ones_own() -> None:
    rows = Rows.from_tensors(torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 3, 3]))
    model = OwnHead()
    cut, what = cut_outputs(model, rows, [0, 2])
    torch.testing.assert_close(predict(cut, rows), predict(model, rows)[:, [1, 3]])
    assert what.labels == {1: 0, 3: 1}
    assert str(what) == "output 0, 2 was cut from layer 'weight'; afterwards label 1 is output 0, label 3 is output 1"


UNCUT: dict[str, tuple[nn.Module, str]] = {
    "normalised after": (nn.Sequential(nn.Linear(3, 3), nn.LogSoftmax(1)), "are not those of its last layer '0' alone"),
    "normed after": (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), "are not those of its last layer"),
    "used twice": (Tied(), "are not those of its last layer"),
    "features last": (nn.Sequential(nn.Linear(3, 6), nn.Unflatten(1, (3, 2)), nn.AvgPool1d(2), nn.Flatten()), "6 rows"),
}


@pytest.mark.parametrize("case", UNCUT)
def test_an_output_that_is_no_row_of_the_last_layer_is_not_cut(case: str) -> None:
    model, message = UNCUT[case]
    rows = Rows.from_tensors(torch.eye(3), torch.tensor([0, 1, 2]))
    with pytest.raises(UnsupportedLayerError, match=message) as found:
        unlearn.remove_class(model, rows, 1, drop_output=True, **FINE)
    assert "\n" not in str(found.value)


def test_labels_that_are_no_class() -> None:
    model, rows = tiny()
    for label in (1.5, True):
        with pytest.raises(InputError, match=f"label is {label}; give the class to remove"):
            unlearn.remove_class(model, rows, label, **FINE)
    with pytest.raises(InputError, match="no row of data is of class 7"):
        unlearn.remove_class(model, rows, 7, **FINE)
    with pytest.raises(InputError, match="1 of 2 outputs would be left"):
        cut_outputs(nn.Linear(3, 2), Rows.from_tensors(torch.eye(3), torch.tensor([0, 1, 1])), [0])
