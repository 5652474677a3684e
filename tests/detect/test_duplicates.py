"""Duplicates: similarities against the whole matrix in float64, pairs, and what is compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from unlearn.data import Rows, add_duplicates, load_data
from unlearn.detect import duplicate_pairs, duplicate_scores
from unlearn.errors import InputError

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(23, 1, 3, 4, generator=GENERATOR) + 0.3
INPUTS[5] = 0
INPUTS[9] = 2 * INPUTS[2]
ROWS = Rows.from_tensors(INPUTS, torch.arange(23) % 3, ids=[f"r{i}" for i in range(23)])


def model_of() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Dropout(0.5), nn.Linear(7, 3), nn.BatchNorm1d(3))


def cosines(features: torch.Tensor) -> np.ndarray:
    """The whole matrix, one pair after the other, with -1 for a row and itself."""
    x = features.double().flatten(1).numpy()
    out = np.full((len(x), len(x)), -1.0)
    for i, a in enumerate(x):
        for j, b in enumerate(x):
            if i != j:
                lengths = np.linalg.norm(a) * np.linalg.norm(b)
                out[i, j] = a @ b / lengths if lengths else float(not a.any() and not b.any())
    return out


def features_of(model: nn.Sequential | None) -> torch.Tensor:
    if model is None:
        return INPUTS
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    return torch.tanh(INPUTS.flatten(1) @ weight.T + bias)


@pytest.mark.parametrize("chunk", [1, 4, 23, 1000])
@pytest.mark.parametrize("with_model", [False, True])
def test_scores_are_the_largest_cosine_to_another_row(chunk: int, with_model: bool) -> None:
    # rejects a row compared with itself, only rows before it, or only rows of its chunk; features after dropout
    model = model_of() if with_model else None
    scores = duplicate_scores(ROWS, model=model, chunk=chunk, batch_size=5)
    np.testing.assert_allclose(scores.values, cosines(features_of(model)).max(1), atol=2e-6)
    assert scores.options == {"features": "4" if with_model else "inputs", "cost_epochs": 1 / 3 if with_model else 0.0}


@pytest.mark.parametrize("chunk", [1, 4, 23, 1000])
@pytest.mark.parametrize("with_model", [False, True])
def test_pairs_are_all_pairs_above_the_threshold_each_once(chunk: int, with_model: bool) -> None:
    model = model_of() if with_model else None
    whole = cosines(features_of(model))
    pairs = duplicate_pairs(ROWS, similarity=0.4, model=model, chunk=chunk)
    want = {(f"r{i}", f"r{j}"): whole[i, j] for i, j in np.argwhere(whole >= 0.4) if i < j}
    assert len(want) > 5
    assert {(a, b) for a, b, _ in pairs} == set(want)
    assert len(pairs) == len(want)
    for a, b, value in pairs:
        assert value == pytest.approx(want[a, b], abs=2e-6)
    assert [value for *_, value in pairs] == sorted((value for *_, value in pairs), reverse=True)


def test_scaled_rows_are_duplicates_and_blank_rows_only_of_each_other() -> None:
    assert duplicate_pairs(ROWS, similarity=0.99999)[0][:2] == ("r2", "r9")
    by_id = dict(zip(ROWS.ids, duplicate_scores(ROWS).values, strict=True))
    assert by_id["r5"] == 0
    two = Rows.from_tensors(torch.zeros(2, 3), torch.tensor([0, 1]))
    assert duplicate_pairs(two, similarity=1) == [("0", "1", 1.0)]


def test_the_order_of_rows_does_not_matter() -> None:
    back = ROWS.at(torch.arange(len(ROWS)).flip(0))
    np.testing.assert_allclose(duplicate_scores(back).values[::-1], duplicate_scores(ROWS).values, atol=1e-6)


def test_exact_copies_of_digits_are_found_and_nothing_else() -> None:
    found = add_duplicates(load_data("digits"), 0.1, seed=0)
    pairs = duplicate_pairs(found.rows, similarity=0.99999)
    assert {(b, a) for a, b, _ in pairs} == set(found.copy_of.items())
    scores = duplicate_scores(found.rows)
    both = {*found.ids, *found.copy_of.values()}
    assert {row for row, _ in scores.top(len(both))} == both


def test_the_model_is_left_as_it_was() -> None:
    model = model_of().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    duplicate_scores(ROWS, model=model)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


BAD = {
    "one row": (lambda: duplicate_scores(ROWS.only(["r0"])), "has 1 row; duplicates need at least 2"),
    "chunk": (lambda: duplicate_scores(ROWS, chunk=0), "chunk is 0; give at least 1"),
    "batch": (lambda: duplicate_pairs(ROWS, similarity=0.9, batch_size=0), "batch_size is 0"),
    "similarity": (lambda: duplicate_pairs(ROWS, similarity=1.2), "similarity is 1.2; give the smallest cosine"),
    "no matrix": (
        lambda: duplicate_scores(ROWS, model=nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12))),
        "leave the model out to compare inputs",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_compared_is_refused_in_one_line(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_too_many_pairs_are_refused_before_they_fill_the_memory(monkeypatch) -> None:
    monkeypatch.setattr("unlearn.detect.duplicates.MOST_PAIRS", 10)
    with pytest.raises(InputError, match=r"more than 10 pairs have a similarity of -1; ask for a larger one"):
        duplicate_pairs(ROWS, similarity=-1, chunk=3)


class TwoInputs(nn.Module):
    """Takes words and a mask by name."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(12, 4), nn.Linear(4, 2)

    def forward(self, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head((self.words(words) * mask[..., None]).sum(1))


@pytest.mark.parametrize("with_model", [False, True])
def test_rows_of_several_tensors_are_compared_by_all_of_them(with_model: bool) -> None:
    words, mask = torch.arange(10).reshape(5, 2), torch.ones(5, 2)
    words[3], words[4], mask[4] = words[0], words[0], torch.tensor([1.0, 0.0])  # row 4 differs by its mask alone
    rows = Rows.from_tensors({"words": words, "mask": mask}, torch.arange(5) % 2)
    pairs = duplicate_pairs(rows, similarity=0.99999, model=TwoInputs() if with_model else None)
    assert [pair[:2] for pair in pairs] == [("0", "3")]
