"""A review: flagged rows, what a person decided on them, and the decisions file in which it ends."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.atomic import write_atomically
from unlearn.errors import FolderError, InputError, RowNotFoundError, did_you_mean
from unlearn.repair import Changes
from unlearn.review.journal import Journal

ACTIONS = ("keep", "remove", "relabel")
JOURNAL = "review.jsonl"
DECISIONS = "decisions.csv"
BEFORE = "decisions-before-review.csv"


@dataclass(frozen=True)
class FlaggedRow:
    """A row to judge.

    Attributes:
        id: row id.
        score: the detector's; larger is more suspicious.
        given: its label in training.
        suggested: other labels, the most likely first.
        predicted: what the model says.
        probability: of the predicted class.
        alike: rows that taught the model the same as this one, as tables with ``id``, ``given`` and ``influence``.
        against: rows that taught it otherwise.
    """

    id: str
    score: float
    given: int
    suggested: Sequence[int]
    predicted: int
    probability: float
    alike: Sequence[Mapping[str, Any]] = ()
    against: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Decision:
    """What is to be done with a row: ``keep``, ``remove``, or ``relabel`` with a label."""

    action: str
    label: int | None = None


class Review:
    """Decisions on flagged rows, each on the disk before the call that makes it returns.

    Args:
        folder: where the journal is and ``decisions.csv`` is written.
        rows: the flagged rows, in the order in which they are shown.
        classes: number of classes.
        data: fingerprint of the training rows.

    Attributes:
        written: whether ``decisions.csv`` says what is decided.

    Raises:
        InputError: there is no row.
        FolderError: the folder has the journal of other rows, or another process has it.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> review = Review(Path(folder.name), [FlaggedRow("a", 1.0, 3, [5], 5, 0.9)], classes=10, data="00")
    >>> review.decide("a", "relabel", 5)
    >>> review.finish().relabelled, review.undo(), review.decisions
    ({'a': 5}, 'a', {})
    >>> review.close(); folder.cleanup()
    """

    def __init__(self, folder: Path, rows: Sequence[FlaggedRow], *, classes: int, data: str) -> None:
        if not rows:
            raise InputError(
                f"no row of {str(folder)!r} is flagged, so there is nothing to review; state detect.count in the recipe"
            )
        self.folder, self.rows, self.classes = folder, tuple(rows), classes
        self.place = {row.id: k for k, row in enumerate(self.rows)}
        self._lock = threading.RLock()
        self._journal = Journal(folder / JOURNAL, _subject(rows, data))
        self._made: list[tuple[str, Decision]] = []
        self.written = False
        try:
            for entry in self._journal.entries:
                self._replay(entry)
        except BaseException:
            self._journal.close()
            raise
        self.written = bool(self._made) and self._stands()

    @property
    def decisions(self) -> dict[str, Decision]:
        """The present decision of each decided row."""
        with self._lock:
            return dict(self._made)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows there are, are decided on, and for each action."""
        made = [decision.action for decision in self.decisions.values()]
        return {"rows": len(self.rows), "decided": len(made), **{action: made.count(action) for action in ACTIONS}}

    def decide(self, row: str, action: str, label: int | None = None) -> None:
        """Decide on a row; an earlier decision is replaced.

        Raises:
            RowNotFoundError: the row is not flagged.
            InputError: an unknown action, a label that is no class or the given one, or a label without relabel.
            FolderError: the disk does not take it; then nothing is decided.
        """
        if row not in self.place:
            raise RowNotFoundError(f"row {row!r} is not flagged; decide on a row of the review")
        if action not in ACTIONS:
            raise InputError(f"unknown action {action!r}; {did_you_mean(str(action), ACTIONS)}")
        if action == "relabel":
            self._check_label(row, label)
        elif label is not None:
            raise InputError(f"{action} takes no label, but {label!r} came; relabel the row, or leave the label out")
        entry: dict[str, Any] = {"row": row, "action": action}
        with self._lock:
            self._journal.append(entry if label is None else {**entry, "label": label})
            self._made.append((row, Decision(action, label)))
            self.written = False

    def undo(self) -> str | None:
        """Take back the last decision; the row's earlier one, if any, holds again.

        Returns:
            The id of the row, or None where nothing is decided.

        Raises:
            FolderError: the disk does not take it; then nothing is taken back.
        """
        with self._lock:
            if not self._made:
                return None
            self._journal.append({"undo": self._made[-1][0]})
            self.written = False
            return self._made.pop()[0]

    def next_open(self, after: int) -> int | None:
        """Return the place of the next row without a decision, going round after the last; None if there is none."""
        decided = self.decisions
        order = [*range(after + 1, len(self.rows)), *range(min(after + 1, len(self.rows)))]
        return next((k for k in order if self.rows[k].id not in decided), None)

    def finish(self) -> Changes:
        """Write ``decisions.csv``; rows without a decision are not in it, and stay as they are.

        What stood there before the review is kept once, as ``decisions-before-review.csv``.

        Raises:
            InputError: nothing is decided.
            FolderError: the file can not be written.
        """
        with self._lock:
            if not self._made:
                raise InputError("no row is decided on yet, so there is nothing to write; decide on at least one")
            path, before = self.folder / DECISIONS, self.folder / BEFORE
            if path.exists() and not before.exists():
                write_atomically(before, path.read_bytes())
            changes = self._changes()
            changes.save(path, kept=self._kept())
            self.written = True
            return changes

    def close(self) -> None:
        """Let another process go on with the review."""
        self._journal.close()

    def _changes(self) -> Changes:
        made = self.decisions
        found = [(row.id, made[row.id]) for row in self.rows if row.id in made]
        return Changes(
            removed=tuple(row for row, one in found if one.action == "remove"),
            relabelled={row: one.label for row, one in found if one.label is not None},
        )

    def _stands(self) -> bool:
        path = self.folder / DECISIONS
        return path.exists() and path.read_bytes() == self._changes().to_csv(self._kept()).encode()

    def _kept(self) -> tuple[str, ...]:
        made = self.decisions
        return tuple(row.id for row in self.rows if row.id in made and made[row.id].action == "keep")

    def _check_label(self, row: str, label: object) -> None:
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < self.classes:
            raise InputError(f"label {label!r} is no class; give a whole number from 0 to {self.classes - 1}")
        if label == self.rows[self.place[row]].given:
            raise InputError(f"row {row!r} carries label {label} already; keep it, or choose another label")

    def _replay(self, entry: Mapping[str, Any]) -> None:
        if "undo" in entry and self._made:
            self._made.pop()
        elif entry.get("row") in self.place and entry.get("action") in ACTIONS:
            self._made.append((entry["row"], Decision(entry["action"], entry.get("label"))))
        else:
            raise FolderError(
                f"{str(self._journal.path)!r} holds {json.dumps(entry)}, which is no decision; move it away"
            )


def _subject(rows: Sequence[FlaggedRow], data: str) -> str:
    """Return what the decisions are about: the training rows, and those of them that are flagged."""
    text = json.dumps([data, *([row.id, row.given] for row in rows)])
    return hashlib.sha256(text.encode()).hexdigest()
