"""Which setting of a method counts at a cost: chosen on other seeds, or by an oracle; on points made up by hand."""

from __future__ import annotations

import pytest
import torch

from unlearn.data import Rows
from unlearn.errors import InputError
from unlearn.pipeline.frontier import choose, frontier
from unlearn.pipeline.repair_benchmark import OURS, OURS_FINAL, Point, known_wrong


def point(method: str, key: str, seed: int, cost: float, phi: float, kl: float, **other: float) -> Point:
    measures = {"phi error / spread": phi, "KL": kl, "KL kept": kl, "cosine changed": -phi, "cosine test": -kl}
    setting = {"budget": float(key.split()[-1])} if method in (OURS, OURS_FINAL) else {}
    return Point(method, setting, key, seed, cost + 1, cost, {**measures, **other})


def failed(key: str, seed: int) -> Point:
    return Point("rival", {}, key, seed, 1.0, 1.0, None, "diverged")


# lr 1 is best on seed 0 alone, lr 2 on seeds 1 and 2
POINTS = [
    *(point("rival", "lr 1", seed, 1.0, *values) for seed, values in enumerate([(1, 1), (9, 9), (9, 9)])),
    *(point("rival", "lr 2", seed, 1.0, *values) for seed, values in enumerate([(4, 4), (2, 2), (2, 2)])),
]


def test_a_setting_is_chosen_by_the_other_seeds_alone() -> None:
    """Rejects a choice that looks at the seed it is reported on, which is the oracle's."""
    chosen = [choose(POINTS, seed) for seed in range(3)]
    assert [p and (p.key, p.seed) for p in chosen] == [("lr 2", 0), ("lr 2", 1), ("lr 2", 2)]
    (level,) = frontier(POINTS, [1.0])
    (row,), (oracle,) = level["chosen"], level["oracle"]
    assert row["settings"] == ["lr 2"] * 3
    assert row["KL"] == {"mean": pytest.approx((4 + 2 + 2) / 3), "worst": 4}
    assert oracle["KL"] == {"mean": pytest.approx((1 + 2 + 2) / 3), "worst": 2}
    assert oracle["cosine test"]["worst"] == -2  # the smallest cosine is the worst


def test_the_choice_weighs_phi_error_on_changed_rows_and_kl_on_kept_rows_by_their_product() -> None:
    """A geometric mean: halving one of them outweighs raising the other by half. Test rows are not looked at."""
    a = [point("rival", "a", seed, 1.0, 2.0, 3.0, **{"KL kept": 1.5}) for seed in (0, 1)]
    b = [point("rival", "b", seed, 1.0, 4.0, 1.0, **{"KL kept": 1.0}) for seed in (0, 1)]
    assert [p and p.key for p in (choose([*a, *b], 0), choose([*a, *b], 1))] == ["a", "a"]


def test_the_oracle_takes_each_column_by_itself() -> None:
    points = [point("rival", "a", 0, 1.0, 1.0, 8.0), point("rival", "b", 0, 1.0, 5.0, 2.0)]
    (level,) = frontier(points, [1.0])
    (row,) = level["oracle"]
    assert (row["phi error / spread"]["mean"], row["KL"]["mean"]) == (1.0, 2.0)
    assert (row["cosine changed"]["mean"], row["cosine test"]["mean"]) == (-1.0, -2.0)
    assert level["chosen"] == []  # one seed: there is none to choose on


def test_only_what_the_cost_allows_counts_and_a_cheaper_setting_may_win() -> None:
    dear = [point("rival", "dear", seed, 2.0, 1.0, 1.0) for seed in (0, 1)]
    cheap = [point("rival", "cheap", seed, 1.09, 3.0, 3.0) for seed in (0, 1)]
    none, one, two, three = frontier([*dear, *cheap], [0.5, 1.0, 2.0, 3.0])
    assert none["chosen"] == none["oracle"] == []
    assert [level["chosen"][0]["settings"][0] for level in (one, two, three)] == ["cheap", "dear", "dear"]
    assert one["oracle"][0]["KL"]["mean"] == 3.0


def test_a_setting_that_diverged_anywhere_is_not_chosen() -> None:
    points = [point("rival", "a", seed, 1.0, 9.0, 9.0) for seed in (0, 1)]
    points += [point("rival", "b", 0, 1.0, 1.0, 1.0), failed("b", 1)]
    assert [p and p.key for p in (choose([q for q in points if q.measures], s) for s in (0, 1))] == ["a", "a"]
    (level,) = frontier(points, [1.0])
    assert level["oracle"][0]["KL"]["mean"] == 5.0  # seed 0 may take b


def test_ours_takes_the_largest_budget_that_fits_and_is_not_chosen_by_what_it_measured() -> None:
    points = [point(OURS, f"budget {b:g}", 0, b + 0.05, phi, phi) for b, phi in ((0, 1.0), (1, 2.0), (3, 0.5))]
    points += [point(OURS_FINAL, "budget 0", 0, 4.0, 7.0, 7.0)]
    half, one, five = frontier(points, [0.5, 1.0, 5.0])
    assert [level["chosen"][0]["settings"] for level in (half, one, five)] == [["budget 0"], ["budget 1"], ["budget 3"]]
    assert [row["method"] for row in five["chosen"]] == [OURS, OURS_FINAL]
    assert five["chosen"][0]["cost"] == pytest.approx(3.05)


def test_known_wrong_rows_are_drawn_by_the_seed() -> None:
    truth = torch.arange(40) % 4
    labels = torch.where(torch.arange(40) < 10, (truth + 1) % 4, truth)
    rows = Rows.from_tensors(torch.eye(40), labels).with_truth(truth)
    removed, relabelled = (known_wrong(rows, 6, action, seed=1) for action in ("remove", "relabel"))
    assert removed.ids == relabelled.ids
    assert {int(row) for row in removed.ids} < set(range(10))
    assert relabelled.relabelled == {row: int(row) % 4 for row in removed.ids}
    assert known_wrong(rows, 6, "remove", seed=2).ids != removed.ids
    for count in (0, 11):
        with pytest.raises(InputError, match=f"rows is {count}, and 10 rows have a wrong label; give 1 to 10"):
            known_wrong(rows, count, "remove", seed=0)
    with pytest.raises(InputError, match="true labels of data are not known"):
        known_wrong(rows.with_truth(None), 1, "remove", seed=0)
