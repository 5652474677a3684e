"""Saved curvature comes back bit for bit, and is refused where it does not belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from curvature_cases import build, vector_of
from safetensors.torch import load_file, save_file

from unlearn.curvature import fit_curvature, load_curvature, weights_digest
from unlearn.curvature.store import _sha256
from unlearn.errors import CheckpointError, FolderError, InputError, StaleCurvatureError


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "diagonal"])
def test_round_trip(tmp_path: Path, kind: str) -> None:
    model, rows = build("conv-groups")
    curvature = fit_curvature(model, rows, kind=kind, skip=["3.bias"])
    curvature.save(tmp_path / "deep" / "curvature")
    loaded = load_curvature(tmp_path / "deep" / "curvature", model, rows, kind=kind, skip=("3.bias",), seed=0)
    assert loaded.options == curvature.options
    assert loaded.uncovered == {"3.bias": "skipped"}
    assert loaded.summary() == curvature.summary()
    assert list(loaded.blocks) == list(curvature.blocks)
    for name, block in curvature.blocks.items():
        assert loaded.blocks[name].layer == block.layer
        assert torch.equal(loaded.blocks[name].eigenvalues, block.eigenvalues)
    v = vector_of(model)
    torch.testing.assert_close(loaded.solve(v, damping=0.1), curvature.solve(v, damping=0.1), rtol=0, atol=0)
    assert sorted(path.name for path in (tmp_path / "deep" / "curvature").iterdir()) == [
        "factors.safetensors",
        "manifest.json",
    ]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, rows = build("linear")
    fit_curvature(model, rows).save(tmp_path)
    return tmp_path


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_other_weights_rows_and_options_are_refused(saved: Path) -> None:
    model, rows = build("linear")
    with pytest.raises(StaleCurvatureError, match="fitted on data"):
        load_curvature(saved, model, rows.without(["row-3"]))
    with pytest.raises(StaleCurvatureError, match="fitted with kind='ekfac', not 'kfac'"):
        load_curvature(saved, model, rows, kind="kfac")
    with pytest.raises(StaleCurvatureError, match=r"fitted with dtype=None, not 'torch\.float32'"):
        load_curvature(saved, model, rows, dtype=torch.float32)
    with pytest.raises(InputError, match="unknown option 'sed'; did you mean 'seed'"):
        load_curvature(saved, model, rows, sed=0)
    model[0].bias.requires_grad_(False)
    with pytest.raises(StaleCurvatureError, match="covers 0, 2, other than"):
        load_curvature(saved, model, rows)
    with torch.no_grad():
        model[2].weight[0, 0] += 1e-9
    with pytest.raises(StaleCurvatureError, match="belongs to weights"):
        load_curvature(saved, model, rows)


def test_altered_files_are_refused(saved: Path) -> None:
    model, rows = build("linear")
    path = saved / "factors.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="not the file its manifest was written for"):
        load_curvature(saved, model, rows)
    path.write_bytes(whole)
    load_curvature(saved, model, rows)
    path.unlink()
    with pytest.raises(CheckpointError, match="can not be read"):
        load_curvature(saved, model, rows)


def test_tensors_must_be_those_of_the_layers(saved: Path) -> None:
    model, rows = build("linear")
    path = saved / "factors.safetensors"
    whole = load_file(path)

    def rewrite(tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, path)
        edit_manifest(saved, factors_sha256=_sha256(path))

    rewrite({name: tensor for name, tensor in whole.items() if name != "0:input_basis"})
    with pytest.raises(CheckpointError, match=r"no input_basis of shape .* for layer '0'"):
        load_curvature(saved, model, rows)
    rewrite(whole | {"0:eigenvalues": torch.ones(1, 4, 5)})
    with pytest.raises(CheckpointError, match=r"no eigenvalues of shape \(1, 4, 6\) for layer '0'"):
        load_curvature(saved, model, rows)
    rewrite(whole | {"9:eigenvalues": torch.ones(1)})
    with pytest.raises(CheckpointError, match="tensors of no layer: 9:eigenvalues"):
        load_curvature(saved, model, rows)


def test_manifests_of_another_format_or_damaged_are_refused(saved: Path) -> None:
    model, rows = build("linear")
    edit_manifest(saved, format=99)
    with pytest.raises(StaleCurvatureError, match="has format 99, this version reads 3"):
        load_curvature(saved, model, rows)
    edit_manifest(saved, format=3, layers=[{"name": "0"}])
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        load_curvature(saved, model, rows)
    (saved / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        load_curvature(saved, model, rows)


def test_folders(tmp_path: Path) -> None:
    model, rows = build("linear")
    with pytest.raises(FolderError, match="holds no curvature"):
        load_curvature(tmp_path / "nothing", model, rows)
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="can not be written"):
        fit_curvature(model, rows).save(tmp_path / "file")


def test_a_failed_save_leaves_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = build("linear")
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    curvature = fit_curvature(model, rows, seed=5)
    monkeypatch.setattr("unlearn.curvature.store.os.fsync", full)
    with pytest.raises(FolderError, match="No space left"):
        curvature.save(saved)
    after = {path.name: path.read_bytes() for path in saved.iterdir() if path.suffix != ".part"}
    assert after == before


def test_digest_sees_names_types_shapes_values_and_buffers() -> None:
    model, _ = build("linear")
    digest = weights_digest(model)
    assert digest == weights_digest(build("linear")[0])
    renamed = torch.nn.Sequential()
    for name, module in zip("abc", model, strict=True):
        renamed.add_module(name, module)
    assert weights_digest(renamed) != digest
    model.register_buffer("steps", torch.zeros(()))
    with_buffer = weights_digest(model)
    model.steps += 1
    assert len({digest, with_buffer, weights_digest(model), weights_digest(model.float())}) == 4


def test_digest_tells_apart_equal_bytes_of_another_shape() -> None:
    tall, wide = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        wide.weight.copy_(tall.weight.reshape(2, 3))
    assert weights_digest(tall) != weights_digest(wide)
