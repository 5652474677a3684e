"""Evidence on a run's edit, without retraining."""

from __future__ import annotations

from typing import Any

from unlearn.atomic import read_json, write_atomically
from unlearn.pipeline.run import Run
from unlearn.verification import Evidence, evidence

EVIDENCE_FILE = "evidence.json"


def gather_evidence(run: Run) -> Evidence:
    """Hold the run's edit against its test rows, and write ``evidence.json``.

    What a row looks like is the class of its largest mean logit over training, where the trajectory was recorded.
    """
    edit, trajectory = run.edit(), run.trajectory
    looks_like = None
    if trajectory is not None:
        classes = dict(zip(trajectory.ids, trajectory.logits.argmax(1).tolist(), strict=True))
        looks_like = {row: classes[row] for row in edit.changes.ids if row in classes}
    found = evidence(edit, held_out=run.test, looks_like=looks_like)
    write_atomically(run.folder / EVIDENCE_FILE, found.to_json().encode())
    return found


def read_evidence(run: Run) -> dict[str, Any] | None:
    """Return the run's evidence as plain values; None if there is none."""
    path = run.folder / EVIDENCE_FILE
    return read_json(path) if path.exists() else None
