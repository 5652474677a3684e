"""Bad input to an edit: one clear line, and what to do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from repair_cases import tiny
from torch import nn

import unlearn
from unlearn.data import Rows
from unlearn.errors import InputError, RecordError, RowNotFoundError, StaleCurvatureError
from unlearn.repair import Changes, Edit
from unlearn.tasks import Classification
from unlearn.training import TrainingRecord

FINE: dict[str, Any] = {"damping": 0.1, "weight_decay": 0.01}
THE_MODEL_AND_ROWS = tiny()


class Nameless(Classification):
    name = None  # type: ignore[assignment]


def remove(ids: Any = ("row-1",), **options: Any) -> Edit:
    return unlearn.remove(*THE_MODEL_AND_ROWS, ids, **options)


def relabel(labels: dict[str, int]) -> Edit:
    return unlearn.relabel(*THE_MODEL_AND_ROWS, labels, **FINE)


def mixed(removed: tuple[str, ...], labels: dict[str, int], classes: tuple[int, ...] = ()) -> Edit:
    return unlearn.apply_changes(*THE_MODEL_AND_ROWS, Changes(removed, labels, classes), **FINE)


CASES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no record, nothing": (lambda: remove(), RecordError, "no training record and no weight decay: pass record="),
    "no record, no damping": (lambda: remove(weight_decay=0.1), RecordError, "no training record and no damping"),
    "no record, no weight decay": (lambda: remove(damping=0.1), RecordError, "no training record and no weight decay"),
    "damping negative": (lambda: remove(damping=-1.0, weight_decay=0.0), InputError, "damping is -1.0"),
    "damping nan": (lambda: remove(damping=math.nan, weight_decay=0.0), InputError, "damping is nan"),
    "damping infinite": (lambda: remove(damping=math.inf, weight_decay=0.0), InputError, "damping is inf"),
    "damping a word": (lambda: remove(damping="auto", weight_decay=0.0), InputError, "unknown damping 'auto'"),
    "decay negative": (lambda: remove(damping=0.1, weight_decay=-1e-3), InputError, "weight_decay is -0.001"),
    "decay infinite": (lambda: remove(damping=0.1, weight_decay=math.inf), InputError, "weight_decay is inf"),
    "budget negative": (lambda: remove(**FINE, budget=-1), InputError, "budget is -1"),
    "budget nan": (lambda: remove(**FINE, budget=math.nan), InputError, "budget is nan"),
    "steps 0": (lambda: remove(**FINE, steps=0), InputError, "steps is 0"),
    "steps a word": (lambda: remove(**FINE, steps="many"), InputError, "steps is 'many'"),
    "unknown id": (lambda: remove(["row-99"], **FINE), RowNotFoundError, "'row-99'"),
    "no id": (lambda: remove([], **FINE), InputError, "no row is changed"),
    "id twice": (lambda: remove(["row-1", "row-1"], **FINE), InputError, "named twice"),
    "unknown task": (lambda: remove(**FINE, task="clasification"), InputError, "did you mean 'classification'"),
    "task without curvature": (
        lambda: remove(**FINE, task=nn.CrossEntropyLoss()),
        InputError,
        "task CrossEntropyLoss has no curvature: it lacks check, loss, output_gradient",
    ),
    "task without a name": (lambda: remove(**FINE, task=Nameless()), InputError, "no curvature: it lacks name; wrap"),
    "loss that is not convex": (
        lambda: remove(**FINE, task=unlearn.OwnLoss(lambda z, y: z.cos().sum(1))),
        InputError,
        "the loss is not convex there; pass curvature=",
    ),
    "label as it is": (lambda: relabel({"row-1": 1}), InputError, "carry their new label already: 'row-1'"),
    "label outside": (lambda: relabel({"row-1": 3}), InputError, "label 3 for row 'row-1' is outside the classes"),
    "no label": (lambda: relabel({}), InputError, "no row is changed"),
    "removed and relabelled": (lambda: mixed(("row-1",), {"row-1": 2}), InputError, "named twice"),
    "relabelled to a class that goes": (
        lambda: mixed((), {"row-0": 1}, (1,)),
        InputError,
        "row 'row-0' is relabelled to class 1, which is removed; decide once",
    ),
    "class not there": (lambda: mixed((), {}, (5,)), InputError, "no row of data is of class 5; its classes are"),
    "class emptied": (
        lambda: remove(["row-1", "row-4", "row-7", "row-10"], **FINE),
        InputError,
        "no row of class 1 would be left; pass allow_empty_class=True",
    ),
    "unknown batch norm rule": (lambda: remove(**FINE, batch_norm="keep"), InputError, "unknown batch_norm 'keep'"),
    "adam without snapshot": (
        lambda: remove(record=TrainingRecord("adam", 0.01, 50)),
        RecordError,
        "the damping of Adam needs the last snapshot",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_line_and_touches_no_weight(case: str) -> None:
    make, error, message = CASES[case]
    before = copy.deepcopy(THE_MODEL_AND_ROWS[0].state_dict())
    with pytest.raises(error, match=message) as found:
        make()
    assert "\n" not in str(found.value)
    after = THE_MODEL_AND_ROWS[0].state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_one_id_may_be_a_string() -> None:
    assert remove("row-1", **FINE).changes.removed == ("row-1",)


def test_weight_decay_and_damping_may_take_the_place_of_the_records() -> None:
    record = TrainingRecord("sgd", 0.1, 100, weight_decay=0.5)
    (step,) = remove(record=record).steps
    assert (step.weight_decay, step.damping) == (0.5, pytest.approx(0.2))
    (step,) = remove(record=record, weight_decay=0.0, damping=3).steps
    assert (step.weight_decay, step.damping) == (0.0, 3.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_damaged_weights(value: float) -> None:
    model, rows = tiny()
    with torch.no_grad():
        model[0].weight[0, 0] = value
    with pytest.raises(InputError, match=r"NaN or infinite|not finite") as found:
        unlearn.remove(model, rows, ["row-1"], **FINE)
    assert "\n" not in str(found.value)


def test_damaged_inputs() -> None:
    inputs = torch.eye(4)
    inputs[2, 2] = math.nan
    rows = Rows.from_tensors(inputs, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(InputError, match="NaN or infinite in rows 2"):
        unlearn.remove(nn.Linear(4, 2), rows, ["1"], **FINE)


def test_labels_outside_the_models_classes() -> None:
    rows = Rows.from_tensors(torch.eye(4), torch.tensor([0, 1, 2, 2]))
    with pytest.raises(InputError, match="label 2 is outside the model's 2 classes"):
        unlearn.remove(nn.Linear(4, 2), rows, ["2"], **FINE)


def test_curvature_of_other_weights() -> None:
    model, rows = tiny()
    curvature = unlearn.fit_curvature(model, rows)
    unlearn.remove(model, rows, ["row-1"], **FINE, curvature=curvature)
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6
    with pytest.raises(StaleCurvatureError, match="belongs to weights"):
        unlearn.remove(model, rows, ["row-1"], **FINE, curvature=curvature)


def test_numpy_and_tensor_labels_are_written_as_numbers(tmp_path: Any) -> None:
    model, rows = tiny()
    label = rows.labels.numpy()[2]
    edit = unlearn.relabel(model, rows, {"row-0": label, "row-3": rows.labels[1]}, **FINE)
    unlearn.save_checkpoint(tmp_path / "edited.safetensors", edit.model, edit=edit)
    edit.changes.save(tmp_path / "decisions.csv")
    assert dict(unlearn.Changes.load(tmp_path / "decisions.csv").relabelled) == {"row-0": 2, "row-3": 1}
