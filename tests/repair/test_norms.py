"""Edits of nets with normalisation, embeddings and dropout: running statistics, modes, and retraining as the oracle."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from repair_cases import dense_gauss_newton, right_hand_side, same_bits, weights_of
from torch import Tensor, nn

import unlearn
from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.predict import predict
from unlearn.repair.batch_norm import re_estimate

FINE: dict[str, Any] = {"damping": 0.5, "weight_decay": 0.01}
GONE = ["1", "5", "8"]


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))


class Words(nn.Module):
    """Words looked up, averaged, and classified."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 5)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.norm(self.table(words)).mean(1).tanh())


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)), (4,)),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)),
        (1, 4, 4),
    ),
    "batch norm": (batch_norm, (4,)),
    "embedding": (Words, ()),
}


def setting(case: str, n: int = 30) -> tuple[nn.Module, Rows]:
    make, shape = NETS[case]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make().double()
        x = torch.randint(9, (n, 4)) if case == "embedding" else torch.randn(n, *shape, dtype=torch.float64) * 2 + 1
        rows = Rows.from_tensors(x, torch.arange(n) % 3)
        re_estimate(model, rows)
    return model.eval(), rows


@pytest.mark.parametrize("case", NETS)
def test_the_step_is_the_dense_solve(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter takes part, scale and shift and embedding too; rejects a layer left out of the edit."""
    monkeypatch.setattr("unlearn.repair.newton_edit.ITERATIONS", 300)
    model, rows = setting(case)
    edit = unlearn.remove(model, rows, GONE, **FINE)
    matrix = dense_gauss_newton(model, rows.without(GONE)) + 0.51 * torch.eye(len(weights_of(model))).double()
    wanted = torch.linalg.solve(matrix, right_hand_side(model, rows, edit.changes, 0.01))
    (step,) = edit.steps
    found = weights_of(edit.model) - weights_of(model)
    assert step.length == 1
    assert float((found - wanted).norm() / wanted.norm()) < 2e-2  # the solve's own tolerance is 1e-2
    moved = {name for name, p in edit.model.named_parameters() if not torch.equal(p, model.get_parameter(name))}
    assert moved == dict(model.named_parameters()).keys()


def test_running_statistics_are_those_of_the_changed_rows() -> None:
    """The first batch norm sees the linear layer's outputs: one batch, so its statistics are known by hand."""
    model, rows = setting("batch norm")
    edit = unlearn.remove(model, rows, GONE, **FINE)
    inputs, _ = rows.without(GONE).batch(torch.arange(len(rows) - 3))
    with torch.no_grad():
        seen = edit.model[0](inputs)
    torch.testing.assert_close(edit.model[1].running_mean, seen.mean(0))
    torch.testing.assert_close(edit.model[1].running_var, seen.var(0))
    assert edit.notes[-1] == "running statistics of batch norm were estimated again on all 27 rows of the changed data"
    assert edit.cost.solve == pytest.approx(sum(s.cost for s in edit.steps) / 90 + 27 / 90)


def test_batches_count_their_rows_alike_and_dropout_is_off() -> None:
    """31 rows in batches of at most 8: four of 7 or 8, none of 1; the same twice, with other seeds too."""
    model, rows = setting("batch norm", 31)
    one, two = copy.deepcopy(model).train(), copy.deepcopy(model)
    one[3].train()
    one[1].momentum = 0.3
    assert re_estimate(one, rows, batch_size=8) == 31
    torch.manual_seed(77)
    re_estimate(two, rows, batch_size=8)
    assert same_bits(one, two)
    assert one[1].momentum == 0.3
    assert all(module.training for module in one.modules())
    assert not any(module.training for module in two.modules())
    inputs, _ = rows.batch(torch.arange(31))
    with torch.no_grad():
        seen = model[0](inputs)
    parts = seen.tensor_split(4)
    assert [len(part) for part in parts] == [8, 8, 8, 7]
    torch.testing.assert_close(one[1].running_mean, torch.stack([part.mean(0) for part in parts]).mean(0))
    assert int(one[1].num_batches_tracked) == 4


def test_frozen_statistics_stay_bit_for_bit() -> None:
    model, rows = setting("batch norm")
    before = copy.deepcopy(model.state_dict())
    for options in ({"batch_norm": "freeze"}, {"layers": ["4"]}, {"skip": ["0"]}):
        edit = unlearn.remove(model, rows, GONE, **FINE, **options)
        for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
            assert torch.equal(edit.model.state_dict()[name], before[name])
        assert not any("running statistics" in note for note in edit.notes)
        assert not torch.equal(edit.model[4].weight, model[4].weight)


def test_rules_that_can_not_be_meant(tmp_path: Path) -> None:
    rows = Rows.from_tensors(torch.randn(24, 4), torch.arange(24) % 3)
    settings = unlearn.TrainSettings(epochs=3, batch_size=8)
    model, record = unlearn.train(batch_norm(), rows, settings, folder=tmp_path, snapshot_epochs=(2,))
    with pytest.raises(InputError, match="unknown batch_norm 'frozen'"):
        unlearn.remove(model, rows, ["1"], record=record, batch_norm="frozen")
    with pytest.raises(InputError, match="a replay moves them as training does; pass budget=0"):
        unlearn.remove(model, rows, ["1"], record=record, batch_norm="freeze")
    assert unlearn.remove(model, rows, ["1"], record=record, budget=0, batch_norm="freeze").method == "newton"
    edit = unlearn.remove(model, rows, ["1"], record=record)
    assert int(edit.model[1].num_batches_tracked) == 9  # six steps before the rewind, three replayed


def test_dropout_is_off_and_modes_are_the_callers() -> None:
    """A net with dropout and the same without give the same edit, whatever mode it is handed over in."""
    model, rows = setting("batch norm")
    plain = nn.Sequential(*(copy.deepcopy(layer) for k, layer in enumerate(model) if k != 3))
    model.train()
    model[0].eval()
    modes = [module.training for module in model.modules()]
    edit = unlearn.remove(model, rows, GONE, **FINE)
    again = unlearn.remove(plain, rows, GONE, **FINE)
    torch.testing.assert_close(weights_of(edit.model), weights_of(again.model), rtol=1e-12, atol=1e-14)
    assert [module.training for module in model.modules()] == modes
    assert [module.training for module in edit.model.modules()] == modes
    torch.testing.assert_close(predict(edit.model, rows), predict(again.model, rows), rtol=1e-10, atol=1e-12)
