"""``flagged.json``: what is written when rows are detected, for a person to judge them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unlearn import detect
from unlearn.pipeline import Run, run_stages
from unlearn.pipeline.flagged import read_flagged
from unlearn.pipeline.run import horizon_damping
from unlearn.predict import predict
from unlearn.recipe import load_recipe, parse_recipe


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> Run:
    return Run.open(tiny_run)


def test_the_flagged_rows_are_those_acted_on_with_their_labels(run: Run) -> None:
    found, acted = read_flagged(run), run.read("detection.json", "detect")["acted"]
    rows = found["rows"]
    assert [row["id"] for row in rows] == acted
    path = run.folder / "scores-margin-trajectory.csv"
    for name, key in (("suggested", lambda row: row["suggested"][0]), ("given", lambda row: row["given"])):
        column = detect.read_column(path, name)
        assert [int(column[row["id"]]) for row in rows] == [key(row) for row in rows]
    assert [row["score"] for row in rows] == [value for _, value in detect.Scores.load(path).top(len(rows))]
    logits = predict(run.original[0], run.data.only(acted))
    assert [row["predicted"] for row in rows] == logits.argmax(1).tolist()
    torch.testing.assert_close(torch.tensor([row["probability"] for row in rows]), logits.softmax(1).max(1).values)
    for row in rows:
        assert len({row["given"], *row["suggested"]}) == 4


def test_neighbours_are_the_ends_of_the_influence_through_the_last_layer(run: Run) -> None:
    """Against the gradients of the last layer row by row: rejects a wrong sign, other layers, and the row itself."""
    facts = read_flagged(run)
    model, record = run.original
    block = run.curvature().blocks["3"]
    added = record.weight_decay + horizon_damping(record)
    inputs, labels = run.data.batch(torch.arange(len(run.data)))
    with torch.no_grad():
        features = model[:3](inputs)
        errors = model[3](features).softmax(1) - torch.nn.functional.one_hot(labels, 10)
    features = torch.cat([features, torch.ones(len(features), 1)], 1)
    gradients = torch.einsum("bo,bi->boi", errors, features).double()
    rotated = block.basis.outputs[0].double().T @ gradients @ block.basis.inputs[0].double()
    whitened = (rotated / (block.eigenvalues[0].double() + added).sqrt()).flatten(1)
    lengths = whitened.norm(dim=1)
    for row in facts["rows"][:10]:
        at = int(run.data.positions([row["id"]]))
        pull = whitened @ whitened[at] / lengths
        pull[at] = 0.0
        for side, sign in (("alike", 1), ("against", -1)):
            values, places = (sign * pull).sort(descending=True)
            found = row[side]
            assert len(found) == 4
            assert [one["influence"] for one in found] == pytest.approx(values[:4].tolist(), rel=1e-3)
            assert [one["given"] for one in found] == [
                int(run.data.labels[int(run.data.positions([one["id"]]))]) for one in found
            ]
            clear = values[3] - values[4] > 1e-3 * values[0]
            assert not clear or {one["id"] for one in found} == {run.data.ids[int(k)] for k in places[:4]}
    assert facts["neighbours"]["layer"] == "3"
    assert facts["neighbours"]["cost_epochs"] == pytest.approx(3 + len(facts["rows"]) / len(run.data))


def test_the_truth_is_not_read_and_an_older_run_is_completed(run: Run, run_copy: Path) -> None:
    before = (run_copy / "flagged.json").read_bytes()
    (run_copy / "flagged.json").unlink()
    blind = Run.open(run_copy)
    blind.__dict__["data"] = blind.data.with_truth(None)
    read_flagged(blind)
    assert (run_copy / "flagged.json").read_bytes() == before
    assert b"truth" not in before


def test_a_recipe_without_neighbours_says_so(tiny_recipe: Path, tmp_path: Path) -> None:
    text = load_recipe(str(tiny_recipe)).text.replace(
        'beside = ["self-influence", "gif", "loss"]', "neighbours = 0\nbeside = []"
    )
    run = Run.create(tmp_path / "run", parse_recipe(text))
    run_stages(run, until="detect")
    facts = json.loads((run.folder / "flagged.json").read_text())
    assert "neighbours = 0" in facts["neighbours"]["note"]
    assert all(row["alike"] == row["against"] == [] for row in facts["rows"])
    assert not (run.folder / "curvature").exists()
