"""The measures of a repair, each against its formula written out on models small enough to see through."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.repair import Changes
from unlearn.verification import References, RetrainDistances


def linear(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(3, 4).double()


def rows(seed: int, count: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return Rows.from_tensors(inputs, torch.arange(count) % 4, ids=[f"{seed}-{i}" for i in range(count)], classes=4)


DATA, TEST = rows(1, 12), rows(2, 8)
CHANGES = Changes(removed=DATA.ids[:2], relabelled={DATA.ids[5]: 0})
REFERENCES = References(linear(0), (linear(1), linear(2), linear(3)), 4)
DISTANCES = RetrainDistances(linear(9), DATA, CHANGES, TEST, REFERENCES)


def probabilities(model: nn.Module, data: Rows) -> Tensor:
    return model(data.batch(torch.arange(len(data)))[0]).softmax(1).detach()


def phi_by_hand(model: nn.Module, data: Rows) -> Tensor:
    p = probabilities(model, data).gather(1, data.labels[:, None]).squeeze(1)
    return (p / (1 - p)).log()


def kl_by_hand(a: nn.Module, b: nn.Module, data: Rows) -> float:
    p, q = probabilities(a, data), probabilities(b, data)
    return float((p * (p / q).log()).sum(1).mean())


def test_every_measure_is_its_formula() -> None:
    """At old labels, over the coupled retrain; rejects new labels, KL the other way round, and accuracy by phi."""
    model, coupled = linear(5), REFERENCES.coupled
    assert coupled is not None
    changed, kept = DATA.at(torch.tensor([0, 1, 5])), DATA.at(torch.tensor([2, 3, 4, *range(6, 12)]))
    found = DISTANCES.measure(model)
    retrains = REFERENCES.independent
    pairs = [(a, b) for a in retrains for b in retrains if a is not b]
    spread = math.sqrt(
        sum(float((phi_by_hand(a, changed) - phi_by_hand(b, changed)).square().mean()) for a, b in pairs) / len(pairs)
    )
    floor = sum(kl_by_hand(a, b, TEST) for a, b in pairs) / len(pairs)
    error = (phi_by_hand(model, changed) - phi_by_hand(coupled, changed)).square().mean().sqrt()
    right, wanted = ((probabilities(m, TEST).argmax(1) == TEST.labels).double().mean() for m in (model, coupled))
    assert found == pytest.approx(
        {
            "test accuracy": float(right),
            "accuracy - retrain": float(right - wanted),
            "KL": kl_by_hand(coupled, model, TEST),
            "KL / unedited": kl_by_hand(coupled, model, TEST) / kl_by_hand(coupled, linear(9), TEST),
            "KL / floor": kl_by_hand(coupled, model, TEST) / floor,
            "KL kept": kl_by_hand(coupled, model, kept),
            "phi": float(phi_by_hand(model, changed).mean()),
            "phi error / spread": float(error) / spread,
            "cosine changed": found["cosine changed"],
            "cosine test": found["cosine test"],
        }
    )


def test_the_unedited_model_and_the_retrain_are_the_ends_of_every_measure() -> None:
    coupled = REFERENCES.coupled
    assert coupled is not None
    there, before = DISTANCES.measure(coupled), DISTANCES.measure(DISTANCES.original)
    assert (there["KL"], there["phi error / spread"], there["KL kept"]) == (0, 0, 0)
    assert (there["cosine changed"], there["cosine test"]) == pytest.approx((1, 1))
    assert (before["cosine changed"], before["cosine test"], before["KL / unedited"]) == (0, 0, 1)


def test_what_can_not_be_measured() -> None:
    with pytest.raises(InputError, match="no coupled retrain to measure against; train with a snapshot"):
        replace(DISTANCES, references=replace(REFERENCES, coupled=None)).measure(linear(5))
    with pytest.raises(InputError, match="there are 1 independent retrains, which have no spread; train at least 2"):
        replace(DISTANCES, references=replace(REFERENCES, independent=REFERENCES.independent[:1])).measure(linear(5))
    broken = linear(5)
    nn.init.constant_(broken.bias, math.nan)
    with pytest.raises(InputError, match="NaN or infinite"):
        DISTANCES.measure(broken)
