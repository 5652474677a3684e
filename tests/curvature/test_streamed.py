"""Factors on disk: the numbers of the fit in memory, a few layers at a time, and nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from curvature_cases import build, vector_of
from safetensors.torch import load_file
from torch import Tensor, nn

from unlearn.curvature import Curvature, damped_factors, factor_file, fit_curvature, load_curvature
from unlearn.curvature.digest import curvature_digest
from unlearn.curvature.factor_file import factor_count
from unlearn.curvature.fisher import FisherStream
from unlearn.data import Rows
from unlearn.detect import (
    gif_scores,
    gradient_sketches,
    harm,
    influence,
    layer_self_influence,
    score_shards,
    self_influence,
)
from unlearn.errors import CheckpointError, FolderError, InputError


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights as small as those of the cases are fitted in several groups."""
    monkeypatch.setattr("unlearn.curvature.fit._LEAST_BYTES", 0)


def deep(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Rows]:
    """Eight layers of one size and a head: factors take three times the memory of the weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [part for _ in range(8) for part in (nn.Linear(24, 24), nn.Tanh())]
        model = nn.Sequential(*layers, nn.Linear(24, 3)).to(dtype)
        return model, Rows.from_tensors(torch.randn(9, 24, dtype=dtype), torch.arange(9) % 3, classes=3)


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "diagonal"])
@pytest.mark.parametrize("case", ["linear", "conv-groups", "norms", "twice", "embedding", "embedding-tied", "bare"])
def test_the_file_is_that_of_the_fit_in_memory(
    tmp_path: Path, case: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; rejects other batches (of fewer layers more rows fit), other labels, or a layer twice."""
    monkeypatch.setattr("unlearn.curvature.taps._BATCH_BYTES", 300)  # two or three rows of the embedding
    model, rows = build(case)
    held = fit_curvature(model, rows, kind=kind, batch_size=4)
    held.save(tmp_path / "held")
    streamed = fit_curvature(model, rows, kind=kind, batch_size=4, folder=tmp_path / "streamed")
    one, other = ((tmp_path / name / "factors.safetensors").read_bytes() for name in ("held", "streamed"))
    assert one == other
    assert (streamed.options, streamed.uncovered, streamed.layers) == (held.options, held.uncovered, held.layers)
    groups, left = divmod(streamed.passes, 2 if kind == "ekfac" else 1)
    assert left == 0
    assert groups == 1 if kind == "diagonal" or len(held.layers) == 1 else groups > 1
    assert streamed.summary().splitlines()[:-1] == held.summary().splitlines()[:-1]
    assert streamed.summary().splitlines()[-1] == f"passes over the rows: {streamed.passes}"
    whole = load_file(tmp_path / "streamed" / "factors.safetensors")
    assert len(whole) == sum(len(block.tensors) for block in held.blocks.values())
    for name, block in held.blocks.items():
        for part, tensor in block.tensors.items():
            assert torch.equal(whole[f"{name}:{part}"], tensor)


SCORES: dict[str, Callable[[nn.Module, Rows, Curvature], object]] = {
    "self-influence": lambda m, rows, c: self_influence(m, rows, curvature=c, batch_size=4).values,
    "by gradient": lambda m, rows, c: self_influence(m, rows, curvature=c, relative="gradient").values,
    "by parameters": lambda m, rows, c: self_influence(m, rows, curvature=c, relative="parameters").values,
    "by layer": lambda m, rows, c: layer_self_influence(m, rows, curvature=c).values,
    "gif": lambda m, rows, c: gif_scores(m, rows, curvature=c, batch_size=4).values,
    "harm": lambda m, rows, c: harm(m, rows, rows.at(torch.tensor([0, 3])), curvature=c).values,
    "influence": lambda m, rows, c: influence(m, rows, rows.at(torch.tensor([0, 3])), curvature=c, relative="loss"),
    "sketches": lambda m, rows, c: gradient_sketches(m, rows, curvature=c, size=16).values,
    "mean": lambda m, rows, c: c.mean_eigenvalue,
    "digest": lambda m, rows, c: curvature_digest(c),
    "product": lambda m, rows, c: c.matvec(vector_of(m)),
    "solve": lambda m, rows, c: c.solve(vector_of(m), damping=0.1),
    "damped factors": lambda m, rows, c: damped_factors(c, 0.1).solve(vector_of(m), damping=0.0),
}


@pytest.mark.parametrize("score", SCORES)
def test_scores_are_those_in_memory_with_a_layer_at_a_time(
    score: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rejects a form of every layer kept at once: never are two layers' tensors alive that were read."""
    model, rows = deep()
    held = fit_curvature(model, rows)
    streamed = fit_curvature(model, rows, folder=tmp_path)
    alive = Alive()
    monkeypatch.setattr(factor_file, "_read", alive.watching(factor_file._read))
    expected, found = SCORES[score](model, rows, held), SCORES[score](model, rows, streamed)
    if isinstance(expected, dict):
        assert all(torch.equal(found[name], part) for name, part in expected.items())
    elif isinstance(expected, str):
        assert found == expected
    else:
        assert np.array_equal(np.asarray(found), np.asarray(expected))
    layer = 4 * factor_count(streamed.layers[0], "ekfac")
    assert 0 < alive.most <= 2 * layer  # the one before is let go when the next is there


class Alive:
    """The most bytes of watched tensors that were in memory at once."""

    def __init__(self) -> None:
        self.most, self._now = 0, 0

    def watching(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return ``make`` with its results watched."""

        def made(*arguments: object) -> Tensor:
            tensor = make(*arguments)
            self._now += tensor.nbytes
            self.most = max(self.most, self._now)
            weakref.finalize(tensor, self._gone, tensor.nbytes)
            return tensor

        return made

    def _gone(self, size: int) -> None:
        self._now -= size


def test_a_fit_holds_the_factors_of_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejects factors of all layers at once, and groups that outgrow the weights."""
    model, rows = deep()
    weights = sum(p.nbytes for p in model.parameters())
    for folder in (None, tmp_path):
        alive = Alive()
        zeros = alive.watching(FisherStream.zeros)
        monkeypatch.setattr("unlearn.curvature.fisher.FisherStream.zeros", lambda *a, zeros=zeros: zeros(*a))
        curvature = fit_curvature(model, rows, folder=folder)
        assert (alive.most <= weights) == (folder is not None)
    assert curvature.passes == 2 * 4


def test_shards_begun_with_factors_in_memory_go_on_with_streamed_ones(tmp_path: Path) -> None:
    model, rows = deep()
    held = fit_curvature(model, rows)
    streamed = fit_curvature(model, rows, folder=tmp_path / "curvature")
    one = score_shards("self-influence", model, rows, tmp_path / "scores", curvature=held, shard_rows=4)
    (tmp_path / "scores" / "part-00001.safetensors").unlink()
    again = score_shards("self-influence", model, rows, tmp_path / "scores", curvature=streamed, shard_rows=4)
    assert np.array_equal(one.scores().values, again.scores().values)


def test_a_streamed_curvature_is_saved_elsewhere_and_loaded_whole(tmp_path: Path) -> None:
    model, rows = deep()
    fit_curvature(model, rows, folder=tmp_path / "first").save(tmp_path / "second")
    one, other = ((tmp_path / name / "factors.safetensors").read_bytes() for name in ("first", "second"))
    assert one == other
    whole = load_curvature(tmp_path / "second", model, rows)
    for name in ("factors.safetensors", "manifest.json"):
        (tmp_path / "second" / name).unlink()
    assert whole.solve(vector_of(model), damping=0.1)


def test_a_file_that_is_replaced_is_not_read_on(tmp_path: Path) -> None:
    """Rejects factors of two fits in one answer."""
    model, rows = deep()
    streamed = fit_curvature(model, rows, folder=tmp_path)
    opened = load_curvature(tmp_path, model, rows, stream=True)
    fit_curvature(model, rows, seed=1, folder=tmp_path)
    for curvature in (streamed, opened):
        with pytest.raises(CheckpointError, match="was replaced since the curvature was opened; load"):
            curvature.matvec(vector_of(model))
    (tmp_path / "factors.safetensors").unlink()
    with pytest.raises(CheckpointError, match="can not be read"):
        streamed.matvec(vector_of(model))


KILLED = """
import os, signal, sys
from unlearn.curvature import fit, fit_curvature
from unlearn.curvature import factor_file
from curvature_cases import build

fit._LEAST_BYTES = 0
write, written = factor_file.raw_bytes, []

def dying(tensor):
    written.append(tensor)
    if len(written) == 7:  # of 10
        os.kill(os.getpid(), signal.SIGKILL)
    return write(tensor)

factor_file.raw_bytes = dying
fit_curvature(*build("linear"), folder=sys.argv[1])
"""


def test_a_killed_fit_leaves_nothing_that_reads_as_whole(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], env=environment, check=False)
    assert done.returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == ["factors.safetensors.part"]
    model, rows = build("linear")
    with pytest.raises(FolderError, match="holds no curvature"):
        load_curvature(tmp_path, model, rows, stream=True)
    again = fit_curvature(model, rows, folder=tmp_path)
    assert curvature_digest(again) == curvature_digest(fit_curvature(model, rows))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["factors.safetensors", "manifest.json"]


class Counting(nn.Module):
    """A model that changes whenever it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3).double()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.head(x)


def test_a_fit_that_is_refused_or_can_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    _, rows = build("linear")
    with pytest.raises(InputError, match="change when it is run"):
        fit_curvature(Counting(), rows, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="a file has this name"):
        fit_curvature(build("linear")[0], rows, folder=tmp_path / "file")
