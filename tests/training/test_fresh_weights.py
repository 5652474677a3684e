"""Where a retrain starts: modules reset by seed, frozen parts as they are, a model's own ``rebuild``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unlearn.errors import RecordError
from unlearn.training import fresh_weights


def test_frozen_parts_were_not_trained_and_stay() -> None:
    # a frozen feature extractor drawn at random would be another model than the one retrained
    model = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2))
    fresh = fresh_weights(model, 1)
    assert torch.equal(fresh[0].weight, model[0].weight)
    assert not torch.equal(fresh[1].weight, model[1].weight)


def test_rebuild_is_called_under_the_seed_and_must_fit() -> None:
    def built(inputs: int) -> nn.Module:
        model = nn.Linear(inputs, 2)
        model.rebuild = lambda: nn.Linear(3, 2)
        return model

    model, before = built(3).double(), torch.get_rng_state()
    model.bias.requires_grad_(False)
    one, two, other = (fresh_weights(model, seed) for seed in (5, 5, 6))
    assert torch.equal(one.weight, two.weight)
    assert not torch.equal(one.weight, other.weight)
    assert (one.weight.dtype, one.bias.requires_grad) == (torch.float64, False)
    assert torch.equal(other.bias, model.bias)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RecordError, match=r"rebuild\(\) of Linear returns other parameters than it has"):
        fresh_weights(built(4), 0)
