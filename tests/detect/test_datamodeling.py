"""Linear datamodeling score: rank correlations against scipy, signs on convex models, retrains against a slow loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from scipy.stats import spearmanr
from torch import Tensor, nn

from unlearn.curvature import fit_curvature
from unlearn.data import Rows, draws
from unlearn.detect import Datamodels, datamodel_retrains, datamodeling, influence, linear_datamodeling_score
from unlearn.errors import InputError, RecordError
from unlearn.training import TrainSettings, train

SETTINGS = TrainSettings(lr=0.2, epochs=2, batch_size=4)
N, Q, SUBSETS = 20, 3, 5


def some_rows(n: int, seed: int = 0, name: str = "r") -> Rows:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=draw)
    return Rows.from_tensors(x, (x[:, 0] > 0).long() + (x[:, 1] > 0), ids=[f"{name}{i}" for i in range(n)], classes=3)


ROWS, QUERIES = some_rows(N), some_rows(Q, 1, "q")


def build(seed: int) -> nn.Module:
    return nn.Linear(4, 3)


def retrains(**options: Any) -> Datamodels:
    given = {"build": build, "data": ROWS, "queries": QUERIES, "settings": SETTINGS, "subsets": SUBSETS} | options
    return datamodel_retrains(**given)


def made(masks: Tensor, losses: Tensor) -> Datamodels:
    return Datamodels(
        tuple(f"r{i}" for i in range(masks.shape[1])), tuple(f"q{i}" for i in range(losses.shape[-1])), masks, losses
    )


def random_case(m: int = 15, n: int = 8, q: int = 6) -> tuple[Tensor, Datamodels]:
    draw = torch.Generator().manual_seed(0)
    masks = torch.rand(m, n, generator=draw) < 0.5
    attributions = torch.randint(-2, 3, (q, n), generator=draw).double()  # sums with ties
    noise = torch.randint(-2, 3, (m, 2, q), generator=draw).double()
    return attributions, made(masks, (masks.double() @ attributions.T)[:, None] + noise)


def test_is_the_mean_of_scipy_s_rank_correlations() -> None:
    # rejects Pearson, ranks that break ties by order, the sum over rows left out, and one repeat for the mean of two
    attributions, datamodels = random_case()
    slow = []
    for q in range(6):
        sums = [float(attributions[q][mask].sum()) for mask in datamodels.masks]
        slow.append(spearmanr(sums, datamodels.losses[:, :, q].mean(1)).statistic)
    score = linear_datamodeling_score(attributions, datamodels)
    np.testing.assert_allclose(score.per_query, slow, atol=1e-12)
    assert score.mean == pytest.approx(np.mean(slow))
    assert score.low < score.mean < score.high
    assert len({round(value, 6) for value in slow}) > 1


def test_the_scale_of_attributions_does_not_count_and_a_query_without_any_counts_0() -> None:
    attributions, datamodels = random_case()
    score = linear_datamodeling_score(attributions, datamodels)
    scaled = linear_datamodeling_score(7 * attributions.float(), datamodels)
    np.testing.assert_array_equal(score.per_query, scaled.per_query)
    attributions[2] = 0
    assert linear_datamodeling_score(attributions, datamodels).per_query[2] == 0


def least_squares_case(share: float) -> tuple[Tensor, Datamodels]:
    """Return influences and exact retrains of a linear regression with noise."""
    draw = torch.Generator().manual_seed(0)
    n, q, m = 120, 10, 60
    x, x_query = torch.randn(n, 3, generator=draw).double(), torch.randn(q, 3, generator=draw).double()
    truth = torch.tensor([[1.0], [-2.0], [0.5]]).double()
    y = x @ truth + torch.randn(n, 1, generator=draw).double()
    y_query = x_query @ truth + torch.randn(q, 1, generator=draw).double()
    model = nn.Linear(3, 1, bias=False).double()
    model.weight.data = torch.linalg.lstsq(x, y).solution.T.contiguous()
    curvature = fit_curvature(model, (x, y), task="regression", kind="kfac", fisher="exact")
    harm = influence(model, (x, y), (x_query, y_query), curvature=curvature, damping=0.0, task="regression")
    masks = torch.zeros(m, n, dtype=torch.bool)
    for k in range(m):
        masks[k, torch.randperm(n, generator=draw)[: round(share * n)]] = True
    thetas = [torch.linalg.lstsq(x[mask], y[mask]).solution for mask in masks]
    losses = torch.stack([0.5 * (x_query @ theta - y_query).square().flatten() for theta in thetas])
    return harm, made(masks, losses[:, None])


@pytest.mark.parametrize(("share", "at_least"), [(0.5, 0.9), (0.95, 0.98)])
def test_exact_influence_on_least_squares_scores_near_1_with_its_sign(share: float, at_least: float) -> None:
    # positive is harmful, so the sums rise with the loss: rejects the other sign; closer, the fewer rows are left out
    harm, datamodels = least_squares_case(share)
    score = linear_datamodeling_score(harm, datamodels)
    assert score.mean > at_least
    assert linear_datamodeling_score(-harm, datamodels).mean == pytest.approx(-score.mean)
    # of 60 subsets, a query without any relation has a deviation of 0.13, and queries in three columns much in common
    assert linear_datamodeling_score(harm.roll(1, 1), datamodels).mean < 4 / 59**0.5


def test_the_interval_resamples_queries() -> None:
    # two kinds of queries, +1 and -1 on any subsets: rejects a bootstrap of subsets alone, which has no width here
    masks = torch.eye(9).bool() | (torch.rand(9, 9, generator=torch.Generator().manual_seed(1)) < 0.3)
    sums = masks.double() @ torch.arange(9.0).double() ** 2
    datamodels = made(masks, torch.stack([sums, -sums] * 5, 1)[:, None])
    score = linear_datamodeling_score((torch.arange(9.0) ** 2).expand(10, 9), datamodels)
    np.testing.assert_allclose(score.per_query, [1.0, -1.0] * 5)
    # the mean of ten signs has deviation 1 / sqrt(10); its 2.5 % and 97.5 % quantiles are -0.6 and 0.6
    assert (score.low, score.high) == pytest.approx((-0.6, 0.6))
    narrow = linear_datamodeling_score((torch.arange(9.0) ** 2).expand(10, 9), datamodels, level=0.5)
    assert (narrow.low, narrow.high) == pytest.approx((-0.2, 0.2))


def test_the_interval_resamples_subsets() -> None:
    # ten copies of one query: rejects a bootstrap of queries alone, which has no width here
    attributions, one = random_case(q=1)
    copies = made(one.masks, one.losses.expand(-1, -1, 10))
    score = linear_datamodeling_score(attributions.expand(10, -1), copies)
    random, wide = np.random.default_rng(5), []
    sums = (one.masks.double() @ attributions[0]).numpy()
    for _ in range(3000):
        k = random.integers(15, size=15)
        wide.append(spearmanr(sums[k], one.outputs[k, 0]).statistic)
    assert (score.low, score.high) == pytest.approx(np.quantile(wide, [0.025, 0.975]), abs=0.03)
    assert score.high - score.low > 0.1


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    attributions, datamodels = random_case()
    first, again, other = (linear_datamodeling_score(attributions, datamodels, seed=seed) for seed in (0, 0, 1))
    assert (first.low, first.high) == (again.low, again.high) != (other.low, other.high)


def test_retrains_are_those_of_a_slow_loop() -> None:
    # rejects rows that are not in the mask, one seed for all trainings, and a training that keeps the last weights
    found = retrains(repeats=2, share=0.4, seed=3)
    assert found.masks.sum(1).tolist() == [8] * SUBSETS
    assert len({tuple(mask.tolist()) for mask in found.masks}) == SUBSETS
    x, y = QUERIES.batch(torch.arange(Q))
    for k in range(SUBSETS):
        subset = ROWS.only(sorted(ROWS.ids[i] for i in found.masks[k].nonzero().flatten().tolist()))
        for repeat in range(2):
            seed = draws.derived_seed(3, "datamodel", k, repeat)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                start = nn.Linear(4, 3)
            model, _ = train(start, subset, SETTINGS, seed=seed)
            loss = F.cross_entropy(model(x).detach().double(), y, reduction="none")
            torch.testing.assert_close(found.losses[k, repeat], loss, rtol=0, atol=0)
    torch.testing.assert_close(found.outputs, (found.losses[:, 0] + found.losses[:, 1]) / 2)
    assert (found.losses[:, 0] != found.losses[:, 1]).all()
    assert found.cost_epochs == 2 * 2 * SUBSETS * 0.4
    assert found.trained == 2 * SUBSETS


def test_regression_is_measured_by_its_own_loss() -> None:
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    found = datamodel_retrains(
        lambda seed: nn.Linear(2, 1), (x, x[:, 0]), (x[:2], x[:2, 1]), SETTINGS, subsets=3, task="regression"
    )
    assert found.losses.shape == (3, 1, 2)
    assert (found.losses > 0).all()


def test_the_order_of_rows_changes_nothing_but_the_order_of_the_masks() -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    straight, turned = retrains(), retrains(data=ROWS.at(order))
    torch.testing.assert_close(straight.losses, turned.losses, rtol=0, atol=0)
    assert torch.equal(straight.masks[:, order], turned.masks)


def test_the_global_seed_is_left_as_found() -> None:
    before = torch.random.get_rng_state()
    retrains(build=lambda seed: (torch.manual_seed(1), nn.Linear(4, 3))[1])
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = retrains(repeats=2), []

    def killed(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:  # in the second training of the third subset
            raise KeyboardInterrupt
        return train(*args, **options)

    monkeypatch.setattr(datamodeling, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        retrains(repeats=2, folder=tmp_path)
    monkeypatch.setattr(datamodeling, "train", train)
    resumed = retrains(repeats=2, folder=tmp_path)
    assert resumed.trained == 6
    torch.testing.assert_close(resumed.losses, whole.losses, rtol=0, atol=0)
    assert retrains(repeats=2, folder=tmp_path).trained == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_more_subsets_take_up_the_first_ones_and_fewer_lose_none(tmp_path: Path) -> None:
    few = retrains(folder=tmp_path, subsets=3)
    more = retrains(folder=tmp_path)
    assert (few.trained, more.trained) == (3, 2)
    assert torch.equal(more.losses[:3], few.losses)
    assert torch.equal(more.masks[:3], few.masks)
    assert len(retrains(folder=tmp_path, subsets=4).losses) == 4
    assert retrains(folder=tmp_path).trained == 0


def zeros(seed: int) -> nn.Module:
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    return model


OTHER: dict[str, Callable[[], dict[str, Any]]] = {
    "label": lambda: {"data": ROWS.relabelled({"r0": (int(ROWS.labels[0]) + 1) % 3})},
    "query label": lambda: {"queries": QUERIES.relabelled({"q0": (int(QUERIES.labels[0]) + 1) % 3})},
    "query order": lambda: {"queries": QUERIES.at(torch.tensor([2, 1, 0]))},
    "settings": lambda: {"settings": dataclasses.replace(SETTINGS, lr=0.1)},
    "weights": lambda: {"build": zeros},
    "architecture": lambda: {"build": lambda seed: nn.Sequential(nn.Linear(4, 3), nn.Tanh())},
    "share": lambda: {"share": 0.4},
    "seed": lambda: {"seed": 1},
    "repeats": lambda: {"repeats": 2},
}


@pytest.mark.parametrize("case", OTHER)
def test_retrains_on_file_are_not_taken_for_others(case: str, tmp_path: Path) -> None:
    retrains(folder=tmp_path)
    changed = retrains(folder=tmp_path, **OTHER[case]())
    assert changed.trained == SUBSETS * changed.losses.shape[1]
    torch.testing.assert_close(changed.losses, retrains(**OTHER[case]()).losses, rtol=0, atol=0)


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    retrains(folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RecordError, match=r"datamodels-.* is damaged .*remove it"):
        retrains(folder=tmp_path)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "share 1": (lambda: retrains(share=1.0), "share is 1.0 of 20 rows"),
    "share 0": (lambda: retrains(share=0.01), "leaves some rows out"),
    "NaN share": (lambda: retrains(share=float("nan")), "share is nan"),
    "subsets": (lambda: retrains(subsets=2), "subsets is 2; give at least 3"),
    "repeats": (lambda: retrains(repeats=0), "repeats is 0; give at least 1"),
    "transposed": (
        lambda: linear_datamodeling_score(random_case()[0].T, random_case()[1]),
        r"\(8, 6\); give \(queries",
    ),
    "NaN": (lambda: linear_datamodeling_score(random_case()[0] / 0, random_case()[1]), "attributions are NaN"),
    "level": (lambda: linear_datamodeling_score(*random_case(), level=1.0), "level is 1.0"),
    "resamples": (lambda: linear_datamodeling_score(*random_case(), resamples=0), "resamples is 0"),
    "shapes": (lambda: made(torch.ones(4, 2).bool(), torch.ones(3, 1, 2)), r"masks have shape \(4, 2\) and losses \(3"),
    "no repeats": (lambda: made(torch.ones(3, 2).bool(), torch.ones(3, 2)), "subsets, repeats, queries"),
    "diverged": (
        lambda: made(torch.ones(3, 2).bool(), torch.full((3, 1, 2), torch.inf)),
        "loss of query 'q0'.*subset 0",
    ),
    "constant loss": (
        lambda: linear_datamodeling_score(torch.ones(2, 2), made(torch.ones(3, 2).bool(), torch.ones(3, 1, 2))),
        "loss of query 'q0' is the same in all retrains",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(InputError, match=message):
        call()
