"""verify(): the verdict on known good and known bad models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import unlearn
from unlearn.data import Rows
from unlearn.errors import CheckpointError, InputError, RecordError, RowNotFoundError
from unlearn.models import build_model
from unlearn.predict import predict
from unlearn.repair import Changes, Cost, Edit
from unlearn.tasks import phi
from unlearn.training import TrainingRecord, TrainSettings
from unlearn.verification import compare_models, verify
from unlearn.verification.references import References, train_references

K = 5
FLIPPED = 40
COUNT = 400


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Rows, TrainingRecord, References, nn.Module]:
    """A model that has learnt 40 wrong labels, K retrains on the right ones, and one more as a perfect edit."""
    rows = unlearn.symmetric_noise(unlearn.load_data("digits").at(torch.arange(COUNT)), rate=FLIPPED / COUNT, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = build_model("mlp", inputs=64, classes=10, widths=[32])
    settings = TrainSettings(epochs=25, batch_size=50, lr=0.1)
    folder = tmp_path_factory.mktemp("verify")
    model, record = unlearn.train(start, rows, settings, seed=1, folder=folder, snapshot_epochs=(0,))
    found = train_references(model, right(rows).apply(rows), record, count=K + 1)
    return model, rows, record, References(found.coupled, found.independent[:K], K + 1), found.independent[K]


def right(rows: Rows) -> Changes:
    assert rows.truth is not None
    return Changes((), {rows.ids[i]: int(rows.truth[i]) for i in (rows.labels != rows.truth).nonzero().flatten()})


def as_edit(case: tuple[nn.Module, Rows, TrainingRecord, References, nn.Module], edited: nn.Module) -> Edit:
    model, rows, record, _, _ = case
    return Edit(edited, model, "by hand", right(rows), rows, record, (), Cost(), {}, {})


def holdout() -> Rows:
    return unlearn.load_data("digits", "test")


Case = tuple[nn.Module, Rows, TrainingRecord, References, nn.Module]


def test_a_retrain_passes_as_an_edit(case: Case) -> None:
    verdict = verify(as_edit(case, case[4]), test=holdout(), references=case[3])
    assert verdict.outcome == "pass", str(verdict)
    assert [row["group"] for row in verdict.table] == ["changed", "kept", "test"]
    assert all(0.5 < row["r"] < 1.5 for row in verdict.table)
    assert [row["rows"] for row in verdict.table] == [FLIPPED, COUNT - FLIPPED, 359]


def test_the_unedited_model_fails_on_the_flipped_rows(case: Case) -> None:
    verdict = verify(as_edit(case, case[0]), test=holdout(), references=case[3])
    assert verdict.outcome == "fail", str(verdict)
    assert "changed" in verdict.reason
    changed = verdict.table[0]
    assert changed["lower"] > 1.5
    assert changed["r"] == changed["unedited_r"]


def test_r_is_by_phi_at_the_old_labels(case: Case) -> None:
    """At the new labels the ratio on the changed rows would be another one."""
    model, rows, _, references, _ = case
    changed = rows.only(right(rows).ids)
    found = verify(as_edit(case, model), test=holdout(), references=references).table[0]["r"]

    def ratio(labels: torch.Tensor) -> float:
        values = [phi(predict(m, changed).double(), labels) for m in (model, *references.independent)]
        to = torch.stack([(values[0] - v).square().mean() for v in values[1:]]).mean()
        between = torch.stack([(a - b).square().mean() for i, a in enumerate(values[1:]) for b in values[1 : i + 1]])
        return float((to / between.mean()).sqrt())

    assert found == pytest.approx(ratio(changed.labels))
    assert changed.truth is not None
    assert abs(found - ratio(changed.truth)) > 0.01 * found


def test_measures_hold_all_groups_models_and_rivals(case: Case) -> None:
    model, _, _, references, retrain = case
    rivals = {"fine-tuned": retrain, "replayed": model}
    verdict = verify(as_edit(case, retrain), test=holdout(), references=references, rivals=rivals)
    got = {(row["group"], row["measure"], row["model"]) for row in verdict.measures}
    models = ("unedited", "edited", "fine-tuned", "replayed")
    for group in ("changed", "kept", "test"):
        for measure in (
            "phi_error", "kl", "jensen_shannon", "agreement", "change_cosine", "cka", "accuracy", "loss", "phi",
            "calibration",
        ):  # fmt: skip
            assert {(group, measure, name) for name in models} <= got
        assert {(group, "accuracy", name) for name in ("coupled", "independent")} <= got
    by = {(row["group"], row["measure"], row["model"]): row for row in verdict.measures}
    assert by["changed", "kl", "edited"]["reference"] == "coupled"
    assert by["changed", "kl", "edited"]["value"] == by["changed", "kl", "fine-tuned"]["value"]
    assert by["test", "kl", "unedited"]["value"] == by["test", "kl", "replayed"]["value"]
    json.loads(verdict.to_json())


def test_accuracy_of_changed_rows_is_at_the_new_labels(case: Case) -> None:
    _, rows, _, references, retrain = case
    changed = rows.only(right(rows).ids)
    assert changed.truth is not None

    def accuracy(edit: Edit, group: str, name: str) -> float:
        table = verify(edit, test=holdout(), references=references).measures
        return next(r["value"] for r in table if (r["group"], r["measure"], r["model"]) == (group, "accuracy", name))

    predicted = predict(retrain, changed).argmax(1)
    relabelled = as_edit(case, retrain)
    assert accuracy(relabelled, "changed", "edited") == pytest.approx(
        float((predicted == changed.truth).float().mean())
    )
    assert accuracy(relabelled, "changed", "edited") > 0.8
    assert accuracy(relabelled, "changed", "unedited") < accuracy(relabelled, "changed", "edited")
    removed = replace(relabelled, changes=Changes(changed.ids))  # no other label than the old one
    assert accuracy(removed, "changed", "edited") == pytest.approx(float((predicted == changed.labels).float().mean()))
    kept = rows.without(changed.ids)
    wanted = float((predict(retrain, kept).argmax(1) == kept.labels).float().mean())
    assert accuracy(relabelled, "kept", "edited") == pytest.approx(wanted)
    test = holdout()
    wanted = float((predict(retrain, test).argmax(1) == test.labels).float().mean())
    assert accuracy(relabelled, "test", "edited") == pytest.approx(wanted)


def test_without_independent_retrains_it_is_undecided(case: Case) -> None:
    verdict = verify(as_edit(case, case[4]), test=holdout(), references=0)
    assert (verdict.outcome, verdict.exit_code, verdict.table) == ("undecided", 3, [])
    assert "no independent retrain" in verdict.reason
    assert {row["reference"] for row in verdict.measures} == {"coupled", "labels"}
    assert all(row["floor"] is None for row in verdict.measures)
    foreign = replace(as_edit(case, case[4]), record=None)
    unknown = verify(foreign, test=holdout(), references=0)
    assert unknown.outcome == "undecided"
    assert unknown.notes == ("foreign weights have no training record, so there is no coupled retrain",)
    assert unknown.cost == {"edit": 0.0, "retrain": None, "ratio": None}
    with pytest.raises(RecordError, match=r"pass train=\(data, seed\) -> model"):
        verify(foreign, test=holdout(), references=3)


def test_references_are_trained_on_the_changed_rows_and_kept(tmp_path: Path) -> None:
    rows = unlearn.load_data("digits").at(torch.arange(100))
    start = build_model("mlp", inputs=64, classes=10, widths=[8])
    settings = TrainSettings(epochs=2, batch_size=50, lr=0.05)
    model, record = unlearn.train(start, rows, settings, folder=tmp_path / "run", snapshot_epochs=(0, 1))
    edit = unlearn.remove(model, rows, rows.ids[:5], record=record, budget=1)
    seen: list[tuple[str, ...]] = []

    def train(data: Rows, seed: int) -> nn.Module:
        seen.append(data.ids)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return unlearn.train(build_model("mlp", inputs=64, classes=10, widths=[8]), data, settings, seed=seed)[0]

    one = verify(edit, test=holdout(), references=3, train=train, folder=tmp_path / "references")
    assert seen == [rows.ids[5:]] * 3
    two = verify(edit, test=holdout(), references=3, train=train, folder=tmp_path / "references")
    assert len(seen) == 3
    assert one.to_dict() == two.to_dict()


def test_all_rows_may_be_changed() -> None:
    """There is then no kept row to measure."""
    rows = Rows.from_tensors(torch.eye(4), torch.tensor([0, 1, 0, 1]))
    edit = unlearn.relabel(nn.Linear(4, 2), rows, {"0": 1, "1": 0, "2": 1, "3": 0}, damping=0.1, weight_decay=0.1)

    def train(data: Rows, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Linear(4, 2)

    verdict = verify(edit, test=rows, references=3, train=train)
    assert [row["group"] for row in verdict.table] == ["changed", "test"]


def test_tasks_without_classes_are_refused() -> None:
    rows = Rows.from_tensors(torch.eye(4), torch.rand(4))
    edit = unlearn.remove(nn.Linear(4, 1), rows, ["0"], damping=0.1, weight_decay=0.1, task="regression")
    with pytest.raises(InputError, match="compares class probabilities, and data has none"):
        verify(edit, test=rows, references=0)


def test_one_reference_is_undecided(case: Case) -> None:
    references = replace(case[3], independent=case[3].independent[:1])
    verdict = verify(as_edit(case, case[0]), test=holdout(), references=references)
    assert (verdict.outcome, verdict.exit_code) == ("undecided", 3)
    assert "one reference has no spread" in verdict.reason


def test_every_row_stands_beside_the_retrains_and_flipped_ones_are_remembered(case: Case) -> None:
    model, rows, _, references, retrain = case
    verdict = verify(as_edit(case, model), test=holdout(), references=references)
    assert {name: len(table) for name, table in verdict.rows.items()} == {
        "changed": FLIPPED, "kept": COUNT - FLIPPED, "test": 359
    }  # fmt: skip
    assert set(verdict.rows["changed"].ids) == set(right(rows).ids)
    assert len(verdict.remembered) > 0.8 * FLIPPED
    first = verdict.remembered[0]
    assert first["label"] == int(rows.labels[rows.ids.index(first["id"])])  # the old one
    assert first["phi_edited"] > first["phi_retrained"] + 2 * first["spread"]
    forgotten = verify(as_edit(case, retrain), test=holdout(), references=references)
    assert len(forgotten.remembered) < 0.2 * FLIPPED
    assert verdict.from_dict(json.loads(verdict.to_json())) == verdict


def test_classes_named_groups_weights_and_cost(case: Case) -> None:
    model, rows, _, references, retrain = case
    test = holdout()
    named = dict.fromkeys(test.ids[:50], "first") | {rows.ids[0]: "second"}
    edit = replace(as_edit(case, retrain), cost=Cost(replay=5.0))
    verdict = verify(edit, test=test, references=references, groups=named)
    assert {(row["group"], row["part"]) for row in verdict.subgroups if row["kind"] == "named"} >= {("test", "first")}
    first = next(row for row in verdict.subgroups if row["part"] == "first")
    wanted = float((predict(retrain, test.at(torch.arange(50))).argmax(1) == test.labels[:50]).float().mean())
    assert first["edited"] == pytest.approx(wanted)
    assert {row["part"] for row in verdict.subgroups if row["group"] == "test" and row["kind"] == "class"} == {
        str(c) for c in range(10)
    }
    weights = {row["model"]: row for row in verdict.weights}
    flat = [torch.cat([p.detach().flatten().double() for p in m.parameters()]) for m in (model, references.coupled)]
    assert weights["unedited"]["value"] == pytest.approx(float((flat[0] - flat[1]).norm()))
    assert verdict.cost == pytest.approx({"edit": 5.0, "retrain": 25.0, "ratio": 0.2})
    with pytest.raises(RowNotFoundError, match="neither training nor test rows: 'nobody'"):
        verify(edit, test=test, references=references, groups={"nobody": "first"})


def test_the_models_of_any_training_are_compared_as_retrains_are(case: Case, tmp_path: Path) -> None:
    """With the same models on the same rows r is that of the verdict; files and modules may be mixed."""
    _, rows, _, references, retrain = case
    test = holdout()
    others = list(references.independent)
    unlearn.save_checkpoint(tmp_path / "a.safetensors", retrain)
    unlearn.save_checkpoint(tmp_path / "b.safetensors", others[0])
    mixed = [tmp_path / "b.safetensors", *others[1:]]
    architecture = build_model("mlp", inputs=64, classes=10, widths=[32])
    found = compare_models(tmp_path / "a.safetensors", mixed, test, architecture=architecture)
    by_edit = verify(as_edit(case, retrain), test=test, references=references).table[2]
    assert found.outcome == "pass"
    row = found.table[0]
    assert (row["group"], row["r"], row["rows"], row["references"]) == ("given", by_edit["r"], 359, K)
    assert row["unedited_r"] is None
    assert "not needed" not in found.reason
    flipped = rows.only(right(rows).ids)
    assert compare_models(case[0], others, flipped).outcome == "fail"
    one = compare_models(case[0], others[:1], flipped)
    assert (one.outcome, one.exit_code) == ("undecided", 3)
    kl = next(row for row in one.measures if (row["measure"], row["model"]) == ("kl", "edited"))
    assert kl["value"] > 0
    assert kl["floor"] is None
    with pytest.raises(CheckpointError, match="does not say how to build its model"):
        compare_models(tmp_path / "a.safetensors", mixed, test)
    with pytest.raises(InputError, match="no model to compare with"):
        compare_models(retrain, [], test)
    with pytest.raises(InputError, match="has none"):
        compare_models(nn.Linear(4, 1), others, (torch.eye(4), torch.rand(4)))
