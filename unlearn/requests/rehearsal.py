"""A rehearsal: simulated weeks of requests on a trained run, by a recipe; made-up subjects and a clock that is set."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from unlearn.atomic import write_atomically
from unlearn.checkpoint import Check
from unlearn.data import Rows, draws
from unlearn.errors import FolderError, InputError
from unlearn.pipeline import Run
from unlearn.recipe import RehearsalSection
from unlearn.requests.audit import audit
from unlearn.requests.decisions import approve, refuse
from unlearn.requests.desk import FOLDER, LEDGER, Desk
from unlearn.requests.heads import export_head
from unlearn.requests.keys import Keys, make_keys
from unlearn.requests.process import process
from unlearn.requests.state import State
from unlearn.requests.submit import submit

SUBJECTS = "subjects.csv"
OFFICER = "rehearsal"


@dataclass(frozen=True)
class Rehearsal:
    """How a rehearsal went.

    Attributes:
        state: what the ledger says at its end.
        log: (day, what happened), in order.
        checks: of the audit at the end, against the head exported last.
    """

    state: State
    log: tuple[tuple[int, str], ...]
    checks: tuple[Check, ...]


def made_up_subjects(rows: Rows, section: RehearsalSection) -> bytes:
    """Return a subject file: rows dealt by id to ``0000``, ``0001``, ..., as evenly as goes."""
    order = draws.permutation(section.subject_seed, rows.ids, "subjects")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", section.column))
    writer.writerows(sorted((rows.ids[row], f"{place % section.subjects:04d}") for place, row in enumerate(order)))
    return text.getvalue().encode()


def rehearse(run: Run, keys: Keys, *, tell: Callable[[int, str], None] | None = None) -> Rehearsal:
    """Play the letters of the run's recipe: submit, process every so many days, decide what is held, audit.

    Args:
        run: trained, without a ledger.
        keys: outside the run.
        tell: called with day and what happened.

    Raises:
        InputError: the recipe has no rehearsal.
        FolderError: the run has a ledger already.
    """
    section = run.recipe.requests.rehearsal
    if section is None:
        raise InputError(f"recipe {run.recipe.name!r} has no [requests.rehearsal]; take one that has")
    if (run.folder / FOLDER / LEDGER).exists():
        raise FolderError(f"{str(run.folder)!r} has a ledger already; rehearse in a new run")
    subjects = keys.folder / SUBJECTS
    write_atomically(subjects, made_up_subjects(run.data, section))
    start = datetime(section.start.year, section.start.month, section.start.day, 9, tzinfo=timezone.utc)
    log: list[tuple[int, str]] = []
    words: list[str] = list(section.words)
    day = 0

    def note(what: str) -> None:
        log.append((day, what))
        if tell is not None:
            tell(day, what)

    clock: Callable[[], datetime] = lambda: start + timedelta(days=day)  # noqa: E731
    with Desk.open(run.folder, keys=keys, who=OFFICER, clock=clock, create=True, device=run.device) as desk:
        last = max(letter.day for letter in section.letters)
        for day in range(last + 2 * section.process_every + 1):
            for letter in (letter for letter in section.letters if letter.day == day):
                asked = letter.model_dump(exclude={"day"})
                done = submit(desk, subject_file=subjects if letter.subjects else None, **asked)
                held = f"{len(done.request.rows)} rows" if done.request.rows else "not held"
                note(f"{done.request.name} {'comes in' if done.new else 'comes in again'}: {letter.action}, {held}")
            if day % section.process_every == section.process_every - 1:
                _work(desk, words, note)
        head = export_head(desk, keys.folder / "head.json")
        state = desk.state()
    return Rehearsal(state, tuple(log), tuple(audit(run.folder, head=head, public_key=keys.public)))


def _work(desk: Desk, words: list[str], note: Callable[[str], None]) -> None:
    before = len(desk.state().batches)
    state = process(desk)
    for batch in list(state.batches.values())[before:]:
        names = ", ".join(state.requests[number].name for number in batch.requests)
        outcome = f", {batch.outcome}" if batch.outcome else ""
        stage = "released" if batch.standing else batch.stage
        note(f"batch {batch.number} ({names}): {batch.method}{outcome}, {stage}")
    if state.held is not None:
        held, word = state.held, words.pop(0) if len(words) > 1 else words[0]
        (approve if word == "approve" else refuse)(desk, held.requests[0], reason=f"{held.outcome} in a rehearsal")
        note(f"batch {held.number}: {word}d")


def rehearsal_keys(folder: str | Path | None) -> Keys:
    """Return the keys in a folder, or new ones in a temporary folder."""
    if folder is not None:
        return Keys.load(folder)
    return make_keys(Path(tempfile.mkdtemp(prefix="unlearn-rehearsal-")) / "keys")
