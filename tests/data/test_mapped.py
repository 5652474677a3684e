"""Rows in a mapped file: the same as in memory, with one batch resident."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unlearn.curvature import fit_curvature
from unlearn.data import Rows, load_data
from unlearn.data.mapped import mapped_rows
from unlearn.detect import self_influence
from unlearn.errors import InputError

N = 40


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    x = torch.randn(N, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    return {"x": x, "labels": torch.arange(N) % 4}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / "rows.safetensors")
    return tmp_path / "rows.safetensors"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int16, torch.uint8])
def test_rows_are_those_in_memory(tmp_path: Path, dtype: torch.dtype):
    """Rejects a wrong offset or type, and pages that are lost when they are let go."""
    path = tmp_path / "rows.safetensors"
    save_file(tensors(dtype), path, {"format": "pt"})
    rows, expected = mapped_rows(path), Rows.from_tensors(*tensors(dtype).values())
    for _ in range(2):
        mixed = torch.tensor([39, 0, 17])
        assert torch.equal(rows.batch(mixed)[0], expected.batch(mixed)[0])
    assert rows.fingerprint == expected.fingerprint
    assert (rows.ids, rows.classes) == (expected.ids, 4)
    view = rows.without(["3"]).relabelled({"5": 0})
    assert view.fingerprint == expected.without(["3"]).relabelled({"5": 0}).fingerprint


def test_scores_are_those_in_memory(path: Path):
    model, rows, expected = nn.Linear(3, 4), mapped_rows(path), Rows.from_tensors(*tensors().values())
    a, b = (self_influence(model, r, curvature=fit_curvature(model, r)) for r in (rows, expected))
    assert a.values.tolist() == b.values.tolist()


def test_several_inputs_and_ids(tmp_path: Path):
    parts = {
        "input_ids": torch.arange(6).reshape(3, 2),
        "attention_mask": torch.ones(3, 2),
        "y": torch.tensor([1, 0, 1]),
    }
    save_file(parts | {"ids": torch.tensor([7, 900, 8])}, tmp_path / "a.safetensors")
    rows = mapped_rows(tmp_path / "a.safetensors", label="y", classes=3)
    assert (rows.ids, rows.classes, rows.name) == (("7", "900", "8"), 3, "a")
    inputs, labels = rows.only(["900"])[0]
    assert {key: value.tolist() for key, value in inputs.items()} == {"input_ids": [2, 3], "attention_mask": [1, 1]}
    assert int(labels) == 0


def test_as_a_source_of_recipes(path: Path, tmp_path: Path):
    """Test rows of the same file are drawn by id; those of another go on in number."""
    train, test = (load_data("safetensors", part, options={"path": str(path)}) for part in ("train", "test"))
    assert len(train) + len(test) == N
    assert not set(train.ids) & set(test.ids)
    save_file({"x": torch.zeros(2, 3), "labels": torch.tensor([5, 0])}, tmp_path / "t.safetensors")
    options = {"path": str(path), "test": str(tmp_path / "t.safetensors")}
    train, test = (load_data("safetensors", part, options=options) for part in ("train", "test"))
    assert (train.ids[-1], test.ids, train.classes, test.classes) == ("39", ("40", "41"), 6, 6)
    with pytest.raises(InputError, match="no split 'all'"):
        load_data("safetensors", "all", options=options)


BAD = {
    "no tensor 'labels' of labels; did you mean 'label'": {"x": torch.zeros(2, 1), "label": torch.zeros(2).long()},
    "have {'labels': 3, 'x': 2} rows": {"x": torch.zeros(2, 1), "labels": torch.zeros(3).long()},
    "no tensors beside 'labels'": {"labels": torch.zeros(3).long()},
    "name a row twice": {"x": torch.zeros(2, 1), "labels": torch.zeros(2).long(), "ids": torch.tensor([1, 1])},
    "no whole numbers": {"x": torch.zeros(2, 1), "labels": torch.zeros(2).long(), "ids": torch.tensor([1.0, 2.0])},
    "known: F64": {"x": torch.zeros(2, dtype=torch.complex64), "labels": torch.zeros(2).long()},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, message: str):
    save_file(BAD[message], tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=message) as error:
        mapped_rows(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)


def test_a_missing_and_a_damaged_file(tmp_path: Path, path: Path):
    with pytest.raises(InputError, match="can not be read"):
        mapped_rows(tmp_path / "none.safetensors")
    for content in (b"", b"short", path.read_bytes()[:-100], b"\xff" * 64):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(InputError, match="no safetensors file, or damaged"):
            mapped_rows(tmp_path / "bad.safetensors")


MEASURE = """
import json, sys, torch
from benchmarks.memory import PeakMemory
from unlearn.data.mapped import mapped_rows
torch.set_num_threads(1)
rows = mapped_rows(sys.argv[1])
for first in range(2):
    memory = PeakMemory()
    total = sum(float(x.sum()) for _, x, _ in rows.batches(1024))
print(json.dumps(memory.megabytes()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures resident memory in /proc")
def test_one_batch_is_resident(tmp_path: Path):
    """64 MB of rows are read within 16; rejects pages that stay mapped, and a file that is read whole."""
    rows = 65536
    save_file({"x": torch.ones(rows, 256), "labels": torch.zeros(rows).long()}, tmp_path / "a.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "a.safetensors")],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) < 16
