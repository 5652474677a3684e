"""Activations in front of the last layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unlearn.data import Rows
from unlearn.verification.activations import penultimate

ROWS = Rows.from_tensors(torch.randn(7, 4, generator=torch.Generator().manual_seed(2)), torch.arange(7) % 3)


class TwoHeads(nn.Module):
    """Its layers are called in another order than they are made; the head is given a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.drop = nn.Linear(5, 3), nn.Linear(4, 5), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=self.drop(torch.tanh(self.body(x))))


class Bare(nn.Module):
    """No module in front of the outputs takes rows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.scale


def test_they_are_the_inputs_of_the_layer_called_last() -> None:
    model = TwoHeads().train()
    found = penultimate(model, ROWS, batch_size=3)
    assert found is not None
    torch.testing.assert_close(found, torch.tanh(model.body(ROWS.batch(torch.arange(7))[0])).detach())
    assert model.training
    assert model.drop.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_linear_model_has_its_rows_and_a_bare_one_too() -> None:
    inputs = ROWS.batch(torch.arange(7))[0]
    for model in (nn.Linear(4, 3), Bare()):
        found = penultimate(model, ROWS)
        assert found is not None
        assert torch.equal(found, inputs)


def test_positions_folded_into_rows_have_none() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.reshape(-1, 2)).reshape(len(x), 2, 3).sum(1)

    model = Folded()
    assert penultimate(model, ROWS) is None
    assert not model.head._forward_pre_hooks
