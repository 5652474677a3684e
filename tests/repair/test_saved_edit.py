"""An edit written to a checkpoint and read again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from repair_cases import STEPS, same_bits, small_mlp, training

import unlearn
from unlearn.checkpoint import read_checkpoint
from unlearn.errors import RecordError
from unlearn.repair import Changes, apply_changes
from unlearn.training import TrainingRecord

SPEC = {"name": "mlp", "options": {"inputs": 64, "classes": 10, "widths": [16]}}


def test_an_edit_goes_through_a_checkpoint(tmp_path: Path) -> None:
    model, rows, record = training(tmp_path)
    unlearn.save_checkpoint(tmp_path / "original.safetensors", model, record=record, spec=SPEC)
    changes = Changes((rows.ids[3], rows.ids[8]), {rows.ids[5]: (int(rows.labels[5]) + 1) % 10})
    edit = apply_changes(model, rows, changes, record=record, budget=2, method="newton")
    path = tmp_path / "edited.safetensors"
    unlearn.save_checkpoint(path, edit.model, parent=tmp_path / "original.safetensors", edit=edit, record=record)
    for architecture in (None, small_mlp(seed=9)):
        loaded, _ = unlearn.load_checkpoint(path, architecture)
        assert same_bits(loaded, edit.model)
        assert not loaded.training
    said = read_checkpoint(path).edit
    assert said is not None
    assert (said["method"], said["action"], said["start_step"]) == ("rewind-newton-replay", "mixed", 4 * STEPS)
    assert said["data_fingerprint"] == rows.fingerprint
    assert said["cost"]["total"] == pytest.approx(edit.cost.total)
    assert said["steps"][0]["accepted"] is True
    hashed = {row: hashlib.sha256(row.encode()).hexdigest() for row in changes.ids}
    assert {(row["id_sha256"], row["action"], row["label"]) for row in said["rows"]} == {
        (hashed[changes.ids[0]], "remove", None),
        (hashed[changes.ids[1]], "remove", None),
        (hashed[changes.ids[2]], "relabel", changes.relabelled[changes.ids[2]]),
    }
    text = path.read_bytes()
    assert not any(row.encode() in text for row in changes.ids)


def test_the_record_comes_back_with_its_snapshots_beside_the_file(tmp_path: Path) -> None:
    model, rows, record = training(tmp_path)
    unlearn.save_checkpoint(tmp_path / "original.safetensors", model, record=record, spec=SPEC)
    loaded, again = unlearn.load_checkpoint(tmp_path / "original.safetensors")
    assert again is not None
    assert again.to_dict() == record.to_dict()
    assert again.order is not None
    assert again.order.digest == record.order.digest  # type: ignore[union-attr]
    one = unlearn.remove(model, rows, rows.ids[:4], record=record, budget=2)
    two = unlearn.remove(loaded, rows, rows.ids[:4], record=again, budget=2)
    assert two.start_step == 4 * STEPS
    assert same_bits(one.model, two.model)


def test_a_checkpoint_moved_away_from_its_snapshots(tmp_path: Path) -> None:
    """Rejects an edit of the final weights where the record promises snapshots: they are missed by name."""
    model, rows, record = training(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    unlearn.save_checkpoint(tmp_path / "elsewhere" / "a.safetensors", model, record=record, spec=SPEC)
    loaded, moved = unlearn.load_checkpoint(tmp_path / "elsewhere" / "a.safetensors")
    assert moved is not None
    assert moved.order is None
    with pytest.raises(RecordError, match="put snapshots/ beside the checkpoint"):
        unlearn.remove(loaded, rows, rows.ids[:4], record=moved, budget=2)
    assert unlearn.remove(loaded, rows, rows.ids[:4], record=moved, budget=0).method == "newton"
    with pytest.raises(RecordError, match="is missing"):
        moved.snapshot(4 * STEPS)


def test_a_record_made_by_hand_and_none(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    record = TrainingRecord("sgd", 0.1, 7, momentum=0.5, weight_decay=1e-3)
    unlearn.save_checkpoint(tmp_path / "a.safetensors", model, record=record)
    _, again = unlearn.load_checkpoint(tmp_path / "a.safetensors", model)
    assert again is not None
    assert again.damping() == record.damping()
    assert again.folder == tmp_path
    unlearn.save_checkpoint(tmp_path / "b.safetensors", model)
    assert unlearn.load_checkpoint(tmp_path / "b.safetensors", model)[1] is None
