import json
import math
import re

import numpy as np
import pytest
from scipy import stats

from unlearn.errors import InputError
from unlearn.verification.ratio import Ratio, ratios_of, t95
from unlearn.verification.verdict import GroupPhi, Verdict, decide

NORMAL = np.random.default_rng(11).normal(size=(12, 400))
AT_TOLERANCE = math.sqrt(2 * 1.5**2 - 1)  # distance from the references' mean, in standard deviations, for r = 1.5


def group(edited, references=5, rows=400):
    return GroupPhi(edited[:rows], NORMAL[1, :rows] + 6, NORMAL[2 : 2 + references, :rows])


def only(verdict):
    (row,) = verdict.table
    return row


def test_r_is_a_ratio_of_root_mean_squares():
    edited, references = np.array([2.0, 0.0]), np.array([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0]])
    # to references: 4 0, 4 4, 4 0 -> 16 / 6; between them: 0 4, 16 0, 16 4 -> 40 / 6
    row = only(decide({"test": GroupPhi(edited, edited + 1, references)}))
    assert row["r"] == pytest.approx(math.sqrt(16 / 40))
    assert row["unedited_r"] == pytest.approx(math.sqrt((9 + 1 + 9 + 1 + 1 + 1) / 40))
    assert (row["rows"], row["references"]) == (2, 3)


def test_bounds_are_the_jackknife_where_rows_are_one():
    edited, references = np.array([1.0]), np.array([[0.0], [1.5], [2.5], [-1.0]])

    def log_r(refs):
        floor = [(a - b) ** 2 for i, a in enumerate(refs) for b in refs[i + 1 :]]
        return 0.5 * math.log(np.mean((edited - refs) ** 2) / np.mean(floor))

    logs = np.array([log_r(np.delete(references, k)) for k in range(4)])
    width = stats.t.ppf(0.95, 3) * math.sqrt(3 / 4 * ((logs - logs.mean()) ** 2).sum())
    row = only(decide({"changed": GroupPhi(edited, edited + 1, references)}))
    assert row["upper"] == pytest.approx(row["r"] * math.exp(width), rel=1e-5)
    assert row["lower"] == pytest.approx(row["r"] * math.exp(-width), rel=1e-5)


def test_bounds_are_the_bootstrap_where_references_are_alike():
    """Each row a copy of one difference pattern: no reference stands out, so that the rows alone decide."""
    weights = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    references = np.outer([1.0, -1.0, 1.0, -1.0], np.ones(6)) + 1e-9 * NORMAL[:4, :6]
    edited = weights + 3
    a = (edited[None] - references) ** 2
    logs = []
    rng = np.random.default_rng(5)
    for _ in range(4000):
        rows = rng.integers(6, size=6)
        logs.append(0.5 * math.log(a[:, rows].mean()))
    found = ratios_of("g", edited[None], references, 0, 4000)[0]
    assert found.s_rows == pytest.approx(np.std(logs) * math.sqrt(6 / 5), rel=0.05)
    width = math.hypot(stats.t.ppf(0.95, 3) * found.s_references, stats.t.ppf(0.95, 5) * found.s_rows)
    assert found.upper == pytest.approx(found.r * math.exp(width))


def test_few_rows_and_few_references_widen_the_bounds():
    def width(references, rows):
        row = only(decide({"test": group(NORMAL[0], references, rows)}))
        return math.log(row["upper"] / row["lower"])

    assert width(5, 400) < width(3, 400) < width(2, 400)
    assert width(5, 400) < width(5, 40) < width(5, 4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 7, 10, 30, 1000])
def test_quantiles_of_t(freedom):
    assert t95(freedom) == pytest.approx(stats.t.ppf(0.95, freedom), abs=1e-3)


def test_an_independent_retrain_passes():
    verdict = decide({"changed": group(NORMAL[0], rows=100), "kept": group(NORMAL[0]), "test": group(NORMAL[11])})
    assert verdict.outcome == "pass"
    assert verdict.exit_code == 0
    assert [row["group"] for row in verdict.table] == ["changed", "kept", "test"]
    assert all(row["unedited_lower"] > 1.5 for row in verdict.table)
    assert "no measurable trace" not in verdict.reason
    assert "changed, kept and test rows" in verdict.reason


@pytest.mark.parametrize("sign", [1, -1], ids=["unedited", "over-forgotten"])
def test_a_far_model_fails_on_either_side(sign):
    verdict = decide({"changed": group(NORMAL[0] + 6 * sign, rows=40), "test": group(NORMAL[0])})
    assert verdict.outcome == "fail"
    assert verdict.exit_code == 1
    assert "changed rows" in verdict.reason
    assert "test" not in verdict.reason


def test_errors_that_cancel_over_rows_fail():
    # a mean of phi would not see them
    assert decide({"test": group(NORMAL[0] + 6 * (-1.0) ** np.arange(400))}).outcome == "fail"


def test_a_needless_edit_is_called_so():
    verdict = decide({"test": GroupPhi(NORMAL[0], NORMAL[1], NORMAL[2:7])})
    assert verdict.outcome == "pass"
    assert verdict.reason.endswith("no measurable trace: the edit was not needed to pass")


def test_a_needless_edit_needs_every_group():
    groups = {"changed": group(NORMAL[0]), "test": GroupPhi(NORMAL[0], NORMAL[1], NORMAL[2:7])}
    assert "no measurable trace" not in decide(groups).reason


def test_one_reference_is_undecided():
    verdict = decide({"test": group(NORMAL[0] + 50, references=1)})
    assert verdict.outcome == "undecided"
    assert verdict.exit_code == 3
    assert "one reference has no spread" in verdict.reason
    assert only(verdict)["r"] is only(verdict)["upper"] is None


def test_two_references_decide_only_extremes():
    assert decide({"test": group(NORMAL[0], references=2)}).outcome == "undecided"
    verdict = decide({"test": group(NORMAL[0] + 6, references=2)})
    assert verdict.outcome == "undecided"
    assert "give at least three" in verdict.reason
    assert decide({"test": group(NORMAL[0] + 1000, references=2)}).outcome == "fail"


def test_one_changed_row_works():
    one = GroupPhi([1.5], [9.0], [[-1.0], [0.0], [1.0]])
    verdict = decide({"changed": one, "test": group(NORMAL[0], references=3)})
    assert verdict.outcome == "undecided"
    assert "changed rows" in verdict.reason
    assert verdict.table[0]["r"] == pytest.approx(math.sqrt((2.5**2 + 1.5**2 + 0.5**2) / (1 + 1 + 4)))
    assert verdict.table[0]["upper"] / verdict.table[0]["lower"] > 4


def test_undecided_says_how_many_more_references():
    # t(K - 1) 0.3 sqrt(3 / K) falls below log 1.5 = 0.405 at K = 7: 0.427 for 6, 0.382 for 7
    assert Ratio(1.0, references=3, s_references=0.3, s_rows=0.0, rows=20).more_references(1.5) == 4
    assert Ratio(1.0, references=3, s_references=0.3, s_rows=0.5, rows=20).more_references(1.5) is None
    verdict = decide({"test": GroupPhi([0.7], [9.0], [[-1.0], [0.0], [1.0]])})
    assert verdict.outcome == "undecided"
    more = verdict.more_references
    assert more is not None
    assert re.search(rf"about {more} more references? would decide$", verdict.reason)
    assert Verdict.from_dict(json.loads(verdict.to_json())).more_references == more


def test_undecided_at_the_tolerance_says_references_would_not_help():
    r = only(decide({"test": group(NORMAL[0], rows=40)}))["r"]
    verdict = decide({"test": group(NORMAL[0], rows=40)}, tolerance=r * 1.0001)
    assert verdict.outcome == "undecided"
    assert "more references alone would not decide" in verdict.reason
    assert verdict.more_references is None


def test_tolerance_moves_the_outcome():
    groups = {"test": group(NORMAL[0])}
    assert decide(groups, tolerance=0.5).outcome == "fail"
    assert decide(groups, tolerance=1.2).outcome == "pass"
    assert decide(groups, tolerance=1.2).tolerance == 1.2


def test_same_seed_same_verdict():
    groups = {"changed": group(NORMAL[0], rows=20), "test": group(NORMAL[0])}
    state = np.random.get_state()[1].tolist()
    first = decide(groups, seed=4)
    assert first == decide(groups, seed=4)
    assert first != decide(groups, seed=5)
    assert np.random.get_state()[1].tolist() == state
    backwards = decide(dict(reversed(groups.items())), seed=4)
    assert sorted(map(str, backwards.table)) == sorted(map(str, first.table))


def test_phi_may_be_shifted_scaled_and_references_reordered():
    scale, shift = 3.0, np.linspace(-5, 5, 400)
    plain = only(decide({"test": group(NORMAL[0])}))
    moved = GroupPhi(*(scale * z + shift for z in (NORMAL[0], NORMAL[1] + 6)), scale * NORMAL[6:1:-1] + shift)
    assert only(decide({"test": moved})) == pytest.approx(plain)


def test_verdict_survives_json():
    for verdict in (decide({"test": group(NORMAL[0])}), decide({"test": group(NORMAL[0], references=1)})):
        assert Verdict.from_dict(json.loads(verdict.to_json())) == verdict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "this version reads 1"),
        ({"outcome": "maybe"}, "known: pass, fail, undecided"),
        ({"table": None}, "lacks table"),
    ],
)
def test_another_verdict_file_is_refused(change, message):
    data = decide({"test": group(NORMAL[0])}).to_dict() | change
    with pytest.raises(InputError, match=message):
        Verdict.from_dict({key: value for key, value in data.items() if value is not None})


def test_verdict_prints_in_80_columns():
    groups = {
        "a group with a long name": group(NORMAL[0] + 1e9, rows=1),
        "test": group(NORMAL[0]),
        "changed": group(NORMAL[0], rows=2),
    }
    for verdict in (decide(groups), decide({"test": group(NORMAL[0], references=1)})):
        lines = str(verdict).splitlines()
        assert max(map(len, lines)) <= 80
        assert lines[0].startswith(f"{verdict.outcome}: ")
        assert len([line for line in lines if line.startswith("test")]) == 1


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ({}, {}, "no groups"),
        ({"test": GroupPhi([], [], np.zeros((3, 0)))}, {}, "0 rows and 3 references"),
        ({"test": GroupPhi([1.0], [1.0], np.zeros((0, 1)))}, {}, "1 rows and 0 references"),
        ({"test": GroupPhi([1.0], [1.0, 2.0], [[1.0], [2.0]])}, {}, "give \\(n,\\), \\(n,\\) and \\(K, n\\)"),
        ({"test": GroupPhi([1.0], [1.0], [[1.0, 2.0], [2.0, 3.0]])}, {}, "has shapes"),
        ({"test": GroupPhi([1.0], [1.0], [1.0])}, {}, "has shapes"),
        ({"test": GroupPhi([[1.0]], [1.0], [[1.0]])}, {}, "has shapes"),
        ({"test": GroupPhi([math.nan], [1.0], [[1.0], [2.0]])}, {}, "NaN or infinite"),
        ({"test": GroupPhi([1.0], [1.0], [[1.0], [math.inf]])}, {}, "NaN or infinite"),
        ({"test": GroupPhi([1.0], [1.0], [[1.0], [2.0, 3.0]])}, {}, "not three arrays of numbers"),
        ({"test": GroupPhi([1.0], [1.0], [[1.0], [2.0], [1.0]])}, {}, "references 0 and 2 are the same on test rows"),
        ({"a": group(NORMAL[0]), "b": group(NORMAL[0], references=3)}, {}, "a 5, b 3"),
        ({"test": group(NORMAL[0])}, {"tolerance": 0}, "give a number above 0"),
        ({"test": group(NORMAL[0])}, {"tolerance": math.nan}, "give a number above 0"),
        ({"test": group(NORMAL[0])}, {"draws": 10}, "at least 100 draws"),
        ({"test": group(NORMAL[0])}, {"seed": -1}, "seed of 0 or more"),
    ],
)
def test_bad_input_is_one_clear_line(groups, options, message):
    with pytest.raises(InputError, match=message) as caught:
        decide(groups, **options)
    assert "\n" not in str(caught.value)


def outcomes(references, rows, shared, edit, experiments=200):
    """Outcomes over simulated retrains with unit variance, of which `shared` moves all rows of a retrain together."""
    rng = np.random.default_rng([references, rows, int(10 * shared)])
    counts = {"pass": 0, "fail": 0, "undecided": 0}
    for seed in range(experiments):
        own, common = rng.normal(size=(references + 1, rows)), rng.normal(size=(references + 1, 1))
        phi = math.sqrt(1 - shared) * own + math.sqrt(shared) * common
        edited = phi[0] if edit == "retrain" else edit * np.ones(rows)
        counts[decide({"g": GroupPhi(edited, phi[0], phi[1:])}, draws=100, seed=seed).outcome] += 1
    return counts


@pytest.mark.parametrize(("rows", "shared"), [(1, 0), (20, 0), (100, 0.1), (100, 0.5), (20, 1)])
@pytest.mark.parametrize("references", [3, 5, 8])
def test_false_passes_at_the_tolerance_are_at_most_one_in_twenty(references, rows, shared):
    counts = outcomes(references, rows, shared, AT_TOLERANCE)
    passes = counts["pass"]
    assert counts["fail"] <= 40  # the weaker side
    assert stats.beta.ppf(0.05, passes, 201 - passes) <= 0.05 if passes else True  # Clopper-Pearson


@pytest.mark.parametrize(("references", "rows", "least"), [(3, 100, 160), (5, 20, 140), (5, 100, 190), (8, 20, 180)])
def test_independent_retrains_mostly_pass(references, rows, least):
    counts = outcomes(references, rows, 0.0, "retrain")
    assert counts["pass"] >= least
    assert counts["fail"] <= 10


@pytest.mark.parametrize("references", [3, 5, 8])
def test_independent_retrains_that_move_as_one_rarely_fail(references):
    assert outcomes(references, 20, 1.0, "retrain")["fail"] <= 10
