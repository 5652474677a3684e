"""The membership audit: on constructed signals, and in reduced form on digits."""

from __future__ import annotations

import copy
import html
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import unlearn
from unlearn.curvature import loss_gradient
from unlearn.data import Rows, load_data, symmetric_noise
from unlearn.errors import InputError, RowNotFoundError
from unlearn.models import build_model
from unlearn.repair import Changes, Edit
from unlearn.training import TrainSettings
from unlearn.verification import MembershipAudit, Shadows, train_references
from unlearn.verification.attacks import Read, scored_attacks
from unlearn.verification.likelihood_ratio import Gaussians, log_likelihood_ratio
from unlearn.verification.membership import audit_signals, same_edit
from unlearn.verification.shadows import train_shadows
from unlearn.verification.signals import Signals, read_signals

ROWS = Rows.from_tensors(torch.zeros(40, 1), torch.arange(40) % 2, ids=[f"row-{i}" for i in range(40)])


def signals(phi: np.ndarray) -> Signals:
    return Signals(phi, np.log1p(np.exp(-phi)), 1 / (1 + np.exp(phi)))


def constructed(audited: np.ndarray, gap: float = 6.0, rows: int = 40, unlearned: bool = False) -> Read:
    """Models of unit noise around 0 that never saw the rows, around ``gap`` that learned them."""
    rng = np.random.default_rng(7)
    never, learned, between = (
        [signals(row) for row in rng.normal(mean, 1, size=(10, rows))] for mean in (0, gap, gap / 3)
    )
    return Read(signals(audited), never, learned, between if unlearned else [])


def line(audit: MembershipAudit, attack: str, models: str = "audited", group: str = "all") -> dict[str, float]:
    wanted = (group, attack, models)
    (found,) = (one for one in audit.table if (one["group"], one["attack"], one["models"]) == wanted)
    return found


@pytest.mark.parametrize(
    ("shift", "outcome", "flag"),
    [(0.0, "pass", None), (6.0, "fail", "still remembered"), (-6.0, "fail", "over-forgotten")],
)
def test_both_sides_are_told(shift: float, outcome: str, flag: str | None) -> None:
    """Rejects a one-sided audit, which passes a model that is conspicuously *less* confident."""
    audit = audit_signals(constructed(np.random.default_rng(1).normal(shift, 1, 40)), ROWS)
    assert audit.outcome == outcome
    assert audit.exit_code == {"pass": 0, "fail": 1}[outcome]
    flags = {row["flag"] for row in audit.rows}
    assert flags <= {"", flag}
    if flag is not None:
        assert len(audit.flagged(flag)) > 30
        assert flag in audit.reason
    if shift < 0:
        assert line(audit, "lira")["auc"] < 0.01  # the one-sided attack sees perfect forgetting
        assert line(audit, "less-confident")["tpr"] > 0.9
        assert line(audit, "two-sided")["tpr"] > 0.9


def test_one_row_that_stands_out_fails_and_is_named() -> None:
    phi = np.random.default_rng(1).normal(0, 1, 40)
    phi[17] = -50.0
    audit = audit_signals(constructed(phi), ROWS, tolerance=0.3)
    assert audit.flagged("over-forgotten") == []  # 10 models on 40 rows can not show so small a p for a single row
    rng = np.random.default_rng(3)
    many = [signals(row) for row in rng.normal(size=(40, 40))]
    audit = audit_signals(replace(constructed(phi), never=many), ROWS)
    assert audit.flagged("over-forgotten") == ["row-17"]
    assert audit.outcome == "fail"
    assert "single rows stand out" in audit.reason


def test_an_attack_without_power_does_not_pass_anyone() -> None:
    """Rejects 'nothing found, so nothing there': rows that no model memorised."""
    audit = audit_signals(constructed(np.random.default_rng(1).normal(0, 1, 40), gap=0.3), ROWS)
    assert audit.outcome == "undecided"
    assert audit.exit_code == 3
    assert "finding none here says little" in audit.reason


def test_few_rows_do_not_pass() -> None:
    read = constructed(np.random.default_rng(1).normal(0, 1, 8), rows=8)
    audit = audit_signals(read, ROWS.at(torch.arange(8)))
    assert audit.outcome == "undecided"
    assert "too few rows to say more" in audit.reason
    assert "can not show a false positive rate of 0.01" in audit.notes[0]


def test_every_model_is_scored_by_distributions_fitted_without_it() -> None:
    """A model scored by itself looks less conspicuous than a new one, and thresholds come out too low."""
    read = constructed(np.random.default_rng(1).normal(2, 1, 40))
    lira = scored_attacks(read)[0]
    never, learned = read.phi("never"), read.phi("learned")
    others = Gaussians.fit(np.delete(never, 3, 0))
    np.testing.assert_allclose(lira.never[3], log_likelihood_ratio(never[3], Gaussians.fit(learned), others))
    rest = Gaussians.fit(np.delete(learned, 5, 0))
    assert lira.known is not None
    np.testing.assert_allclose(lira.known[5], log_likelihood_ratio(learned[5], rest, Gaussians.fit(never)))
    whole = log_likelihood_ratio(read.audited.phi, Gaussians.fit(learned), Gaussians.fit(never))
    np.testing.assert_allclose(lira.audited, whole)


def test_of_models_that_never_saw_the_rows_as_many_fail_as_chance_allows() -> None:
    """40 innocent models: the false positive rate is kept on average, and few are failed."""
    rng = np.random.default_rng(0)
    hits, failed = [], 0
    for _ in range(40):
        phis = rng.normal(size=(11, 20))
        learned = [signals(row) for row in rng.normal(6, 1, size=(4, 20))]
        read = Read(signals(phis[0]), [signals(row) for row in phis[1:]], learned, [])
        audit = audit_signals(read, ROWS.at(torch.arange(20)))
        hits.append(line(audit, "lira-offline")["tpr"])
        failed += audit.outcome == "fail"
    assert np.mean(hits) == pytest.approx(0.01, abs=0.008)
    assert failed <= stats.binom.ppf(0.999, 40, 0.05)


def test_u_lira_and_epsilon_take_models_that_learned_and_unlearned() -> None:
    read = constructed(np.random.default_rng(1).normal(2, 1, 40), unlearned=True)
    audit = audit_signals(read, ROWS)
    assert line(audit, "u-lira")["auc"] > 0.85
    assert line(audit, "u-lira", "unlearned")["rows"] == 400
    assert set(audit.epsilon) == {"learned", "unlearned"}
    assert audit.epsilon["unlearned"]["models"] == [10, 10]
    assert audit.epsilon["learned"]["median"] == audit.epsilon["learned"]["cap"]
    assert audit.epsilon["unlearned"]["median"] > audit.epsilon["unlearned"]["by_chance"]
    without = audit_signals(constructed(read.audited.phi), ROWS)
    assert "no models learned and unlearned" in without.notes[0]
    assert {row["u_lira"] for row in without.rows} == {None}


def test_the_most_memorised_rows_are_chosen_by_shadow_models_alone() -> None:
    read = constructed(np.zeros(40))
    learned = [replace(one, phi=one.phi + np.where(np.arange(40) < 10, 9.0, 0.0)) for one in read.learned]
    phi = np.where(np.arange(40) < 10, 15.0, 0.0)
    audit = audit_signals(replace(read, audited=signals(phi), learned=learned), ROWS)
    assert [row["id"] for row in audit.rows if row["memorised"]] == [f"row-{i}" for i in range(10)]
    assert line(audit, "lira", group="memorised")["tpr"] == 1
    assert line(audit, "lira")["tpr"] == 0.25


def test_signals_against_autograd() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    rows = Rows.from_tensors(torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0]))
    found = read_signals(model, rows)
    for i in range(5):
        gradient = loss_gradient(model, rows.at(torch.tensor([i])))
        assert found.gradient_norm[i] == pytest.approx(sum(float(g.square().sum()) for g in gradient.values()) ** 0.5)
        p = model(rows[i][0][None]).softmax(1)[0, rows.labels[i]].item()
        assert found.phi[i] == pytest.approx(np.log(p / (1 - p)))
        assert found.loss[i] == pytest.approx(-np.log(p))


@dataclass(frozen=True)
class Trained:
    edit: Edit
    shadows: Shadows
    unseen: tuple[nn.Module, ...]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Digits with wrong labels learnt by heart, 24 of them removed; reduced case of ``benchmarks.membership``."""
    torch.set_num_threads(1)
    rows = load_data("digits")
    rows = symmetric_noise(rows.at(torch.arange(300)), rate=0.1, seed=0)
    wrong = [row for row, a, b in zip(rows.ids, rows.labels, rows.truth, strict=True) if a != b][:24]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = build_model("mlp", inputs=64, classes=10, widths=[32])
    folder = tmp_path_factory.mktemp("audited")
    settings = TrainSettings(epochs=25, batch_size=50, lr=0.1)
    model, record = unlearn.train(start, rows, settings, seed=1, folder=folder, snapshot_epochs=(0, 10, 20))
    edit = unlearn.remove(model, rows, wrong, record=record, budget=15)
    counts = {"never": 11, "learned": 6, "unlearned": 3}
    shadows = train_shadows(model, rows, edit.changes, record, counts=counts, repair=same_edit(edit))
    return Trained(edit, Shadows(shadows.never[:8], shadows.learned, shadows.unlearned), tuple(shadows.never[8:]))


def test_bar_models_that_never_saw_the_rows(trained: Trained) -> None:
    """TPR agrees with FPR within its interval, on either side; the full case is ``benchmarks.membership``."""
    for model in trained.unseen:
        audit = unlearn.membership_audit(replace(trained.edit, model=model), shadows=trained.shadows)
        assert audit.outcome != "fail"
        for attack in ("lira", "lira-offline", "less-confident"):
            found = line(audit, attack)
            assert found["lower"] <= found["fpr"] <= found["upper"], (attack, found)


def test_bar_the_unedited_model_is_found_and_the_edit_less_so(trained: Trained) -> None:
    unedited = unlearn.membership_audit(
        trained.edit.original, trained.edit.data, trained.edit.changes.ids, shadows=trained.shadows
    )
    assert unedited.outcome == "fail"
    assert line(unedited, "lira")["lower"] > 0.3
    assert line(unedited, "lira", "learned")["tpr"] > 0.8
    assert len(unedited.flagged("still remembered")) > 12
    edited = unlearn.membership_audit(trained.edit, shadows=trained.shadows)
    assert line(edited, "lira-offline")["auc"] < line(unedited, "lira-offline")["auc"]
    assert len(edited.flagged("still remembered")) < len(unedited.flagged("still remembered"))
    assert line(edited, "u-lira", "unlearned")["rows"] == 3 * 24


def test_bar_over_forgotten_rows_are_flagged(trained: Trained) -> None:
    model = copy.deepcopy(trained.edit.model)
    inputs, labels = trained.edit.data.only(trained.edit.changes.ids).batch(torch.arange(24))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(20):
        optimizer.zero_grad()
        (-nn.functional.cross_entropy(model(inputs), labels)).backward()
        optimizer.step()
    audit = unlearn.membership_audit(replace(trained.edit, model=model), shadows=trained.shadows)
    assert audit.outcome == "fail"
    assert len(audit.flagged("over-forgotten")) > 12
    assert "over-forgotten" in audit.reason


def test_the_same_audit_twice_is_the_same_text_and_touches_nothing(trained: Trained) -> None:
    state, weights = torch.random.get_rng_state(), copy.deepcopy(trained.edit.model.state_dict())
    one, two = (unlearn.membership_audit(trained.edit, shadows=trained.shadows).to_json() for _ in range(2))
    assert one == two
    assert json.loads(one)["format"] == 1
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, weights[name]) for name, value in trained.edit.model.state_dict().items())


def test_some_of_the_changed_rows_and_users_own_models(trained: Trained) -> None:
    some = trained.edit.changes.ids[3:9]
    retrains = train_references(
        trained.edit.original, trained.edit.edited_data, trained.edit.record, count=3
    ).independent
    audit = unlearn.membership_audit(trained.edit, ids=some, shadows=Shadows(retrains, trained.shadows.learned))
    assert [row["id"] for row in audit.rows] == list(some)
    assert audit.models == {"never": 3, "learned": 6, "unlearned": 0}


def test_bad_input(trained: Trained) -> None:
    edit, model = trained.edit, trained.edit.original
    kept = next(row for row in edit.data.ids if row not in edit.changes.ids)
    with pytest.raises(InputError, match=f"1 rows were not changed by the edit: '{kept}'"):
        unlearn.membership_audit(edit, ids=[kept])
    with pytest.raises(InputError, match="pass data and ids, or an edit"):
        unlearn.membership_audit(model, edit.data)
    with pytest.raises(RowNotFoundError, match="'nobody'"):
        unlearn.membership_audit(model, edit.data, ["nobody"])
    with pytest.raises(InputError, match="shadows is 5; give at least 6: 3 with the rows, 3 without"):
        unlearn.membership_audit(edit, shadows=5)
    with pytest.raises(InputError, match=r"tolerance is 1; give a rate above 0 and below 1"):
        unlearn.membership_audit(edit, shadows=trained.shadows, tolerance=1)
    with pytest.raises(InputError, match="fpr is 0; give a false positive rate"):
        unlearn.membership_audit(edit, shadows=trained.shadows, fpr=0)
    with pytest.raises(InputError, match="an edit of the kind 'gif-kfac' can not be repeated here"):
        same_edit(replace(edit, method="gif-kfac"))
    numbers = Rows.from_tensors(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(InputError, match="the audit compares class probabilities, and data has none"):
        unlearn.membership_audit(model, numbers, ["1"], shadows=trained.shadows)


def test_audit_of_a_run(unlearn: Callable[..., tuple[int, str, str]], run_copy: Path) -> None:
    """Models that the verdict trained are not trained again; a second audit trains nothing."""
    code, out, err = unlearn("audit", run_copy, "--shadows", 6, "--unlearned", 0)
    assert code in (0, 1, 3)
    assert "shadow models: 4 retrains of 5 training epochs, 20 in all; 2 were finished before" in err
    assert max(len(printed) for printed in out.splitlines() if not printed.startswith("report: ")) <= 80
    facts = json.loads((run_copy / "audit.json").read_text())
    assert f"audit: {facts['outcome'].upper()}. " in out
    assert [one["model"] for one in facts["beside"]] == ["unedited", "fine-tuned 3", "replayed 3"]
    shown = json.loads((run_copy / "report.json").read_text())
    assert (shown["audit"]["table"], shown["audit"]["rows"]) == (facts["table"], len(facts["rows"]))
    assert shown["verdict"]["outcome"] == json.loads((run_copy / "verdict.json").read_text())["outcome"]
    assert facts["reason"] in html.unescape((run_copy / "report.html").read_text())
    assert code == {"pass": 0, "fail": 1, "undecided": 3}[facts["outcome"]]
    again, out, err = unlearn("audit", run_copy, "--shadows", 6, "--unlearned", 0, "--json")
    assert (again, json.loads(out)) == (code, facts)
    assert "nothing to train; 6 retrains were finished before" in err


def test_models_beside_the_edit_are_attacked_alike(trained: Trained) -> None:
    """Rejects rivals that are scored by U-LiRA's models, by their own rows, or under another's name."""
    edit = trained.edit
    audit = unlearn.membership_audit(edit, shadows=trained.shadows, rivals={"unseen": trained.unseen[0]})
    alone = {
        "unedited": unlearn.membership_audit(edit.original, edit.data, edit.changes.ids, shadows=trained.shadows),
        "unseen": unlearn.membership_audit(replace(edit, model=trained.unseen[0]), shadows=trained.shadows),
    }
    assert [one["model"] for one in audit.beside] == list(alone)
    for one in audit.beside:
        other = alone[one["model"]]
        wanted = [row for row in other.table if row["models"] == "audited" and row["attack"] != "u-lira"]
        assert one["table"] == wanted
        assert one["remembered"] == len(other.flagged("still remembered"))
        assert one["over_forgotten"] == len(other.flagged("over-forgotten"))
    assert audit.beside[0]["outcome"] == "fail"
    assert audit.beside[0]["remembered"] > audit.to_dict()["remembered"]


def test_changes_of_labels_are_audited_at_the_old_label(trained: Trained) -> None:
    data = trained.edit.data
    row = data.ids[0]
    old = int(data.labels[0])
    edit = replace(trained.edit, changes=Changes(relabelled={row: (old + 1) % 10}))
    audit = unlearn.membership_audit(edit, shadows=trained.shadows)
    assert (audit.rows[0]["id"], audit.rows[0]["label"]) == (row, old)
