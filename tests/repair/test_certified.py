"""Certified removal: the residual of every removal against the truth, the budget, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import nn

import unlearn
from tests.repair.certified_cases import W, blobs, signed, true_residual
from unlearn.checkpoint import read_checkpoint, save_checkpoint
from unlearn.data import Rows
from unlearn.errors import BudgetSpentError, InputError, RowNotFoundError, UncertifiedError
from unlearn.repair import CertifiedHead, train_certified_head
from unlearn.training import draw_noise, train_perturbed

SIGMA = 2.0


def head_of(data: Rows, **options: float) -> CertifiedHead:
    settings = {"weight_decay": W, "sigma": SIGMA, "epsilon": 1.0, "delta": 1e-4, **options}
    return train_certified_head(data, **settings)  # type: ignore[arg-type]


def residual_of(head: CertifiedHead, data: Rows) -> float:
    """True norm of the gradient of the perturbed objective on the rows left, with the noise drawn again."""
    noise = draw_noise(*head.weight.shape, SIGMA, 0)
    return true_residual(signed(data.only(head.rows.ids)), head.weight, W, noise)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("size", [1, 6])
def test_what_is_spent_bounds_the_true_residual(classes: int, size: int) -> None:
    """The reduced case of ``python -m benchmarks.certified``: independent removals, ten times below the basic bound."""
    data = blobs(300, classes=classes)
    head = head_of(data, sigma=SIGMA)
    draw = random.Random(0)
    tightened = []
    for _ in range(30):
        removal = head.remove(draw.sample(data.ids, size))
        found = residual_of(removal.head, data)
        assert found <= removal.head.spent <= found + 3 * removal.bounds.rounding + 2 * head.spent
        tightened.append(removal.bounds.basic / removal.residual)
    assert sorted(tightened)[len(tightened) // 2] >= 10


def test_removals_add_up_until_the_budget_refuses() -> None:
    data = blobs(200)
    head = start = head_of(data, sigma=0.05)
    budget, total, served = head.guarantee.budget, head.spent, 0
    noise = draw_noise(*head.weight.shape, 0.05, 0)
    refusal = ""
    for row in data.ids:
        try:
            removal = head.remove([row])
        except BudgetSpentError as error:
            refusal = str(error)
            break
        total += removal.residual
        served += 1
        head = removal.head
    assert f"removing '{data.ids[served]}' adds" in refusal
    assert "retrain without these rows, with new noise" in refusal
    assert head.spent == pytest.approx(total, rel=1e-12)
    assert 0 < served < 199
    assert 0.5 * budget < head.spent <= budget
    assert head.left == pytest.approx(budget - head.spent)
    assert true_residual(signed(data.only(head.rows.ids)), head.weight, W, noise) <= head.spent
    assert len(head.removed) == served == len(data) - len(head.rows)
    assert len(start.rows) == 200
    assert start.spent < 1e-11
    assert start.epsilon_spent == 0 < head.epsilon_spent <= 1


def test_after_a_refusal_the_head_still_serves_what_fits() -> None:
    data = blobs(200)
    head = head_of(data, sigma=0.02)
    with pytest.raises(BudgetSpentError):
        head.remove(data.ids[:60])
    assert len(head.remove(data.ids[:1]).head.rows) == 199


@pytest.mark.parametrize("classes", [2, 3])
def test_one_by_one_and_together_end_within_the_bound(classes: int) -> None:
    """Both are near the retrained head of the same noise, within the residual over the modulus of convexity."""
    data = blobs(120, classes=classes)
    head = head_of(data)
    together = head.remove(data.ids[:5]).head
    apart = head
    for row in data.ids[:5]:
        apart = apart.remove(row).head
    left = signed(data.without(data.ids[:5]))
    retrained, _ = train_perturbed(left, weight_decay=W, noise=draw_noise(*head.weight.shape, SIGMA, 0))
    before = float((head.weight - retrained).norm())
    for found in (together, apart):
        distance = float((found.weight - retrained).norm())
        assert distance <= found.weight_distance
        assert distance < 0.1 * before  # rejects the other sign and an unchanged head
    assert float((together.weight - apart.weight).norm()) <= together.weight_distance + apart.weight_distance
    assert apart.rows.ids == together.rows.ids


def test_further_steps_take_the_residual_away() -> None:
    """Newton's square: rejects a second step from the first one's gradient or its Hessian on all rows."""
    data = blobs(200)
    head = head_of(data)
    spent = [head.remove(data.ids[:5], steps=steps).residual for steps in (1, 2, 3)]
    assert spent[1] < 10 * spent[0] ** 2 + 1e-11
    assert spent[2] < 1e-10
    again = head.remove(data.ids[:5], steps=2)
    assert residual_of(again.head, data) <= again.head.spent
    assert again.bounds.direct == spent[0]


def test_scaling_rows_to_length_one_is_on_request_and_row_by_row() -> None:
    data = blobs(60)
    long = Rows.from_tensors(5 * signed(data).features, data.labels, ids=data.ids, classes=3)
    with pytest.raises(UncertifiedError, match=r"longest row of data has length 5; .* unit_rows=True"):
        head_of(long)
    head = head_of(long, unit_rows=True)
    assert torch.allclose(signed(head.rows).features.norm(dim=1), torch.ones(60).double())
    model = head.model()
    inputs, _ = long.batch(torch.arange(60))
    torch.testing.assert_close(model(inputs), head.logits(long))
    assert head.accuracy(long) > 0.5
    alone = head_of(long.without(["7"]), unit_rows=True)
    assert torch.equal(signed(alone.rows).features, signed(head.rows.without(["7"])).features)


def test_features_of_a_frozen_extractor_are_taken_as_they_are() -> None:
    data = blobs(60)
    extractor = nn.Sequential(nn.Linear(5, 4), nn.Tanh()).double()
    head = train_certified_head(
        data, weight_decay=W, sigma=1.0, epsilon=1.0, delta=1e-4, unit_rows=True, extractor=extractor
    )
    assert head.weight.shape == (3, 4)
    torch.testing.assert_close(head.logits(data), head.model()(extractor(data.batch(torch.arange(60))[0])))


def test_a_saved_head_goes_on_where_it_was(tmp_path: Path) -> None:
    data = blobs(100)
    head = head_of(data).remove(["5", "17"]).head
    digest = head.save(tmp_path / "head.safetensors")
    assert digest == head.save(tmp_path / "again.safetensors")
    loaded = CertifiedHead.load(tmp_path / "head.safetensors", data)
    assert torch.equal(loaded.weight, head.weight)
    assert (loaded.spent, loaded.guarantee, set(loaded.removed)) == (head.spent, head.guarantee, set(head.removed))
    assert torch.equal(loaded.remove(["9"]).head.weight, head.remove(["9"]).head.weight)
    assert loaded.remove(["9"]).head.spent == head.remove(["9"]).head.spent
    with pytest.raises(RowNotFoundError):
        loaded.remove(["5"])  # it has gone
    assert CertifiedHead.load(tmp_path / "head.safetensors", head.rows).rows.ids == head.rows.ids
    text = (tmp_path / "head.safetensors").read_bytes()
    assert b'"17"' not in text  # ids are written as sha256 only

    model, record = unlearn.load_checkpoint(tmp_path / "head.safetensors")
    assert record is None
    assert torch.equal(model.weight, head.weight)


def test_a_file_with_other_rows_or_no_certificate_is_refused(tmp_path: Path) -> None:
    data = blobs(60)
    head_of(data).save(tmp_path / "head.safetensors")
    for other in (data.relabelled({"3": (int(data.labels[3]) + 1) % 3}), data.without(["3"]), blobs(60, seed=1)):
        with pytest.raises(InputError, match="not those it was saved with"):
            CertifiedHead.load(tmp_path / "head.safetensors", other)
    save_checkpoint(tmp_path / "plain.safetensors", nn.Linear(5, 3))
    with pytest.raises(UncertifiedError, match="is no certified head: it was not trained with objective perturbation"):
        CertifiedHead.load(tmp_path / "plain.safetensors", data)
    assert "certified" in read_checkpoint(tmp_path / "head.safetensors").metadata["extra"]


def test_a_newer_file_is_refused_by_name(tmp_path: Path) -> None:
    data = blobs(20)
    head = head_of(data)
    save_checkpoint(tmp_path / "new.safetensors", head.model(), extra={"certified": {"format": 9}})
    with pytest.raises(InputError, match="has format 9; this release reads 1"):
        CertifiedHead.load(tmp_path / "new.safetensors", data)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sigma": 0.0}, UncertifiedError, "sigma is 0.0; without noise"),
        ({"weight_decay": 0.0}, UncertifiedError, "weight_decay is 0.0; a certificate needs strong convexity"),
        ({"weight_decay": float("nan")}, UncertifiedError, "weight_decay is nan"),
        ({"epsilon": 0.0}, InputError, "epsilon is 0.0"),
        ({"delta": 1.0}, InputError, "delta is 1.0"),
    ],
)
def test_settings_without_a_certificate_are_refused(
    options: dict[str, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        head_of(blobs(20), **options)
    assert "\n" not in str(caught.value)


def test_noise_that_can_not_hide_the_rounding_of_training_is_refused() -> None:
    with pytest.raises(BudgetSpentError, match=r"training reaches the optimum to .* larger sigma"):
        head_of(blobs(60), sigma=1e-13)


def test_labels_that_are_no_classes_are_refused() -> None:
    data = Rows.from_tensors(torch.eye(4), torch.rand(4))
    with pytest.raises(UncertifiedError, match="logistic loss of class labels only"):
        head_of(data)


def test_requests_that_can_not_be_met_are_refused_in_a_line() -> None:
    head = head_of(blobs(20))
    with pytest.raises(InputError, match="at least one id"):
        head.remove([])
    with pytest.raises(InputError, match="named twice"):
        head.remove(["1", "1"])
    with pytest.raises(RowNotFoundError, match="not in blobs"):
        head.remove(["nobody"])
    with pytest.raises(InputError, match="keep at least one"):
        head.remove(head.rows.ids)
    with pytest.raises(InputError, match="steps is 0"):
        head.remove(["1"], steps=0)


def test_the_statement_says_who_it_speaks_for() -> None:
    removal = head_of(blobs(60)).remove(["1"])
    text = removal.head.statement()
    for part in ("honest operator", "proves nothing to a third party", "earlier weights", "1 rows"):
        assert part in text
    facts = removal.to_dict()
    assert facts["rows"] == 1
    assert facts["spent"] == removal.head.spent
    assert facts["residual"] == removal.residual


def test_training_leaves_seeds_and_rows_alone() -> None:
    data = blobs(40)
    before, state = signed(data).features.clone(), torch.get_rng_state()
    head_of(data).remove(["1"])
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(before, signed(data).features)
