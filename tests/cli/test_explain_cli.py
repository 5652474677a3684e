"""``unlearn explain``: the table, the page, JSON, and bad input in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unlearn.detect import influence
from unlearn.pipeline import Run, run_stages
from unlearn.pipeline.explain import explain_run
from unlearn.predict import predict
from unlearn.recipe import load_recipe

Unlearn = Callable[..., tuple[int, str, str]]

TABLE = """
name = "table"
description = "A run on a table."

[data]
source = "breast-cancer"

[model]
name = "mlp"
options = { inputs = 30, classes = 2, widths = [8] }

[train]
epochs = 3
batch_size = 64

[detect]
method = "loss"

[repair]
action = "remove"
"""


def test_a_test_row_is_explained_within_80_columns_and_on_a_page(unlearn: Unlearn, run_copy: Path) -> None:
    run = Run.open(run_copy)
    query = run.test.ids[3]
    code, out, _ = unlearn("explain", run_copy, "--query", query, "--top", 5)
    assert code == 0
    lines = out.splitlines()
    assert max(len(line) for line in lines if not line.startswith("page: ")) <= 80
    assert f"{query} (test row): labelled {int(run.test.labels[3])}, predicted" in lines[0]
    assert out.index("most helpful training rows") < out.index("most harmful training rows")
    assert f"-influence / {len(run.data)}" in " ".join(lines)
    assert lines[-1] == f"page: {run_copy / 'explain.html'}"
    page = (run_copy / "explain.html").read_text()
    assert page.count("data:image/png") == 11


def test_json_has_the_influence_at_the_damping_of_the_horizon(unlearn: Unlearn, run_copy: Path) -> None:
    # rejects the default damping, missing weight decay, and rows of another query
    run = Run.open(run_copy)
    model, record = run.original
    code, out, _ = unlearn("explain", run_copy, "--query", run.test.ids[3], "--query", run.test.ids[1], "--json")
    assert code == 0
    facts = json.loads(out)
    assert [one["query"] for one in facts["explanations"]] == [run.test.ids[3], run.test.ids[1]]
    damping = 2 / record.horizon()
    queries = run.test.only([run.test.ids[3], run.test.ids[1]])
    matrix = influence(
        model, run.data, queries, curvature=run.curvature(), damping=damping, weight_decay=record.weight_decay
    )
    logits = predict(model, queries)
    for q, one in enumerate(facts["explanations"]):
        assert one["options"]["damping"] == damping
        assert one["predicted"] == int(logits[q].argmax())
        assert one["probability"] == pytest.approx(float(logits[q].softmax(0).max()))
        order = matrix[q].argsort(stable=True)
        assert [row["id"] for row in one["helpful"]] == [run.data.ids[i] for i in order[:8]]
        assert [row["id"] for row in one["harmful"]] == [run.data.ids[i] for i in order.flip(0)[:8]]
        assert one["harmful"][0]["influence"] == pytest.approx(float(matrix[q].max()), rel=1e-5)
        assert one["harmful"][0]["influence"] > 0 > one["helpful"][0]["influence"]
        assert one["harmful"][0]["loss_change"] == -one["harmful"][0]["influence"] / len(run.data)
        for row in (*one["helpful"], *one["harmful"]):
            (at,) = run.data.positions([row["id"]]).tolist()
            assert (row["given"], row["truth"]) == (int(run.data.labels[at]), int(run.data.truth[at]))


def test_suggestions_are_of_rows_whose_label_lost(run_copy: Path) -> None:
    run = Run.open(run_copy)
    mean = dict(zip(run.trajectory.ids, run.trajectory.logits, strict=True))
    margin = dict(zip(run.trajectory.ids, run.trajectory.margin.tolist(), strict=True))
    facts, _ = explain_run(run, run.test.ids[:20], top=8)
    rows = [row for one in facts["explanations"] for row in (*one["helpful"], *one["harmful"])]
    assert any(row["suggested"] is not None for row in rows)
    for row in rows:
        others = mean[row["id"]].clone()
        others[row["given"]] = float("-inf")
        assert row["suggested"] == (int(others.argmax()) if margin[row["id"]] < 0 else None)


def test_queries_keep_their_order_and_say_where_they_are_from(run_copy: Path) -> None:
    run = Run.open(run_copy)
    queries = [run.test.ids[5], run.data.ids[7], run.test.ids[2], run.data.ids[3]]
    facts, images = explain_run(run, queries, top=1)
    assert [one["query"] for one in facts["explanations"]] == queries
    assert [one["place"] for one in facts["explanations"]] == ["test", "training", "test", "training"]
    for rows in (run.test, run.data):
        for row in images:
            if row in rows:
                assert (images[row] == rows[int(rows.positions([row]))][0].numpy()).all()
    assert set(images) >= set(queries)


def test_a_training_row_is_explained_without_itself(unlearn: Unlearn, run_copy: Path) -> None:
    run = Run.open(run_copy)
    query = run.data.ids[0]
    code, out, _ = unlearn("explain", run_copy, "--query", query, "--label", "predicted", "--json")
    assert code == 0
    (one,) = json.loads(out)["explanations"]
    assert one["place"] == "training"
    assert one["itself"]["id"] == query
    assert query not in [row["id"] for row in (*one["helpful"], *one["harmful"])]
    code, out, _ = unlearn("explain", run_copy, "--query", query)
    assert "The row itself is a training row" in out
    assert max(len(line) for line in out.splitlines() if not line.startswith("page: ")) <= 80


def test_the_same_command_writes_the_same_bytes(unlearn: Unlearn, run_copy: Path, tmp_path: Path) -> None:
    words = ("explain", run_copy, "--query", Run.open(run_copy).test.ids[0])
    outs, pages = [], []
    for name in ("a.html", "b.html"):
        outs.append(unlearn(*words, "--out", tmp_path / name)[1].replace(name, "page"))
        pages.append((tmp_path / name).read_bytes())
        shutil.rmtree(run_copy / "curvature")  # fitted anew the second time
    assert outs[0] == outs[1]
    assert pages[0] == pages[1]
    assert not (run_copy / "explain.html").exists()


def test_nothing_is_trained_and_nothing_else_is_written(unlearn: Unlearn, run_copy: Path) -> None:
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    query = Run.open(run_copy).test.ids[0]
    assert unlearn("explain", run_copy, "--query", query)[0] == 0
    after = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    assert after.pop(run_copy / "explain.html")
    assert {path: data for path, data in after.items() if path.parent.name != "curvature"} == {
        path: data for path, data in before.items() if path.parent.name != "curvature"
    }
    (run_copy / "original.safetensors").unlink()
    code, _, err = unlearn("explain", run_copy, "--query", query)
    assert code == 2
    assert "run the stage 'train' first" in err
    assert not (run_copy / "original.safetensors").exists()


def test_rows_of_a_table_are_shown_as_text(unlearn: Unlearn, tmp_path: Path) -> None:
    (tmp_path / "table.toml").write_text(TABLE)
    run = Run.create(tmp_path / "run", load_recipe(str(tmp_path / "table.toml")))
    run_stages(run, until="train")
    code, out, _ = unlearn("explain", tmp_path / "run", "--query", run.test.ids[0], "--json")
    assert code == 0
    facts = json.loads(out)
    assert "deviations from the training mean" in facts["text_shows"]
    row = facts["explanations"][0]["harmful"][0]
    (at,) = run.data.positions([row["id"]]).tolist()
    x, _ = run.data.batch(torch.arange(len(run.data)))
    z = (x[at] - x.mean(0)) / x.std(0, correction=0)
    from sklearn.datasets import load_breast_cancer

    most = int(z.abs().argmax())
    assert row["text"].split(", ")[0] == f"{load_breast_cancer().feature_names[most]} {z[most]:+.1f}"
    assert row["truth"] is None
    page = (tmp_path / "run" / "explain.html").read_text()
    assert "data:image/png" not in page
    assert row["text"] in page
    code, out, _ = unlearn("explain", tmp_path / "run", "--query", run.test.ids[0])
    assert max(len(line) for line in out.splitlines() if not line.startswith("page: ")) <= 80
    assert " true " not in out


BAD = {
    "unknown id": (
        ["RUN", "--query", "digit-00042"],
        "neither a test row nor a training row of digits; near: digits-0042",
    ),
    "nothing near": (["RUN", "--query", "%%%"], "neither a test row nor a training row of digits; its ids look like"),
    "twice": (["RUN", "--query", "ID", "--query", "ID"], "each once"),
    "none": (["RUN"], "--query"),
    "no rows": (["RUN", "--query", "ID", "--top", "0"], "--top"),
    "unknown label": (["RUN", "--query", "ID", "--label", "true"], "--label"),
    "no run": (["NOWHERE", "--query", "ID"], "no run"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_changes_nothing(
    unlearn: Unlearn, case: str, tiny_run: Path, tmp_path: Path
) -> None:
    words, message = BAD[case]
    names = {"RUN": str(tiny_run), "NOWHERE": str(tmp_path / "no"), "ID": Run.open(tiny_run).test.ids[0]}
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    code, out, err = unlearn("explain", *(names.get(word, word) for word in words))
    assert code == 2
    assert message in err
    assert "Traceback" not in err + out
    assert len([line for line in err.splitlines() if line.startswith(("error:", "Error:"))]) == 1
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before


def test_a_page_that_can_not_be_written_is_named(unlearn: Unlearn, run_copy: Path, tmp_path: Path) -> None:
    query = Run.open(run_copy).test.ids[0]
    code, _, err = unlearn("explain", run_copy, "--query", query, "--out", tmp_path / "no" / "page.html")
    assert code == 2
    assert "its folder does not exist" in err
