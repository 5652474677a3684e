"""Scores in shards: the same values, taken up after a kill, and refused where they belong to something else."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import shards_worker
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from unlearn.curvature import Curvature, fit_curvature
from unlearn.data import Rows
from unlearn.detect import ScoreShards, gif_scores, harm, loss, score_shards, self_influence
from unlearn.detect.shards import ROW_SCORES
from unlearn.errors import FolderError, InputError, UnlearnError

TESTS = Path(__file__).parent
SHARD, N = shards_worker.SHARD, shards_worker.ROWS


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, Rows, Curvature]:
    model, rows = shards_worker.problem()
    return model, rows, fit_curvature(model, rows)


@pytest.fixture(scope="module")
def finished(problem, tmp_path_factory) -> Path:
    model, rows, curvature = problem
    folder = tmp_path_factory.mktemp("shards") / "scores"
    score_shards("self-influence", model, rows, folder, curvature=curvature, shard_rows=SHARD, batch_size=16)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "scores"))


def again(problem, folder: Path, **options: Any) -> ScoreShards:
    model, rows, curvature = problem
    given = {"curvature": curvature, "shard_rows": SHARD, "batch_size": 16} | options
    return score_shards("self-influence", model, rows, folder, **given)


SCORES = {
    "self-influence": (self_influence, {"damping": 0.1}),
    "gif": (gif_scores, {"ratio": 0.5}),
    "harm": (harm, {"trusted": shards_worker.problem()[1].at(torch.arange(5))}),
    "loss": (loss, {}),
}


@pytest.mark.parametrize("method", SCORES)
def test_values_are_those_without_shards_bit_for_bit(problem, tmp_path, method):
    """Batches are the same where shards are whole batches; rejects a score that fits or averages over its shard."""
    (model, rows, curvature), (score, options) = problem, SCORES[method]
    if method != "loss":
        options = {**options, "curvature": curvature}
    whole = score(model, rows, batch_size=16, **options)
    shards = score_shards(method, model, rows, tmp_path / "a", shard_rows=SHARD, batch_size=16, **options)
    found = shards.scores()
    assert found.ids == tuple(whole.ids)
    assert found.values.tolist() == whole.values.tolist()
    assert (found.method, len(shards), shards.shards) == (whole.method, N, 4)
    assert [len(shard) for shard in shards] == [SHARD, SHARD, SHARD, N - 3 * SHARD]
    for k in (0, 1, SHARD + 3, N):
        assert shards.top(k) == whole.top(k)
    other = score_shards(method, model, rows, tmp_path / "b", shard_rows=7, batch_size=16, **options).scores()
    torch.testing.assert_close(torch.tensor(other.values), torch.tensor(whole.values), rtol=1e-5, atol=1e-7)


def test_equal_values_come_in_the_order_of_their_ids(tmp_path):
    """Across shards too; rejects the order in which they were met."""
    rows = Rows.from_tensors(torch.zeros(6, 2), torch.zeros(6).long(), ids=list("fbdace"), classes=2)
    shards = score_shards("loss", nn.Linear(2, 2), rows, tmp_path, shard_rows=2)
    assert [row for row, _ in shards.top(4)] == list("abcd")


def start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(TESTS.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, str(TESTS / "shards_worker.py"), str(folder), str(log)], env=environment)


def test_after_a_kill_at_most_one_shard_is_computed_again(problem, finished, tmp_path):
    """SIGKILL inside a shard; rejects a restart from the beginning, and unfinished shards that are trusted."""
    folder, log = tmp_path / "scores", tmp_path / "rows.log"
    with start(folder, log) as job:
        end = time.monotonic() + 120
        while not (folder / "part-00001.safetensors").exists():
            assert job.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(job.pid, signal.SIGKILL)
    assert job.returncode == -signal.SIGKILL
    done = sorted(path.name for path in folder.glob("part-*.safetensors"))
    assert 2 <= len(done) < 4
    assert not (folder / "finished.json").exists()
    with pytest.raises(FolderError, match=rf"not finished \({len(done)} shards are there\); make the same call again"):
        ScoreShards.open(folder)
    kept = {name: (folder / name).read_bytes() for name in done}

    first = sum(map(int, log.read_text().split()))
    with start(folder, log) as job:
        assert job.wait(120) == 0
    second = sum(map(int, log.read_text().split())) - first
    assert second == N - SHARD * len(done)
    assert 0 <= first + second - N <= SHARD
    assert all((folder / name).read_bytes() == data for name, data in kept.items())
    assert not list(folder.glob("*.part"))
    whole, resumed = (ScoreShards.open(one).scores() for one in (finished, folder))
    assert resumed.values.tolist() == whole.values.tolist()


def test_what_is_finished_is_not_computed_again(problem, folder, monkeypatch):
    @functools.wraps(self_influence)
    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setitem(ROW_SCORES, "self-influence", fails)
    assert len(again(problem, folder)) == N


OTHER = {
    "weights": lambda model, rows, curvature: (other_weights(model), rows, None),
    "data": lambda model, rows, curvature: (model, rows.relabelled({"3": 1}), curvature),
    "curvature": lambda model, rows, curvature: (model, rows, fit_curvature(model, rows, seed=1)),
}


def other_weights(model: nn.Module) -> nn.Module:
    other = shards_worker.problem()[0]
    with torch.no_grad():
        next(other.parameters()).add_(1)
    return other


@pytest.mark.parametrize("what", OTHER)
def test_another_run_is_refused(problem, folder, what):
    model, rows, curvature = OTHER[what](*problem)
    curvature = fit_curvature(model, rows) if curvature is None else curvature
    with pytest.raises(FolderError, match=f"holds scores of another run: its {what} is .* choose another folder"):
        again((model, rows, curvature), folder)


@pytest.mark.parametrize("options", [{"damping": 0.5}, {"weight_decay": 0.1}, {"batch_size": 8}, {"shard_rows": 16}])
def test_other_options_are_refused(problem, folder, options):
    with pytest.raises(FolderError, match=r"holds scores of another run: its (options|shard_rows) is"):
        again(problem, folder, **options)


def test_a_missing_shard_is_named_and_computed_alone(problem, folder):
    kept = (folder / "part-00002.safetensors").read_bytes()
    (folder / "part-00002.safetensors").unlink()
    with pytest.raises(
        FolderError, match=r"1 of 4 shards are missing .*\(part-00002.safetensors\); make the same call"
    ):
        ScoreShards.open(folder)
    again(problem, folder)
    assert (folder / "part-00002.safetensors").read_bytes() == kept


def damage(path: Path, how: str) -> None:
    if how == "cut off":
        path.write_bytes(path.read_bytes()[:-9])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "other file":
        save_file(load_file(path), path)  # without what it says of itself
    else:
        shutil.copy(path.with_name("part-00000.safetensors"), path)


@pytest.mark.parametrize("how", ["cut off", "empty", "other file", "copy"])
def test_a_damaged_or_foreign_shard_is_one_line(problem, folder, how):
    damage(folder / "part-00001.safetensors", how)
    what = "belongs to another run" if how == "copy" else "is damaged"
    for work in (lambda: ScoreShards.open(folder), lambda: again(problem, folder)):
        with pytest.raises(FolderError, match=f"part-00001.safetensors' {what}.*remove this file") as error:
            work()
        assert "\n" not in str(error.value)


def test_a_shard_of_another_run_is_refused(problem, folder, tmp_path):
    again(problem, tmp_path / "other", damping=0.5)
    shutil.copy(tmp_path / "other" / "part-00001.safetensors", folder)
    with pytest.raises(FolderError, match=r"part-00001.safetensors' belongs to another run than its manifest"):
        ScoreShards.open(folder)


BAD = {
    "no score 'margins' goes row by row": ("margins", {}),
    "would fit curvature on it alone; pass curvature=": ("self-influence", {"curvature": None}),
    "solver='cg' looks at all rows at once": ("self-influence", {"solver": "cg"}),
    "scope='data' looks at all rows at once": ("gif", {"scope": "data"}),
    "has no option 'dampening'; did you mean 'damping'": ("self-influence", {"dampening": 1}),
    "harm needs trusted rows": ("harm", {}),
    "shard_rows is 0": ("self-influence", {"shard_rows": 0}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(problem, tmp_path, message):
    (model, rows, curvature), (method, options) = problem, BAD[message]
    with pytest.raises(UnlearnError, match=message):
        score_shards(method, model, rows, tmp_path / "a", **{"curvature": curvature, **options})
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match="curvature has no meaning for loss"):
        score_shards("loss", model, rows, tmp_path / "a", curvature=curvature)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Rows that can only be read through."""

    def __init__(self, rows: Rows, changed: int | None = None) -> None:
        self.rows, self.changed = rows, changed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for k in range(len(self.rows)):
            x, y = self.rows[k]
            yield (x + 1 if k == self.changed else x), y


def hugging_face(rows: Rows) -> Any:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"x": [x.tolist() for x, _ in rows], "y": rows.labels.tolist()})
    return data.to_iterable_dataset(num_shards=3)


@pytest.mark.parametrize("make", [Stream, hugging_face, lambda rows: (rows[k] for k in range(N))])
def test_a_stream_is_scored_as_it_comes(problem, finished, tmp_path, make):
    """Rejects a stream that is read whole (a generator has one go), and rows numbered anew in each shard."""
    model, rows, curvature = problem
    found = again((model, make(rows), curvature), tmp_path / "a").scores()
    expected = ScoreShards.open(finished).scores()
    assert found.ids == expected.ids
    assert found.values.tolist() == expected.values.tolist()


def test_a_stream_is_taken_up_where_it_was_cut_off(problem, tmp_path):
    """What is done is read and compared, not scored; rejects skipping what is not looked at."""
    model, rows, curvature = problem
    expected = again((model, Stream(rows), curvature), tmp_path / "a").scores()
    for name in ("part-00002.safetensors", "finished.json"):
        (tmp_path / "a" / name).unlink()
    with pytest.raises(FolderError, match=r"part-00001.safetensors' scores other rows than the stream now gives"):
        again((model, Stream(rows, changed=SHARD), curvature), tmp_path / "a")
    assert again((model, Stream(rows), curvature), tmp_path / "a").scores().values.tolist() == expected.values.tolist()
    with pytest.raises(FolderError, match="behind the last, 64: the stream is shorter than it was"):
        again((model, Stream(rows.at(torch.arange(2 * SHARD))), curvature), tmp_path / "a")
    with pytest.raises(InputError, match="empty stream"):
        score_shards("loss", model, iter([]), tmp_path / "b")


def test_columns_of_a_stream(problem, tmp_path):
    model, rows, _ = problem
    items = [{"name": f"r{k}", "a": x, "b": y} for k, (x, y) in enumerate(rows)]
    columns = {"input_column": "a", "label_column": "b", "id_column": "name"}
    found = score_shards("loss", model, iter(items), tmp_path, shard_rows=SHARD, columns=columns).scores()
    assert found.ids[-1] == f"r{N - 1}"
    torch.testing.assert_close(torch.tensor(found.values), torch.tensor(loss(model, rows).values))


def test_a_run_of_many_rows_is_scored_in_shards(run_copy, unlearn, monkeypatch):
    """The detect command has the same scores, and leaves the shards."""
    (run_copy / "scores-self-influence.csv").unlink(missing_ok=True)
    monkeypatch.setattr("unlearn.pipeline.detectors.SHARD_ROWS", 100)
    unlearn("detect", run_copy, "--method", "self-influence")
    in_shards = (run_copy / "scores-self-influence.csv").read_text()
    about = json.loads((run_copy / "scores-self-influence" / "manifest.json").read_text())
    assert (about["method"], about["options"]["task"]) == ("self-influence", "classification")
    (run_copy / "scores-self-influence.csv").unlink()
    monkeypatch.setattr("unlearn.pipeline.detectors.SHARD_ROWS", 10**6)
    unlearn("detect", run_copy, "--method", "self-influence")
    assert (run_copy / "scores-self-influence.csv").read_text() == in_shards
