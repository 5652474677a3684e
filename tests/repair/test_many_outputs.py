"""Rows with many outputs, those of language models, are taken a few at a time: memory differs, results do not."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers_cases import build

import unlearn
from unlearn.curvature import fit_curvature, gauss_newton
from unlearn.data import Rows
from unlearn.detect.loss import loss
from unlearn.errors import InputError
from unlearn.predict import outputs_of, predict, rows_within
from unlearn.repair import Changes
from unlearn.repair.objective import EditedObjective
from unlearn.tasks import get_task
from unlearn.training import TrainSettings, train
from unlearn.verification.linear_prediction import output_change

TASK = "language-modelling"
EACH = 7 * 23 * 8  # bytes of a row's outputs


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Rows]:
    model, rows, _ = build("gpt2-lm-own-head")
    return model, rows


def at_most(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("unlearn.predict.OUTPUT_BYTES", rows * EACH)


def both(monkeypatch: pytest.MonkeyPatch, work: Any) -> tuple[Any, Any]:
    """What is found with all rows at a time, and with two."""
    at_most(monkeypatch, 1000)
    whole = work()
    at_most(monkeypatch, 2)
    return whole, work()


def close(one: Any, two: Any) -> None:
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


def batches_seen(model: nn.Module) -> tuple[list[int], Any]:
    seen: list[int] = []
    hook = model.register_forward_hook(lambda _m, _a, returned: seen.append(len(returned.logits)))
    return seen, hook


def test_batches_hold_as_many_rows_as_their_outputs_allow(
    case: tuple[nn.Module, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    # rejects a bound by rows, by tokens alone, or one that a single label a row must pay a forward pass for
    model, rows = case
    at_most(monkeypatch, 2)
    assert [rows_within(model, rows, size) for size in (256, 2, 1)] == [2, 2, 1]
    at_most(monkeypatch, 0)
    assert rows_within(model, rows, 256) == 1
    assert rows_within(nn.Linear(1, 1), Rows.from_tensors(torch.ones(3, 1), torch.zeros(3).long()), 256) == 256
    at_most(monkeypatch, 2)
    curvature = fit_curvature(model, rows, task=TASK)
    for work in (
        lambda: predict(model, rows),
        lambda: list(outputs_of(model, rows)),
        lambda: unlearn.self_influence(model, rows, curvature=curvature, task=TASK),
        lambda: gauss_newton(model, rows, task=TASK).matvec(dict(model.named_parameters())),
        lambda: unlearn.remove(model, rows, ["row-1"], curvature=curvature, damping=0.1, weight_decay=0.0, task=TASK),
    ):
        seen, hook = batches_seen(model)
        work()
        hook.remove()
        assert max(seen) == 2


def test_scores_and_products_are_those_of_whole_batches(
    case: tuple[nn.Module, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = case
    close(*both(monkeypatch, lambda: predict(model, rows)))
    close(*both(monkeypatch, lambda: torch.as_tensor(loss(model, rows, task=TASK).values)))
    one, two = both(monkeypatch, lambda: fit_curvature(model, rows, task=TASK))
    close({k: b.eigenvalues for k, b in one.blocks.items()}, {k: b.eigenvalues for k, b in two.blocks.items()})
    close(
        *both(
            monkeypatch, lambda: torch.as_tensor(unlearn.self_influence(model, rows, curvature=one, task=TASK).values)
        )
    )
    vector = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    close(*both(monkeypatch, lambda: gauss_newton(model, rows, task=TASK).matvec(vector)))
    close(*both(monkeypatch, lambda: output_change(model, rows, vector)))
    operators = both(monkeypatch, lambda: gauss_newton(model, rows, task=TASK))
    for operator in operators:
        operator.matvec(vector)
    assert [operator.cost for operator in operators] == [4 * len(rows), 5 * len(rows)]


@pytest.mark.parametrize("kind", ["remove", "relabel"])
def test_the_edited_objective_is_that_of_whole_batches(
    kind: str, case: tuple[nn.Module, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    # rejects outputs at theta_0 that are made again at the weights at hand, and new labels given to other rows
    model, rows = case
    label = rows.labels[rows.positions(["row-3"])[0]]
    new = torch.where(label >= 0, (label + 1).clamp(max=22), label).tolist()
    changes = (
        Changes(removed=("row-1",)) if kind == "remove" else Changes(removed=("row-5",), relabelled={"row-3": new})
    )
    names = [name for name, _ in model.named_parameters()]

    def found() -> tuple[Any, ...]:
        objective = EditedObjective(model, rows, changes, get_task(TASK), names, 0.1, 0.2)
        start = objective.at_start()
        moved = {name: 1.1 * value for name, value in objective.start.items()}
        return start, objective.value(moved), objective.value_and_gradient(moved)

    close(*both(monkeypatch, found))


def test_an_edit_is_that_of_whole_batches(
    case: tuple[nn.Module, Rows], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, rows = case
    settings = TrainSettings(lr=0.05, epochs=2, batch_size=3)
    trained, record = train(model, rows, settings, task=TASK, folder=tmp_path, snapshot_epochs=[0, 1, 2])

    def weights(**options: Any) -> dict[str, Tensor]:
        return dict(unlearn.remove(trained, rows, ["row-1"], task=TASK, **options).model.state_dict())

    close(*both(monkeypatch, lambda: weights(record=record, budget=1.0)))
    close(*both(monkeypatch, lambda: weights(damping=0.1, weight_decay=0.01, steps=2)))


class Full(torch.autograd.Function):
    """Has no memory for the backward pass of more than so many rows."""

    most = 1

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if len(gradient) > Full.most:
            raise torch.OutOfMemoryError("none left")
        return gradient.clone()


class FullBetween(nn.Module):
    """Two layers, one before and one behind."""

    def __init__(self, *, behind: bool) -> None:
        super().__init__()
        self.first, self.last, self.behind = nn.Linear(3, 4), nn.Linear(4, 23), behind

    def forward(self, x: Tensor) -> Tensor:
        if self.behind:
            return self.last(Full.apply(self.first(x)))
        return Full.apply(self.last(self.first(x)))


@pytest.mark.parametrize("behind", [True, False])
def test_a_product_that_was_half_added_begins_anew_in_halves(monkeypatch: pytest.MonkeyPatch, behind: bool) -> None:
    # rejects halved batches on top of what the whole one had added, and a cost or a total that counts both
    torch.manual_seed(0)
    model, rows = FullBetween(behind=behind), (torch.randn(7, 5, 3), torch.arange(35).reshape(7, 5) % 23)
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    monkeypatch.setattr(Full, "most", 7)
    wanted = gauss_newton(model, rows, task=TASK).matvec(ones)
    monkeypatch.setattr("unlearn.predict.OUTPUT_BYTES", 5 * 5 * 23 * 4)
    monkeypatch.setattr(Full, "most", 1)
    operator = gauss_newton(model, rows, task=TASK)
    with pytest.warns(UserWarning, match="memory ran out with batches of"):
        found = operator.matvec(ones)
    torch.testing.assert_close(found, wanted)
    assert operator.cost == 5 * 7
    monkeypatch.setattr(Full, "most", 0)
    with (
        pytest.warns(UserWarning, match="memory ran out with batches of") if behind else contextlib.nullcontext(),
        pytest.raises(InputError, match="memory runs out with a single row"),
    ):
        operator.matvec(ones)
