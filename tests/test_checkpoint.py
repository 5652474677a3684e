"""Checkpoints: what is read is what was written, and damage of any kind is refused."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from unlearn.atomic import write_atomically
from unlearn.checkpoint import (
    Checkpoint,
    diff_checkpoints,
    import_state_dict,
    load_weights,
    read_checkpoint,
    read_header,
    read_metadata,
    rollback,
    save_checkpoint,
    verify_checkpoint,
)
from unlearn.checkpoint.digests import canonical_json, sha256_of_tensors, sha256_of_text
from unlearn.errors import CheckpointError, FolderError, InputError


class Edit:
    """Stands for an edit of unlearn.repair."""

    def provenance(self) -> dict[str, Any]:
        rows = [{"id_sha256": sha256_of_text("mnist5k-0007"), "action": "relabel", "label": 3}]
        return {"method": "newton", "steps": [{"predicted": 0.25, "measured": 0.24}], "cost": 1.5, "rows": rows}


class Record:
    """Stands for a training record."""

    def to_dict(self) -> dict[str, Any]:
        return {"optimizer": "sgd", "lr": 0.05, "steps": 480}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))


def same_bits(a: Tensor, b: Tensor) -> bool:
    as_bytes = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)


def with_metadata(path: Path, change: Callable[[dict[str, Any]], object], *, sign: bool = False) -> None:
    """Rewrite the metadata of a file; with ``sign`` its digest too, as a forger would."""
    metadata = read_metadata(path)
    change(metadata)
    if sign:
        metadata["digest"] = sha256_of_text(canonical_json({k: v for k, v in metadata.items() if k != "digest"}))
    path.write_bytes(safetensors.torch.save(safetensors.torch.load_file(path), {"unlearn": canonical_json(metadata)}))


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "original.safetensors"
    save_checkpoint(path, network(0), record=Record(), recipe=("mnist5k", "seed = 0\n"))
    return path


@pytest.fixture
def edited(original: Path) -> Path:
    path = original.with_name("edited.safetensors")
    save_checkpoint(path, network(1), parent=original, edit=Edit())
    return path


TENSORS = {
    "float32": torch.tensor([[1.5, -0.0], [1e-45, 3.0e38]]),
    "float64": torch.tensor([0.1, -2.0], dtype=torch.float64),
    "bfloat16": torch.tensor([1.0, 3.14, -7.0], dtype=torch.bfloat16),
    "float16": torch.tensor([6e-8, 65504.0], dtype=torch.float16),
    "int64": torch.tensor([-(2**63), 2**63 - 1]),
    "uint8": torch.tensor([0, 255], dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "complex64": torch.tensor([1 + 2j, -1j]),
    "0-dim": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,  # not contiguous: bytes must follow the shape, not the storage
    "expanded": torch.ones(1).expand(4),
    "conjugate": torch.tensor([1 + 2j]).conj(),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_tensor_of_any_kind_comes_back_bit_for_bit(tmp_path: Path, case: str) -> None:
    # rejects: a detour over float32 or numpy, which has no bfloat16; storage order written for shape order
    save_checkpoint(tmp_path / "a.safetensors", {case: TENSORS[case]})
    back = read_checkpoint(tmp_path / "a.safetensors").tensors[case]
    assert same_bits(back, TENSORS[case].resolve_conj())


def test_a_module_comes_back_with_its_buffers(tmp_path: Path) -> None:
    # rejects: writing parameters only, so that batch norm restarts its running means
    model = network()
    model(torch.randn(16, 4))
    digest = save_checkpoint(tmp_path / "a.safetensors", model)
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    back = load_weights(network(5), checkpoint)
    assert checkpoint.kind == "original"
    assert checkpoint.digest == digest
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(same_bits(back.state_dict()[k], v) for k, v in model.state_dict().items())
    assert back.state_dict()["1.num_batches_tracked"] == 1


def test_loading_leaves_the_callers_model_alone(original: Path) -> None:
    # rejects: load_state_dict on the model that was passed in
    model = network(5)
    model(torch.randn(8, 4)).sum().backward()
    before, gradient = copy.deepcopy(model.state_dict()), model[0].weight.grad.clone()  # type: ignore[union-attr]
    back = load_weights(model, read_checkpoint(original))
    assert back is not model
    assert all(same_bits(model.state_dict()[k], v) for k, v in before.items())
    assert torch.equal(model[0].weight.grad, gradient)  # type: ignore[arg-type]
    assert all(p.grad is None for p in back.parameters())


def test_tied_weights_are_saved_and_stay_tied(tmp_path: Path) -> None:
    # rejects: safetensors' refusal of shared storage reaching the user; a copy whose two names drift apart
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    save_checkpoint(tmp_path / "a.safetensors", model)
    back = load_weights(model, read_checkpoint(tmp_path / "a.safetensors"))
    assert back[1].weight is back[0].weight  # type: ignore[index]
    assert torch.equal(back[0].weight, model[0].weight)  # type: ignore[index]


def test_untied_weights_in_a_tied_model_are_refused(tmp_path: Path) -> None:
    # rejects: the second of two tied names silently overwriting the first
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    save_checkpoint(tmp_path / "a.safetensors", tied)
    tied[1].weight = tied[0].weight
    with pytest.raises(CheckpointError, match=r"'0.weight' is tied .* without this tie"):
        load_weights(tied, read_checkpoint(tmp_path / "a.safetensors"))


def test_any_safetensors_reader_loads_the_file(original: Path) -> None:
    # rejects: a format of our own under the name of safetensors
    plain = safetensors.torch.load_file(original)
    assert all(same_bits(plain[k], v) for k, v in network(0).state_dict().items())
    with safe_open(original, framework="numpy") as file:
        assert json.loads(file.metadata()["unlearn"])["kind"] == "original"


def test_equal_arguments_give_equal_bytes_in_another_folder_and_process(tmp_path: Path, original: Path) -> None:
    # rejects: times, absolute paths, or dictionary and set order in the file
    code = (
        "import sys, torch; from torch import nn; from unlearn.checkpoint import save_checkpoint\n"
        "save_checkpoint(sys.argv[1], {'b': torch.ones(3), 'a': torch.zeros(2, 2)}, parent=sys.argv[2],"
        " rows={'y': 1, 'x': 2}, method='newton', extra={'q': 1, 'p': [2.5]})"
    )
    written = []
    for seed in ("1", "2"):
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        parent = folder / original.name
        parent.write_bytes(original.read_bytes())
        out = folder / "out.safetensors"
        subprocess.run(
            [sys.executable, "-c", code, out, parent], check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        written.append(out.read_bytes())
        assert str(tmp_path).encode() not in written[-1]
    assert written[0] == written[1]
    swapped = {"a": torch.zeros(2, 2), "b": torch.ones(3)}
    again = tmp_path / "again.safetensors"
    rows = {"x": 2, "y": 1}
    save_checkpoint(again, swapped, parent=original, rows=rows, method="newton", extra={"p": [2.5], "q": 1})
    assert again.read_bytes() == written[0]


def test_the_digest_covers_weights_and_metadata(tmp_path: Path) -> None:
    # rejects: a digest of the weights alone, under which the provenance could be exchanged
    one, two = {"w": torch.ones(2)}, {"w": torch.tensor([1.0, 1.0 + 2**-23])}
    path = tmp_path / "a.safetensors"
    digests = [
        save_checkpoint(path, one),
        save_checkpoint(path, two),
        save_checkpoint(path, one, recipe="seed = 1"),
        save_checkpoint(path, one, rows=["x"]),
        save_checkpoint(path, one, rows=["y"]),
        save_checkpoint(path, one, rows=["x"], action="relabel"),
        save_checkpoint(path, {"v": torch.ones(2)}),
        save_checkpoint(path, {"w": torch.ones(2, 1)}),
        save_checkpoint(path, {"w": torch.ones(2).view(torch.int32)}),
    ]
    assert len(set(digests)) == len(digests)


def test_provenance_of_an_edit(original: Path, edited: Path) -> None:
    # rejects: row ids in the clear, a parent that can not be checked, a lost method or record
    metadata = read_metadata(edited)
    sha256 = hashlib.sha256(original.read_bytes()).hexdigest()
    assert metadata["kind"] == "edited"
    assert metadata["parent"] == {"name": original.name, "sha256": sha256, "digest": read_checkpoint(original).digest}
    assert metadata["edit"] == Edit().provenance()
    assert set(metadata["versions"]) == {"unlearn", "torch", "numpy", "python"}
    assert b"mnist5k-0007" not in edited.read_bytes()
    first = read_metadata(original)
    assert first["record"] == Record().to_dict()
    text = "seed = 0\n"
    assert first["recipe"] == {"name": "mnist5k", "sha256": hashlib.sha256(text.encode()).hexdigest(), "text": text}


def test_rows_given_by_hand(tmp_path: Path) -> None:
    # rejects: an action that does not fit its rows; the string 'ab' taken for the rows 'a' and 'b'
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"w": torch.ones(1)}, rows={"a": 4}, method="rewind")
    assert read_metadata(path)["edit"] == {
        "method": "rewind",
        "rows": [{"id_sha256": sha256_of_text("a"), "action": "relabel", "label": 4}],
    }
    save_checkpoint(path, {"w": torch.ones(1)}, rows=["a"])
    assert read_metadata(path)["edit"]["rows"][0]["action"] == "remove"
    refused: list[tuple[dict[str, Any], str]] = [
        ({"rows": "ab"}, "give a list"),
        ({"rows": {"a": 1}, "action": "remove"}, "takes none"),
        ({"rows": ["a"], "action": "hide"}, "known: remove, relabel"),
        ({"method": "newton"}, "give the ids"),
        ({"rows": ["a"], "edit": Edit()}, "give one of them"),
        ({"extra": {"a": float("nan")}}, "finite numbers"),
        ({"extra": {"a": {1, 2}}}, "JSON"),
        ({"spec": {"kind": "mlp"}}, "'name'"),
    ]
    for arguments, message in refused:
        with pytest.raises(InputError, match=message):
            save_checkpoint(path, {"w": torch.ones(1)}, **arguments)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    # rejects: a diverged model kept as a checkpoint
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match=r"'0\.bias' is NaN or infinite"):
        save_checkpoint(path, {"0.weight": torch.ones(2), "0.bias": torch.tensor([0.0, bad], dtype=dtype)})
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_state_dictionary_is_refused(tmp_path: Path) -> None:
    # rejects: an error from the depth of safetensors
    path = tmp_path / "a.safetensors"
    refused: list[tuple[Any, str]] = [
        ({}, "no tensors"),
        (nn.ReLU(), "no tensors"),
        ({"a": 1.0}, "'a' .* is float"),
        ({1: torch.ones(1)}, "entry 1"),
        ([torch.ones(1)], "model is list"),
        ({"a": torch.eye(2).to_sparse()}, "'a' can not be held"),
        ({"a": torch.ones(1, dtype=torch.complex128)}, "complex128"),
        ({"__metadata__": torch.ones(1)}, "rename"),
    ]
    for model, message in refused:
        with pytest.raises(InputError, match=message):
            save_checkpoint(path, model)
    assert not path.exists()


# --- damage -----------------------------------------------------------------------------------------------------------


def test_every_single_altered_byte_is_refused(tmp_path: Path) -> None:
    # rejects: any byte of length, header, metadata, padding or weights that nothing watches over
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"w": torch.tensor([1.0, -2.0]), "n": torch.tensor(3)}, rows=["a"], recipe="seed = 0")
    whole = path.read_bytes()
    for position in range(len(whole)):
        for flip in (0x01, 0x80):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
            with pytest.raises(CheckpointError, match=r"a\.safetensors"):
                read_checkpoint(path)
            assert any(check.ok is False for check in verify_checkpoint(path)), (position, flip)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    # rejects: a copy that stopped half way read as a smaller model
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"w": torch.ones(4)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut short|unreadable"):
            read_checkpoint(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="bytes after its end"):
        read_checkpoint(path)


def flip(path: Path, where: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(where)] ^= 0x01
    path.write_bytes(data)


def test_the_message_says_which_part_is_damaged(original: Path) -> None:
    # rejects: one message for all damage, from which nobody learns what to restore
    whole = original.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    flip(original, b"sgd")
    with pytest.raises(CheckpointError, match=r"metadata of .* was altered"):
        read_metadata(original)
    original.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"tensors of .* do not match their digest"):
        read_checkpoint(original)
    original.write_bytes(whole)
    flip(original, b'"data_offsets"')
    with pytest.raises(CheckpointError, match=r"header of .* unreadable"):
        read_checkpoint(original)
    original.write_bytes(whole[: length // 2])
    with pytest.raises(CheckpointError, match=f"cut short: its header has {length} bytes"):
        read_checkpoint(original)
    original.write_bytes(b"PK\x03\x04 this is a zip file")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        read_checkpoint(original)
    with pytest.raises(CheckpointError, match="No such file"):
        read_checkpoint(original.with_name("absent"))
    with pytest.raises(CheckpointError, match="directory"):
        read_checkpoint(original.parent)


def test_a_newer_format_is_refused_by_name(original: Path) -> None:
    # rejects: a file of tomorrow called damaged, or worse, read as today's
    with_metadata(original, lambda m: m.update(format=2), sign=True)
    with pytest.raises(CheckpointError, match=r"format 2, .* up to 1: upgrade unlearn"):
        read_checkpoint(original)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("kind"),
        lambda m: m.update(tensors_sha256=None),
        lambda m: m.update(parent={"name": "x"}),
        lambda m: m.update(recipe="text"),
        lambda m: m.update(model={"name": 3, "options": {}}),
        lambda m: m.update(edit={"rows": [3]}),
        lambda m: m.update(record=[1]),
    ],
)
def test_metadata_of_the_wrong_form_is_refused_even_with_its_digest(original: Path, change: Any) -> None:
    # rejects: a KeyError from a file that somebody wrote by hand
    with_metadata(original, change, sign=True)
    with pytest.raises(CheckpointError, match="altered"):
        read_checkpoint(original)


def test_metadata_that_only_means_the_same_is_refused(original: Path) -> None:
    # rejects: two files of other bytes under one digest
    loose = json.dumps(read_metadata(original), indent=1)
    original.write_bytes(safetensors.torch.save(safetensors.torch.load_file(original), {"unlearn": loose}))
    with pytest.raises(CheckpointError, match=r"metadata of .* was altered"):
        read_checkpoint(original)


def test_the_digest_of_tensors_knows_their_type() -> None:
    # rejects: equal bytes of another type under one digest
    a = torch.ones(2)
    assert sha256_of_tensors({"w": a}) != sha256_of_tensors({"w": a.view(torch.int32)})


def test_a_foreign_file_is_read_only_when_asked_for(tmp_path: Path) -> None:
    # rejects: weights of unknown origin taken for a checkpoint; NaN weights read because they have no digest
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="no unlearn metadata"):
        read_checkpoint(path)
    checkpoint = read_checkpoint(path, require_provenance=False)
    assert (checkpoint.kind, checkpoint.metadata, checkpoint.record) == ("foreign", None, None)
    assert checkpoint.tensors["w"].tolist() == [1, 1]
    safetensors.torch.save_file({"w": torch.tensor([float("nan")])}, path)
    with pytest.raises(CheckpointError, match=r"'w' .* NaN"):
        read_checkpoint(path, require_provenance=False)


# --- loading into a model ---------------------------------------------------------------------------------------------


MISFITS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "shape": (lambda: nn.Sequential(nn.Linear(5, 2)), r"'0.weight' has shape \(2, 4\) in the file and \(2, 5\)"),
    "missing": (lambda: nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)), "the model has 1.weight, 1.bias, the file"),
    "unknown": (lambda: nn.Sequential(nn.Linear(4, 2, bias=False)), "the file has 0.bias, the model has not"),
    "type": (lambda: nn.Sequential(nn.Linear(4, 2)).double(), r"float32 in the file .* model.to\(torch.float32\)"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_model_that_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    # rejects: strict=False, silent casts, and a list of 300 names for an answer
    save_checkpoint(tmp_path / "a.safetensors", nn.Sequential(nn.Linear(4, 2)))
    build, message = MISFITS[case]
    with pytest.raises(CheckpointError, match=message):
        load_weights(build(), read_checkpoint(tmp_path / "a.safetensors"))


def saved_mlp(path: Path, **options: Any) -> Checkpoint:
    from unlearn.models import build_model

    spec = {"name": "mlp", "options": {"inputs": 4, "classes": 3, "widths": [5]}}
    save_checkpoint(path, build_model("mlp", seed=3, inputs=4, classes=3, widths=[5]), spec=spec, **options)
    return read_checkpoint(path)


def test_a_model_of_the_package_is_rebuilt_and_the_global_seed_left(tmp_path: Path) -> None:
    # rejects: a checkpoint that needs its script to be read; draws from the caller's generator
    checkpoint = saved_mlp(tmp_path / "a.safetensors")
    state = torch.get_rng_state()
    model = load_weights(None, checkpoint)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(same_bits(model.state_dict()[k], v) for k, v in checkpoint.tensors.items())


def test_the_model_is_inherited_from_a_parent_of_the_same_layout_only(tmp_path: Path) -> None:
    # rejects: an edited checkpoint that forgot its model, and one that claims a model it has not
    parent = saved_mlp(tmp_path / "a.safetensors")
    save_checkpoint(tmp_path / "b.safetensors", parent.tensors, parent=parent.path)
    save_checkpoint(tmp_path / "c.safetensors", {"w": torch.ones(1)}, parent=parent.path)
    assert read_metadata(tmp_path / "b.safetensors")["model"] == parent.spec
    assert "model" not in read_metadata(tmp_path / "c.safetensors")


def test_without_a_model_and_without_its_name_there_is_one_clear_error(original: Path) -> None:
    # rejects: a guess at the architecture
    with pytest.raises(CheckpointError, match="pass model="):
        load_weights(None, read_checkpoint(original))


def test_a_file_can_not_make_us_import_and_call_a_function(tmp_path: Path) -> None:
    # rejects: a checkpoint that runs a command because its model is called 'os:system'
    touched = tmp_path / "touched"
    spec = {"name": "os:system", "options": {"command": f"touch {touched}"}}
    save_checkpoint(tmp_path / "a.safetensors", {"w": torch.ones(1)}, spec=spec)
    with pytest.raises(CheckpointError, match="not imported on a file's word; pass model="):
        load_weights(None, read_checkpoint(tmp_path / "a.safetensors"))
    assert not touched.exists()


# --- writing ----------------------------------------------------------------------------------------------------------


def raise_full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_part(
    original: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    # rejects: writing into the file itself; a .part left to fill the disk further
    before = original.read_bytes()
    monkeypatch.setattr(os, call, raise_full_disk)
    with pytest.raises(FolderError, match=r"original\.safetensors.*disk is full.*free some space"):
        save_checkpoint(original, network(9))
    assert original.read_bytes() == before
    assert [file.name for file in original.parent.iterdir()] == [original.name]


def test_an_interrupt_passes_and_leaves_the_old_file_and_no_part(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # rejects: Ctrl-C turned into another error, or leaving half a file behind
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = original.read_bytes()
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(original, network(9))
    assert original.read_bytes() == before
    assert [file.name for file in original.parent.iterdir()] == [original.name]


def test_a_kill_while_writing_leaves_the_old_file_and_the_next_write_cleans_up(original: Path) -> None:
    # rejects: a stale .part that blocks every later write, or a final name that was ever partly written
    before = original.read_bytes()
    code = (
        "import os, sys, signal; from unlearn.atomic import write_atomically\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(sys.argv[1], b'x' * 100_000)"
    )
    assert subprocess.run([sys.executable, "-c", code, original], check=False).returncode == -9
    assert original.read_bytes() == before
    save_checkpoint(original, network(9))
    assert read_checkpoint(original).kind == "original"
    assert [file.name for file in original.parent.iterdir()] == [original.name]


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # rejects: a rename before the flush, after which a power cut leaves an empty file under the final name
    calls: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        calls.append("folder" if os.path.isdir(descriptor) else "file")
        sync(descriptor)

    def noted_replace(a: Path, b: Path) -> None:
        calls.append(f"{Path(a).name} -> {Path(b).name}")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_atomically(tmp_path / "a", b"1")
    assert calls == ["file", "a.part -> a", "folder"]


def test_folders_that_can_not_be_written_are_named(tmp_path: Path) -> None:
    # rejects: a bare OSError, or folders made up on the way
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path, message in [
        (tmp_path / "file" / "a", "its folder is a file"),
        (tmp_path / "absent" / "a", "its folder does not exist; create it first"),
        (tmp_path / "folder", "a folder has this name"),
        (tmp_path / ("x" * 300), "name is too long"),
        (Path("/"), "names no file"),
    ]:
        with pytest.raises(FolderError, match=message) as caught:
            write_atomically(path, b"1")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


# --- verify -----------------------------------------------------------------------------------------------------------


def outcome(path: Path) -> dict[str, bool | None]:
    return {check.name: check.ok for check in verify_checkpoint(path)}


def test_named_checks_of_a_whole_checkpoint(original: Path, edited: Path) -> None:
    # rejects: a check that says yes about what it has not looked at
    whole = {"header": True, "metadata": True, "tensors": True, "finite": True}
    assert outcome(original) == {**whole, "recipe": True, "parent": None}
    assert outcome(edited) == {**whole, "recipe": None, "parent": True}
    original.unlink()
    assert outcome(edited) == {**whole, "recipe": None, "parent": None}


def test_named_checks_point_at_the_damage(original: Path, edited: Path) -> None:
    # rejects: all checks failing together, or a parent that changed unnoticed
    save_checkpoint(original, network(7))
    assert outcome(edited)["parent"] is False
    whole = edited.read_bytes()
    edited.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert (outcome(edited)["metadata"], outcome(edited)["tensors"]) == (True, False)
    edited.write_bytes(whole)
    flip(edited, b"newton")
    assert (outcome(edited)["metadata"], outcome(edited)["tensors"]) == (False, None)
    edited.write_bytes(whole[:-1])
    assert outcome(edited)["header"] is False
    assert set(outcome(edited).values()) == {False, None}


def test_a_forged_recipe_is_found_by_its_own_sha256(original: Path) -> None:
    # rejects: a recipe whose text is not the one its sha256 names
    with_metadata(original, lambda m: m["recipe"].update(text="seed = 1\n"), sign=True)
    assert [name for name, ok in outcome(original).items() if ok is False] == ["recipe"]


def test_nothing_to_verify_is_an_error_not_a_no(tmp_path: Path) -> None:
    # rejects: a wrong path reported as a damaged checkpoint
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        verify_checkpoint(tmp_path / "absent")


# --- diff -------------------------------------------------------------------------------------------------------------


def test_a_diff_measures_each_tensor(tmp_path: Path) -> None:
    # rejects: norms in float32 or half precision; -0.0 and 0.0, or another type, called the same bits
    a, b = tmp_path / "a", tmp_path / "b"
    first = {"same": torch.ones(2), "half": torch.tensor([256.0, 0.0]).bfloat16(), "zero": torch.zeros(1)}
    second = {"same": torch.ones(2), "half": torch.tensor([258.0, 0.0]).bfloat16(), "zero": -torch.zeros(1)}
    save_checkpoint(a, {**first, "kind": torch.ones(1), "mine": torch.ones(1), "n": torch.tensor([3, 4])})
    rest = {"kind": torch.ones(1).double(), "yours": torch.ones(1), "n": torch.tensor([3, 6])}
    save_checkpoint(b, {**second, **rest}, rows=["x"])
    found = diff_checkpoints(a, b)
    changes = {c.name: (c.equal, c.largest, c.relative) for c in found.tensors}
    assert changes == {
        "same": (True, 0.0, 0.0),
        "half": (False, 2.0, 2 / 256),
        "zero": (False, 0.0, None),
        "kind": (False, None, None),
        "n": (False, 2.0, 0.4),
    }
    assert [c.note for c in found.tensors if c.name == "kind"] == ["float32 (1,) -> float64 (1,)"]
    assert (found.only_first, found.only_second) == (("mine",), ("yours",))
    assert found.metadata["kind"] == ("original", "edited")
    assert found.metadata["edit.rows"][0] is None
    assert "versions.torch" not in found.metadata
    assert not found.same_weights
    assert diff_checkpoints(a, a).same_weights
    assert diff_checkpoints(a, a).metadata == {}


# --- rollback ---------------------------------------------------------------------------------------------------------


def test_a_rollback_restores_the_parents_bytes_and_keeps_the_edit(original: Path, edited: Path) -> None:
    # rejects: a re-saved parent with other bytes; an edited file that is gone, or overwrites an older one
    parent, edit = original.read_bytes(), edited.read_bytes()
    done = rollback(edited)
    assert edited.read_bytes() == parent
    assert original.read_bytes() == parent
    assert done.kept == edited.with_name("edited.rolled-back.safetensors")
    assert done.kept.read_bytes() == edit
    edited.write_bytes(edit)
    again = rollback(edited)
    assert again.kept == edited.with_name("edited.rolled-back-2.safetensors")
    assert done.kept.read_bytes() == again.kept.read_bytes() == edit
    assert not list(edited.parent.glob("*.part"))


def test_a_rollback_to_a_new_file_leaves_the_edit(original: Path, edited: Path, tmp_path: Path) -> None:
    # rejects: --out that replaces what stands there
    edit = edited.read_bytes()
    done = rollback(edited, tmp_path / "back.safetensors")
    assert done.restored.read_bytes() == original.read_bytes()
    assert (edited.read_bytes(), done.kept) == (edit, None)
    with pytest.raises(FolderError, match="exists; give a new name"):
        rollback(edited, tmp_path / "back.safetensors")


def test_a_rollback_needs_the_parent_that_was_edited(original: Path, edited: Path, tmp_path: Path) -> None:
    # rejects: weights of some other run put in place because the file has the right name
    edit, parent = edited.read_bytes(), original.read_bytes()
    original.write_bytes(parent[:-1] + bytes([parent[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="not the parent that was edited"):
        rollback(edited)
    original.unlink()
    with pytest.raises(CheckpointError, match=r"can not read the parent .* parent="):
        rollback(edited)
    assert edited.read_bytes() == edit
    assert [file.name for file in edited.parent.iterdir()] == [edited.name]
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(parent)
    rollback(edited, parent=moved)
    assert edited.read_bytes() == parent
    with pytest.raises(CheckpointError, match="no parent, so there is nothing"):
        rollback(edited)


@pytest.mark.parametrize("name", ["../original.safetensors", "/etc/passwd", "a\\b", "", "."])
def test_a_parent_outside_the_folder_is_not_followed(edited: Path, name: str) -> None:
    # rejects: a file that makes rollback read from anywhere
    with_metadata(edited, lambda m: m["parent"].update(name=name), sign=True)
    with pytest.raises(CheckpointError, match="no plain file name"):
        rollback(edited)


def test_a_rollback_on_a_full_disk_changes_nothing(
    original: Path, edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # rejects: an edited file moved aside before its replacement is written
    edit = edited.read_bytes()
    monkeypatch.setattr(os, "fsync", raise_full_disk)
    with pytest.raises(FolderError, match="disk is full"):
        rollback(edited)
    assert edited.read_bytes() == edit
    assert sorted(file.name for file in edited.parent.iterdir()) == [edited.name, original.name]


def test_a_rollback_whose_last_flush_fails_keeps_the_edit(edited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # rejects: the only copy of the edit removed although its place was already taken
    edit, sync = edited.read_bytes(), os.fsync

    def fail_on_folder(descriptor: int) -> None:
        if os.path.isdir(descriptor):
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_on_folder)
    with pytest.raises(FolderError, match="is written, but"):
        rollback(edited)
    assert edited.with_name("edited.rolled-back.safetensors").read_bytes() == edit


def test_a_rollback_works_where_there_are_no_hard_links(edited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # rejects: a rollback that fails on a FAT disk, or overwrites there
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    edit = edited.read_bytes()
    taken = edited.with_name("edited.rolled-back.safetensors")
    taken.write_bytes(b"mine")
    done = rollback(edited)
    assert taken.read_bytes() == b"mine"
    assert done.kept is not None
    assert done.kept.read_bytes() == edit


def test_a_checkpoint_is_not_its_own_parent(original: Path) -> None:
    # rejects: overwriting the parent, after which there is no way back
    link = original.with_name("link.safetensors")
    link.symlink_to(original)
    for path in (original, link):
        with pytest.raises(InputError, match="its own parent"):
            save_checkpoint(path, network(1), parent=original)


def test_a_damaged_parent_is_refused_when_the_edit_is_saved(original: Path) -> None:
    # rejects: the sha256 of a damaged file recorded as the way back
    whole = original.read_bytes()
    original.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="do not match their digest"):
        save_checkpoint(original.with_name("b"), network(1), parent=original)


# --- import -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_a_state_dictionary_is_imported(tmp_path: Path, wrapper: str | None) -> None:
    # rejects: tensors changed on the way, or an optimizer's state taken for weights
    state = network().state_dict()
    source, out = tmp_path / "a.pt", tmp_path / "a.safetensors"
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3, "optimizer": {"lr": 0.1}}, source)
    digest = import_state_dict(source, out)
    checkpoint = read_checkpoint(out)
    assert (checkpoint.kind, checkpoint.digest) == ("imported", digest)
    assert checkpoint.metadata is not None
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    assert checkpoint.metadata["source"] == {"name": "a.pt", "sha256": sha256, "entry": wrapper}
    assert all(same_bits(checkpoint.tensors[k], v) for k, v in state.items())


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_a_pickled_module_is_refused_and_not_run(tmp_path: Path) -> None:
    # rejects: torch.load without weights_only, which runs what the file says
    source, out, touched = tmp_path / "a.pt", tmp_path / "a.safetensors", tmp_path / "touched"
    for content in (network(), {"state_dict": network()}, {"a": Payload(f"touch {touched}")}):
        torch.save(content, source)
        with pytest.raises(CheckpointError, match=r"pickled Python objects.*save model\.state_dict\(\)") as caught:
            import_state_dict(source, out)
        assert "\n" not in str(caught.value)
    assert not touched.exists()
    assert not out.exists()


def test_what_holds_no_weights_is_refused_with_one_line(tmp_path: Path) -> None:
    # rejects: PyTorch's page of advice, or a checkpoint of a training state's numbers
    source, out = tmp_path / "a.pt", tmp_path / "a.safetensors"
    contents: list[tuple[Any, str]] = [
        ([torch.ones(1)], "holds list"),
        ({"lr": 0.1}, "'lr' .* is float"),
        ({}, "no tensors"),
        ({"w": torch.tensor(float("inf"))}, "'w' is NaN or infinite"),
    ]
    for content, message in contents:
        torch.save(content, source)
        with pytest.raises((CheckpointError, InputError), match=message):
            import_state_dict(source, out)
    torch.save(network().state_dict(), source)
    whole = source.read_bytes()
    for damaged in (b"", b"hello world", whole[:100], whole[:-30]):
        source.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="no PyTorch file, or it is damaged"):
            import_state_dict(source, out)
    with pytest.raises(CheckpointError, match="No such file"):
        import_state_dict(tmp_path / "absent.pt", out)
    assert not out.exists()


def test_the_header_is_read_without_the_tensors(original: Path) -> None:
    # rejects: showing a 7 GB checkpoint by reading 7 GB
    whole = original.read_bytes()
    original.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    header = read_header(original)
    assert header.layout["0.weight"] == ("F32", (3, 4))
    assert header.size == len(whole)
    assert read_metadata(original)["kind"] == "original"
