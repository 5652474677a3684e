"""Several ranks have the numbers of one process, refuse to differ, and can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ranks_worker
import torch
from safetensors.torch import load_file

from unlearn import ranks
from unlearn.cli.ranked import heard_once, join_ranks
from unlearn.errors import InputError
from unlearn.verification.processes import allowed_processes

TESTS = Path(__file__).parent
WORLD = 3


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The folder in which three ranks have left what they found."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(TESTS / "ranks_worker.py"), str(folder), str(WORLD)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_numbers_are_those_of_one_process(left, tmp_path):
    """Rejects a shard that is not added up, added up twice, or divided by its own rows; and scores out of order."""
    alone = ranks_worker.found(tmp_path)
    every = [load_file(left / f"found-{rank}.safetensors") for rank in range(WORLD)]
    for name, expected in alone.items():
        for found in every:
            error = (found[name] - expected).abs().max() / expected.abs().max()
            assert error <= 1e-6, f"{name}: {error:.1e}"
        assert all(torch.equal(found[name], every[0][name]) for found in every), f"{name} differs between the ranks"
    for name in (one for one in alone if one.startswith("reference")):
        assert torch.equal(every[0][name], alone[name])


def test_a_replay_is_shared_where_rows_stand_apart(left):
    """Rejects ranks that all run all rows, and one that says nothing where they must."""
    said = [json.loads((left / f"replays-{rank}.json").read_text()) for rank in range(WORLD)]
    for name in ("nothing", "masks"):
        assert [one.pop(name) for one in said] == [[1, []], [3, []], [3, []]]
    for rank, one in enumerate(said):
        for ran, warned in one.values():
            assert ran == 7
            assert [text.startswith("rows of a batch do not stand apart") for text in warned] == [True] * (rank == 0)


def test_ranks_that_differ_are_refused_on_all(left):
    """Rejects a fingerprint that the order of the rows does not change, and an error that only one rank knows of."""
    said = [(left / f"refused-{rank}.txt").read_text().splitlines() for rank in range(WORLD)]
    assert said[0] == said[1] == said[2]
    order, labels, options, folder, diverged, factors, weights = said[0]
    for one, what in ((order, "set of rows of data"), (labels, "set of rows of data"), (options, "set of options")):
        assert one.startswith(f"InputError: rank 1 has another {what}")
    assert folder.startswith("FolderError: can not write '/no/such/folder/a.json'")
    assert diverged.startswith("InputError: the loss of step ")
    assert factors.startswith("FolderError: curvature can not be written to ")
    assert weights.startswith("InputError: rank 1 has another model (weights or buffers)")


def test_the_first_rank_writes(left):
    assert (left / "shared.txt").read_text() == "written by rank 0"


def torchrun(*words: str) -> subprocess.Popen[str]:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "unlearn", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command], cwd=TESTS.parent, env=environment, text=True, stderr=subprocess.PIPE
    )


def rank_process(agent: int, rank: int) -> int | None:
    """The process of a rank under torchrun, by what it was started with."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    for child in children:
        if f"\0RANK={rank}\0" in f"\0{Path(f'/proc/{child}/environ').read_text()}":
            return int(child)
    return None


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the process of a rank in /proc")
def test_a_killed_rank_ends_the_job_and_the_run_is_resumed(run_copy, unlearn):
    """One clear line from a rank that is left; what was finished stays, and one process goes on from there."""
    (run_copy / "verdict.json").unlink()
    before = set(run_copy.glob("references/*.safetensors"))
    with torchrun("verify", str(run_copy), "--references", "8") as job:
        end = time.monotonic() + 120
        while set(run_copy.glob("references/*.safetensors")) == before:
            assert job.poll() is None, job.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.02)
        victim = rank_process(job.pid, 1)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        said = job.communicate(timeout=60)[1]
    assert job.returncode != 0
    assert said.count("error: another rank ended (killed, out of memory, or by an error of its own)") == 1
    assert "Signal 9 (SIGKILL)" in said  # torchrun's own words
    assert not (run_copy / "verdict.json").exists()
    assert not list(run_copy.rglob("*.part"))
    finished = {path: path.read_bytes() for path in run_copy.glob("references/*.safetensors")}
    assert 3 < len(finished) < 9

    code, out, err = unlearn("verify", run_copy, "--references", "8", "--processes", "1", "--json")
    assert f"references: {9 - len(finished)} retrains" in err
    assert json.loads(out)["outcome"] == {0: "pass", 1: "fail", 3: "undecided"}[code]
    assert all(path.read_bytes() == data for path, data in finished.items())


@pytest.fixture
def rank_one(monkeypatch):
    """This process as rank 1 of 2, without another rank; the store counts in it."""
    store = SimpleNamespace(spoken=0)

    def add(_: str, number: int) -> int:
        store.spoken += number
        return store.spoken

    store.add = add
    monkeypatch.setattr(ranks, "_job", ranks._Job(rank=1, world=2, cpu_group=None, store=store))


def test_one_rank_is_heard(rank_one, capsys):
    """All ranks fail when one does; rejects a line from each."""
    say = heard_once()
    say("error: first")
    say("error: second")
    assert capsys.readouterr().err == "rank 1: error: first\n"


def test_what_is_not_shared_is_refused(rank_one, monkeypatch, capsys):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("unlearn.cli.ranked.ranks_agree", lambda *_: None)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))
    kept = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(InputError, match="`unlearn review` runs in one process, and 2 ranks were started"):
            join_ranks(["review", "runs/x"])
        join_ranks(["recipe", "run", "x"])
    finally:
        signal.signal(signal.SIGTERM, kept)
    with pytest.raises(InputError, match="processes is 3 and there are 2 ranks; leave it out"):
        allowed_processes(3, 5, torch.device("cpu"))


def test_spans_cover_all_rows_once(monkeypatch):
    for world in (1, 2, 3, 7):
        spans = []
        for rank in range(world):
            monkeypatch.setattr(ranks, "_job", ranks._Job(rank, world, None, None))
            spans.append(ranks.own_span(5))
        assert [row for span in spans for row in span] == list(range(5))
        assert max(map(len, spans)) - min(map(len, spans)) <= 1


def test_the_dearest_tasks_are_shared_out(monkeypatch):
    monkeypatch.setattr(ranks, "_job", ranks._Job(0, 2, None, None))
    assert ranks.owners([1.0, 8.0, 2.0, 5.0]) == [1, 0, 1, 1]


def test_sharded_weights_are_refused():
    """In one line that says how to gather them; rejects a crash where their bytes are read."""
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from unlearn.curvature import fit_curvature

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.Linear(2, 2)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(InputError, match="'bias' is sharded over ranks"):
            fit_curvature(model, (torch.eye(2), torch.tensor([0, 1])))
    finally:
        dist.destroy_process_group()
