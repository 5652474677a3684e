"""Which rows still remember."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unlearn.tasks import phi
from unlearn.verification import Group, RowTable, row_table

DRAW = torch.Generator().manual_seed(8)
IDS = tuple("abcdefgh")
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
RETRAINS = torch.randn(5, 8, 3, generator=DRAW, dtype=torch.float64)


def surer(row: int, by: float) -> Tensor:
    """An edited model like another retrain, but for its logit of one row's label."""
    z = torch.randn(8, 3, generator=DRAW, dtype=torch.float64)
    z[row, LABELS[row]] += by
    return z


def table(edited: Tensor, retrains: int = 4, coupled: Tensor | None = None) -> RowTable:
    return row_table(Group("changed", LABELS, LABELS, edited + 1, edited, coupled, list(RETRAINS[:retrains])), IDS)


def test_a_row_that_is_remembered_stands_first_and_a_forgotten_one_last() -> None:
    z = surer(5, 12.0)
    z[2, LABELS[2]] -= 12
    found = table(z)
    assert found.ids[0] == "f"
    assert found.ids[-1] == "c"
    assert found.remembered().ids == tuple(row["id"] for row in found if row["z"] > 2)
    assert 0 < len(found.remembered()) < 4
    assert list(found.columns["z"]) == sorted(found.columns["z"], reverse=True)


def test_z_by_hand() -> None:
    edited = surer(0, 2.0)
    values = np.array([[float(phi(z[None, i], LABELS[i : i + 1])) for i in range(8)] for z in RETRAINS[:4]])
    own = ((values - values.mean(0)) ** 2).sum(0) / 3
    variance = (4 * own.mean() + 3 * own) / 7
    rows = {row["id"]: row for row in table(edited)}
    for i, row in enumerate(IDS):
        mine = float(phi(edited[None, i], LABELS[i : i + 1]))
        assert rows[row]["z"] == pytest.approx((mine - values[:, i].mean()) / math.sqrt(variance[i] * 1.25))
        assert rows[row]["phi_edited"] == pytest.approx(mine)
        assert rows[row]["phi_retrained"] == pytest.approx(values[:, i].mean())
        assert rows[row]["spread"] == pytest.approx(math.sqrt(own[i]))
        assert rows[row]["label"] == int(LABELS[i])


@pytest.mark.parametrize("retrains", [2, 3, 5])
def test_of_rows_never_seen_about_one_in_twenty_lies_beyond_two(retrains: int) -> None:
    rng = np.random.default_rng(retrains)
    beyond = []
    for _ in range(40):
        spread = torch.from_numpy(rng.uniform(0.5, 2, size=(200, 1)))
        z = [
            torch.cat([torch.from_numpy(rng.normal(size=(200, 1))) * spread, torch.zeros(200, 1)], 1) for _ in range(6)
        ]
        labels = torch.zeros(200, dtype=torch.long)
        found = row_table(Group("g", labels, labels, None, z[5], None, z[:retrains]), tuple(map(str, range(200))))
        beyond.append((np.abs(found.columns["z"]) > 2).mean())
    assert 0.03 < np.mean(beyond) < 0.08


def test_without_a_floor_the_order_is_by_what_is_there() -> None:
    edited = surer(3, 9.0)
    one = table(edited, retrains=1)
    assert one.ids[0] == "d"
    assert np.isnan(one.columns["z"]).all()
    assert len(one.remembered()) == 0
    none = table(edited, retrains=0, coupled=RETRAINS[0])
    difference = none.columns["phi_edited"] - none.columns["phi_coupled"]
    assert list(difference) == sorted(difference, reverse=True)
    alone = table(edited, retrains=0)
    assert list(alone.columns["phi_edited"]) == sorted(alone.columns["phi_edited"], reverse=True)


def test_every_row_is_in_the_file(tmp_path: Path) -> None:
    found = table(surer(5, 12.0))
    found.save(tmp_path / "rows-changed.csv")
    first, *lines = (tmp_path / "rows-changed.csv").read_text().splitlines()
    assert first == "# unlearn rows 1"
    rows = list(csv.DictReader(lines))
    assert [row["id"] for row in rows] == list(found.ids)
    assert [float(row["z"]) for row in rows] == list(found.columns["z"])
    assert {row["phi_coupled"] for row in rows} == {""}
