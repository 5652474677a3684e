"""Classes and named groups: the worse first."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from unlearn.errors import InputError, RowNotFoundError
from unlearn.verification import Group, measure_subgroups, read_groups, read_ids
from unlearn.verification.distances import kl, phi_error
from unlearn.verification.subgroups import check_groups

N, CLASSES = 60, 3
LABELS = torch.arange(N) % CLASSES
IDS = [f"row-{i}" for i in range(N)]
DRAW = torch.Generator().manual_seed(4)


def model(wrong: int, of: int) -> Tensor:
    """Logits that are right but for the first rows of one class, and a little noise."""
    z = torch.nn.functional.one_hot(LABELS, CLASSES) * 3.0
    bad = (of == LABELS).nonzero().flatten()[:wrong]
    z[bad] = z[bad].roll(1, 1)
    return z.double() + 0.1 * torch.randn(N, CLASSES, generator=DRAW, dtype=torch.float64)


RETRAINS = [model(1, 0), model(2, 0), model(1, 1)]
EDITED, UNEDITED = model(12, 2), model(1, 2)
GROUP = Group("test", LABELS, LABELS, UNEDITED, EDITED, None, RETRAINS)


def test_a_class_that_is_worse_stands_first() -> None:
    found = measure_subgroups(GROUP, IDS, {})
    assert [row["part"] for row in found if row["worse"]] == ["2"]
    first = found[0]
    assert (first["kind"], first["part"], first["rows"]) == ("class", "2", 20)
    assert (first["unedited"], first["edited"], first["independent"]) == pytest.approx((0.95, 0.4, 1.0))
    assert first["change"] == pytest.approx(-0.6)
    here = LABELS == 2
    pairs = [(0, 1), (0, 2), (1, 2)]
    errors = [phi_error(z[here], EDITED[here], LABELS[here]) for z in RETRAINS]
    floor = [phi_error(RETRAINS[a][here], RETRAINS[b][here], LABELS[here]) for a, b in pairs]
    assert first["phi_error"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / 3))
    assert first["phi_floor"] == pytest.approx(math.sqrt(sum(e * e for e in floor) / 3))
    assert first["kl"] == pytest.approx(sum(kl(z[here], EDITED[here]) for z in RETRAINS) / 3)


@pytest.mark.parametrize(("wrong", "worse"), [(4, False), (5, True)])
def test_worse_is_below_the_prediction_limit_of_one_more_retrain(wrong: int, worse: bool) -> None:
    # accuracies .95, .9, 1 of class 0: mean .95, deviation .05; t(2) .05 sqrt(4 / 3) = 0.169, so the limit is 0.781
    assert 0.95 - stats.t.ppf(0.95, 2) * 0.05 * math.sqrt(4 / 3) == pytest.approx(0.781, abs=1e-3)
    group = Group("test", LABELS, LABELS, UNEDITED, model(wrong, 0), None, RETRAINS)
    found = {row["part"]: row for row in measure_subgroups(group, IDS, {})}
    assert found["0"]["edited"] == 1 - wrong / 20
    assert found["0"]["worse"] is worse


def test_named_groups_are_measured_beside_the_classes() -> None:
    named = {IDS[i]: "scanner B" for i in range(2, 30, 3)} | {IDS[0]: "scanner A"}
    found = {row["part"]: row for row in measure_subgroups(GROUP, IDS, named)}
    assert (found["scanner B"]["kind"], found["scanner B"]["rows"]) == ("named", 10)
    assert found["scanner B"]["edited"] == 0.0
    assert found["scanner B"]["worse"]
    assert (found["scanner A"]["rows"], found["scanner A"]["worse"]) == (1, False)


def test_labels_of_phi_name_the_class_and_the_wanted_ones_are_counted() -> None:
    """A relabelled row belongs to the class it had, and is right where it has the new one."""
    wanted = (LABELS + 1) % CLASSES
    group = Group("changed", wanted, LABELS, UNEDITED, EDITED.roll(1, 1), None, RETRAINS)
    first = measure_subgroups(group, IDS, {})
    assert {row["part"]: row["edited"] for row in first} == {"0": 1.0, "1": 1.0, "2": 0.4}


def test_without_retrains_the_change_is_from_the_unedited_model() -> None:
    (first, *_) = measure_subgroups(Group("test", LABELS, LABELS, UNEDITED, EDITED), IDS, {})
    assert first["part"] == "2"
    assert first["change"] == pytest.approx(0.4 - 0.95)
    assert first["worse"] is first["independent"] is first["phi_error"] is first["kl"] is None


def test_groups_are_read_from_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text('\ufeffid,group\nrow-1,scanner A\nrow-2,"B, new"\n', encoding="utf-8")
    assert read_groups(path) == {"row-1": "scanner A", "row-2": "B, new"}
    assert read_ids(path) == ("row-1", "row-2")
    path.write_text("# unlearn decisions 1\nid,action,label\nrow-5,remove,\n")
    assert read_ids(path) == ("row-5",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,name\na,b\n", "it needs id, group"),
        ("id,group\na,b\na,c\n", "line 3: row 'a' is named twice"),
        ("id,group\na,\n", "line 2: give id and group"),
        (None, "can not read rows"),
    ],
)
def test_bad_groups_are_one_clear_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "groups.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_groups(path)


def test_rows_that_are_nowhere_are_refused() -> None:
    with pytest.raises(
        RowNotFoundError, match="1 of 2 rows of the named groups are neither training nor test rows: 'x'"
    ):
        check_groups({"row-1": "A", "x": "A"}, set(IDS))
