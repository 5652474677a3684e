"""Counter-based draws and the label noise made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from unlearn.data import Rows, draws, pair_noise, symmetric_noise
from unlearn.errors import InputError

IDS = [f"row-{i}" for i in range(4000)]


def rows_of(n: int = 4000, classes: int = 5) -> Rows:
    return Rows.from_tensors(torch.zeros(n, 1), torch.arange(n) % classes, ids=IDS[:n])


def test_a_draw_does_not_depend_on_order_or_on_the_other_rows():
    # rejects a generator that is advanced row by row
    all_of_them = dict(zip(IDS, draws.uniform(3, IDS), strict=True))
    assert draws.uniform(3, IDS[::-1]).tolist() == [all_of_them[i] for i in IDS[::-1]]
    assert draws.uniform(3, IDS[17:20]).tolist() == [all_of_them[i] for i in IDS[17:20]]


def test_draws_are_uniform_and_neighbouring_ids_are_independent():
    u = draws.uniform(0, IDS)
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.05


def test_seeds_and_streams_are_separate():
    # rejects a stream or a seed that is ignored or added (seed 1 of one stream = seed 0 of the next)
    uses = [draws.uniform(seed, IDS, stream) for seed in (0, 1, -1) for stream in ("", "a", "b")]
    for i, one in enumerate(uses):
        for other in uses[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.06
    assert draws.uniform(1, ["1"]).item() != draws.uniform(11, [""]).item()


def test_a_permutation_has_each_row_once_and_follows_the_rows():
    order = draws.permutation(0, IDS)
    assert sorted(order.tolist()) == list(range(4000))
    back = IDS[::-1]
    assert [IDS[i] for i in order] == [back[i] for i in draws.permutation(0, back)]
    assert stats.spearmanr(order, np.arange(4000)).pvalue > 0.01


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4, 1.0])
def test_symmetric_noise_hits_the_stated_number_and_never_keeps_the_label(rate: float):
    # rejects drawing the new label from all classes, which leaves 1 in 5 as it was
    noisy = symmetric_noise(rows_of(), rate, seed=0)
    assert noisy.truth is not None
    assert int((noisy.labels != noisy.truth).sum()) == round(rate * 4000)
    assert torch.equal(noisy.truth, rows_of().labels)


def test_symmetric_noise_gives_the_other_classes_equally_often():
    # rejects "next class" and rounding that favours a class
    noisy = symmetric_noise(rows_of(), 1.0, seed=1)
    shift = (noisy.labels - noisy.truth) % 5
    counts = torch.bincount(shift, minlength=5)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:].numpy()).pvalue > 0.01


def test_symmetric_noise_hits_the_same_rows_whatever_their_order():
    rows = rows_of()
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    here, there = symmetric_noise(rows, 0.1, seed=2), symmetric_noise(rows.at(order), 0.1, seed=2)
    assert torch.equal(here.labels[order], there.labels)
    assert here.fingerprint == there.fingerprint


def test_noise_seeds_differ_and_are_apart_from_the_split_seed():
    # rejects noise that falls on the first rows of the split's own order (noise_seed == split_seed)
    rows = rows_of()

    def hit(seed: int) -> set[int]:
        noisy = symmetric_noise(rows, 0.2, seed)
        return set((noisy.labels != noisy.truth).nonzero().flatten().tolist())

    split = set(draws.permutation(0, rows.ids, "split")[:800].tolist())
    for other in (hit(1), split):
        assert 100 < len(hit(0) & other) < 220  # 160 expected of independent draws


def test_pair_noise_stays_inside_the_map():
    rows = rows_of()
    noisy = pair_noise(rows, {1: 3, 3: 1, 0: 4}, 0.25, seed=0)
    changed = noisy.labels != noisy.truth
    assert int(changed.sum()) == round(0.25 * 2400)
    pairs = set(zip(noisy.truth[changed].tolist(), noisy.labels[changed].tolist(), strict=True))
    assert pairs == {(1, 3), (3, 1), (0, 4)}
    assert noisy.fingerprint == pair_noise(rows.at(torch.arange(3999, -1, -1)), {0: 4, 1: 3, 3: 1}, 0.25, 0).fingerprint


def test_noise_upon_noise_keeps_the_true_labels():
    # rejects a second noise that takes the first one's labels for the truth
    rows = rows_of()
    twice = symmetric_noise(pair_noise(rows, {0: 1}, 0.5, seed=0), 0.1, seed=0)
    assert torch.equal(twice.truth, rows.labels)


def test_truth_is_kept_beside_and_the_given_rows_are_unchanged():
    rows = rows_of()
    before = rows.labels.clone()
    noisy = symmetric_noise(rows, 0.5, seed=0)
    assert rows.truth is None
    assert torch.equal(rows.labels, before)
    assert torch.equal(noisy[3][1], noisy.labels[3])  # reading a row gives the given label, not the truth


def test_bad_noise_is_refused():
    with pytest.raises(InputError, match=r"noise rate is 1\.5"):
        symmetric_noise(rows_of(10), 1.5, 0)
    with pytest.raises(InputError, match="noise rate is nan"):
        symmetric_noise(rows_of(10), float("nan"), 0)
    with pytest.raises(InputError, match="at least 2 classes; data has None"):
        symmetric_noise(Rows.from_tensors(torch.zeros(2, 1), torch.zeros(2)), 0.1, 0)
    with pytest.raises(InputError, match="at least 2 classes; data has 1"):
        symmetric_noise(rows_of(10, classes=1), 0.1, 0)
    for pair in ({1: 9}, {9: 1}, {2: 2}):
        with pytest.raises(InputError, match=r"is not between two of the classes 0\.\.4"):
            pair_noise(rows_of(10), pair, 0.1, 0)
