"""Rows drawn for curvature: equal chances, exact shares, and nothing that order or batches could change."""

import numpy as np
import pytest
import torch
from torch import nn

from unlearn.curvature import curvature_rows, gauss_newton
from unlearn.curvature.row_sampling import LEVELS, systematic_sample
from unlearn.data import Rows
from unlearn.errors import InputError, UnsupportedLayerError

METHODS = ["random", "stratified", "features", "logits"]
CLASSES = 3


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, CLASSES)).double()


def data(n=60):
    draw = torch.Generator().manual_seed(1)
    inputs = 2 * torch.randn(n, 4, generator=draw, dtype=torch.float64)
    labels = torch.randint(CLASSES, (n,), generator=draw)
    return Rows.from_tensors(inputs, labels, ids=[f"r{7 * i % 60}" for i in range(n)], classes=CLASSES)


@pytest.mark.parametrize(("n", "count"), [(7, 3), (12, 4), (10, 10), (9, 1), (23, 17)])
def test_every_row_is_drawn_for_the_same_number_of_starts(n, count):
    # rejects a start below the step, as of a step rounded down: the last rows would never be drawn
    random = np.random.default_rng(0)
    strata, draw = random.integers(4, size=n), random.random(n)
    times = np.zeros(n, dtype=int)
    for start in range(n):
        found = systematic_sample(strata, draw, count, start)
        assert len(set(found)) == count
        times[found] += 1
        for stratum in range(4):
            share = count * (strata == stratum).sum() / n
            assert np.floor(share) <= (strata[found] == stratum).sum() <= np.ceil(share)
    assert (times == count).all()


def test_the_mean_over_starts_is_the_curvature_of_all_rows():
    # rejects a draw that prefers rows: the mean of G over the draws would be another matrix
    model, rows = net(), data(12)
    v = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    strata, draw = np.arange(12) % 3, np.random.default_rng(0).random(12)
    drawn = [rows.at(torch.from_numpy(systematic_sample(strata, draw, 5, start))) for start in range(12)]
    mean = sum(gauss_newton(model, some).matvec(v)["0.weight"] for some in drawn) / 12
    torch.testing.assert_close(mean, gauss_newton(model, rows).matvec(v)["0.weight"])


def test_stratified_holds_the_share_of_each_given_label():
    rows = Rows.from_tensors(torch.zeros(60, 2), torch.tensor([0] * 10 + [1] * 20 + [2] * 30))
    rows = rows.with_truth(torch.arange(60) % 3)  # rejects strata of the true labels
    for seed in range(5):
        drawn = curvature_rows(nn.Linear(2, 3), rows, 6, method="stratified", seed=seed)
        assert drawn.labels.bincount().tolist() == [1, 2, 3]


class OverPositions(nn.Module):
    """What the head sees, averaged over positions (exactly: small integers), shows a row's kind; outputs do not."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(2, 2, bias=False), nn.Linear(2, CLASSES)
        self.body.weight.data = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        self.head.weight.data.zero_()

    def forward(self, x):
        return self.head(self.body(x)).mean(1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_features_holds_the_share_of_each_cluster(task):
    # rejects clusters of inputs (the second is noise), of outputs (all alike), and of positions that are not averaged;
    # equal features are fewer clusters than asked for, and no warning
    kind = torch.tensor([0] * 10 + [1] * 20 + [2] * 30)
    draw = torch.Generator().manual_seed(0)
    first = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [4.0, 2.0, 0.0]])[kind]
    turn = torch.randint(3, (60,), generator=draw)
    first = torch.stack([row.roll(int(k)) for row, k in zip(first, turn, strict=True)])
    inputs = torch.stack([first, 100 * torch.randn(60, 3, generator=draw)], 2)
    labels = kind if task == "classification" else torch.zeros(60, CLASSES)
    for seed in range(5):
        drawn = curvature_rows(
            OverPositions(), (inputs, labels), 6, method="features", seed=seed, task=task, batch_size=60
        )
        assert kind[[int(row) for row in drawn.ids]].bincount().tolist() == [1, 2, 3]


def test_logits_holds_the_share_of_each_level_of_uncertainty():
    # one row of each level in each predicted class: rejects levels of another quantity, across classes or of labels
    draw = torch.Generator().manual_seed(0)
    n = 3 * LEVELS * CLASSES
    logits = 3 * torch.randn(4 * n, CLASSES, generator=draw, dtype=torch.float64)
    logits = torch.cat([logits[logits.argmax(1) == c][: n // CLASSES] for c in range(CLASSES)])
    model = nn.Linear(CLASSES, CLASSES, bias=False).double()
    model.weight.data = torch.eye(CLASSES, dtype=torch.float64)
    labels = torch.randint(CLASSES, (n,), generator=draw)
    level = torch.zeros(n, dtype=torch.long)
    for c in range(CLASSES):
        mine = [i for i in range(n) if int(logits[i].argmax()) == c]
        traces = []
        for i in mine:
            p = logits[i].exp() / logits[i].exp().sum()
            traces.append(float((p.diag() - p.outer(p)).trace()))
        for rank, k in enumerate(np.argsort(traces)):
            level[mine[k]] = c * LEVELS + rank // 3
    for seed in range(5):
        drawn = curvature_rows(model, (logits, labels), LEVELS * CLASSES, method="logits", seed=seed)
        assert level[[int(row) for row in drawn.ids]].bincount().tolist() == [1] * (LEVELS * CLASSES)


@pytest.mark.parametrize("method", METHODS)
def test_order_and_batches_change_nothing(method):
    model, rows = net(), data()
    drawn = curvature_rows(model, rows, 20, method=method, seed=3)
    assert len(drawn) == 20
    assert drawn.ids == tuple(row for row in rows.ids if row in drawn)  # in the order of the rows
    shuffled = rows.at(torch.randperm(60, generator=torch.Generator().manual_seed(2)))
    for batch in (1, 7, 64):
        again = curvature_rows(model, shuffled, 20, method=method, seed=3, batch_size=batch)
        assert set(again.ids) == set(drawn.ids)
        assert again.ids != drawn.ids


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_and_every_row_has_its_turn(method):
    model, rows = net(), data(30)
    draws = [curvature_rows(model, rows, 10, method=method, seed=seed).ids for seed in range(40)]
    assert draws[0] == curvature_rows(model, rows, 10, method=method, seed=0).ids
    assert len(set(draws)) > 35
    assert {row for drawn in draws for row in drawn} == set(rows.ids)
    assert curvature_rows(model, rows, 30, method=method).ids == rows.ids


@pytest.mark.parametrize("method", ["random", "features", "logits"])
def test_labels_do_not_count_where_they_are_not_the_strata(method):
    model, rows = net(), data()
    other = rows.relabelled({row: (int(label) + 1) % CLASSES for row, label in zip(rows.ids, rows.labels, strict=True)})
    assert curvature_rows(model, rows, 9, method=method).ids == curvature_rows(model, other, 9, method=method).ids


def test_a_random_row_is_drawn_whatever_other_rows_there_are():
    rows = data()
    drawn = curvature_rows(net(), rows, 20)
    others = [row for row in rows.ids if row not in drawn][:15]
    assert curvature_rows(net(), rows.without(others), 20).ids == drawn.ids
    assert set(curvature_rows(net(), rows, 10).ids) < set(drawn.ids)


@pytest.mark.parametrize("method", METHODS)
def test_the_callers_things_stay(method):
    model, rows = net().train(), data()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    curvature_rows(model, rows, 20, method=method)
    assert model.training
    assert model[2].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count is 0 and data has 60 rows; give a count from 1 to 60"),
        ({"count": 61}, "count is 61 and data has 60 rows"),
        ({"method": "logit"}, "unknown method 'logit'; did you mean 'logits'"),
        ({"batch_size": 0}, "batch_size is 0; give at least 1"),
    ],
)
def test_refuses_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        curvature_rows(net(), data(), **{"count": 5, **options})


@pytest.mark.parametrize("method", ["stratified", "logits"])
def test_refuses_classes_where_there_are_none(method):
    rows = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, CLASSES, dtype=torch.float64)
    with pytest.raises(InputError, match=f"method '{method}' needs class labels .* use 'random' or 'features'"):
        curvature_rows(net(), rows, 2, method=method, task="regression")


@pytest.mark.parametrize("method", ["features", "logits"])
def test_refuses_outputs_that_are_not_finite(method):
    model = nn.Linear(1, CLASSES)
    model.weight.data.fill_(1e38)
    with pytest.raises(InputError, match="NaN or infinite"):
        curvature_rows(model, (torch.full((4, 1), 1e10), torch.zeros(4).long()), 2, method=method)


def test_refuses_features_of_a_model_without_a_matrix():
    with pytest.raises(UnsupportedLayerError, match=r"none of the layers .* is a matrix product"):
        curvature_rows(nn.LayerNorm(3), (torch.eye(3), torch.arange(3)), 2, method="features")
