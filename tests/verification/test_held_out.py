"""Held-out rows as the reference of changed rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.repair import Changes
from unlearn.tasks import phi
from unlearn.verification.held_out import HeldOutPhi, difference, kinds_of, matched_rows

DRAWN = np.random.default_rng(3).normal(size=60).round(1)  # rounded: there are ties
CHANGED, HELD = DRAWN[:20] + 0.5, DRAWN[20:]


def test_a_kind_is_the_old_label_and_the_class_a_row_looks_like() -> None:
    rows = Rows.from_tensors(torch.zeros(4, 1), torch.tensor([0, 1, 2, 2]))
    changes = Changes(removed=("0", "1", "2"), relabelled={"3": 1})
    changed = rows.only(changes.ids)
    assert kinds_of(changed, changes) == [(0, 0), (1, 1), (2, 2), (2, 1)]
    assert kinds_of(changed, changes, {"0": 2, "3": 0}) == [(0, 2), (1, 1), (2, 2), (2, 1)]  # a new label goes first
    with pytest.raises(InputError, match=r"looks_like has class 7; the classes of data are 0\.\.2"):
        kinds_of(changed, changes, {"0": 7})


def test_a_mislabelled_row_is_held_against_rows_that_look_like_it_at_its_own_label() -> None:
    """Rejects held-out rows *labelled* as the changed row, and phi at the held-out rows' own label."""
    logits = torch.tensor([[0.0, 3.0], [1.0, 3.0], [5.0, 0.0]], dtype=torch.float64)
    held_out = Rows.from_tensors(torch.zeros(3, 1), torch.tensor([1, 1, 0]))
    held = HeldOutPhi.of(logits, held_out, [(0, 1)])
    assert list(held.by_kind) == [(0, 1)]
    np.testing.assert_allclose(held.by_kind[0, 1], [-3.0, -2.0], atol=1e-12)
    assert held.shares(np.array([-2.5, 4.0]), [(0, 1), (0, 1)]).tolist() == [0.5, 1.0]


def test_shares_are_taken_within_kinds_and_held_out_rows_are_even_among_their_own() -> None:
    held = HeldOutPhi({(0, 0): np.array([1.0, 2.0]), (1, 1): np.array([10.0, 20.0, 20.0])})
    assert held.shares(np.array([20.0, 1.5]), [(1, 1), (0, 0)]) == pytest.approx([2 / 3, 1 / 2])
    assert held.own_shares == pytest.approx([1 / 4, 3 / 4, 1 / 6, 2 / 3, 2 / 3])


def test_of_one_kind_the_shares_give_the_same_tests_as_phi_itself() -> None:
    held = HeldOutPhi({(0, 0): HELD})
    found = difference(held.shares(CHANGED, [(0, 0)] * len(CHANGED)), held.own_shares)
    raw = difference(CHANGED, HELD)
    assert (found.auc, found.p_form) == pytest.approx((raw.auc, raw.p_form))
    assert found.p_place == pytest.approx(raw.p_place, rel=1e-3)  # values between two held-out ones are tied as shares


def test_difference_against_sklearn_and_slow_loops() -> None:
    found = difference(CHANGED, HELD)
    labels = np.repeat([1, 0], [len(CHANGED), len(HELD)])
    assert found.auc == pytest.approx(roc_auc_score(labels, np.concatenate([CHANGED, HELD])))
    wins = np.array([[float(a > b) + 0.5 * float(a == b) for b in HELD] for a in CHANGED])
    variance = wins.mean(1).var(ddof=1) / len(CHANGED) + wins.mean(0).var(ddof=1) / len(HELD)  # DeLong
    width = stats.norm.ppf(0.95) * np.sqrt(variance)
    assert (found.lower, found.upper) == pytest.approx((wins.mean() - width, wins.mean() + width))
    assert found.p == pytest.approx(min(1, 2 * min(found.p_place, found.p_form)))


def test_a_difference_in_spread_alone_is_seen_by_the_second_test() -> None:
    """Rejects a place test alone: half too confident and half too little is a trace as well."""
    even, ends = np.linspace(-1, 1, 101), np.repeat([-1.0, 1.0], 30)
    found = difference(ends, even)
    assert found.auc == pytest.approx(0.5)
    assert found.p_place > 0.5
    assert found.p < 1e-3


def test_two_rows_of_each_are_needed() -> None:
    with pytest.raises(InputError, match="1 changed and 40 held-out rows can not be compared; give two"):
        difference(CHANGED[:1], HELD)


def test_matched_rows_carry_the_changed_rows_labels_and_are_drawn_by_the_seed() -> None:
    held_out = Rows.from_tensors(torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 1, 1, 1]), classes=3)
    kinds = [(2, 1), (0, 0), (2, 1)]
    found = matched_rows(held_out, kinds, seed=1)
    assert found.labels.tolist() == [2, 0, 2]
    inputs, _ = found.batch(torch.arange(3))
    assert [float(x) >= 3 for x in inputs] == [True, False, True]
    again, _ = matched_rows(held_out, kinds, seed=1).batch(torch.arange(3))
    assert torch.equal(inputs, again)


def test_a_class_without_held_out_rows_is_named() -> None:
    held_out = Rows.from_tensors(torch.zeros(2, 1), torch.tensor([0, 0]), classes=3)
    with pytest.raises(InputError, match="no held-out row is of class 2, which changed rows look like"):
        HeldOutPhi.of(torch.zeros(2, 3), held_out, [(0, 0), (1, 2)])


def test_phi_of_held_out_rows_is_that_of_the_tasks() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    held_out = Rows.from_tensors(torch.zeros(5, 1), torch.full((5,), 3))
    held = HeldOutPhi.of(logits, held_out, [(1, 3)])
    np.testing.assert_array_equal(held.by_kind[1, 3], phi(logits, torch.full((5,), 1)).numpy())
