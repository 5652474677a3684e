"""A review of the flagged rows of a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from unlearn.errors import FolderError
from unlearn.pipeline import Run
from unlearn.pipeline.appearance import Appearance
from unlearn.pipeline.flagged import NAME, read_flagged
from unlearn.review.review import DECISIONS, FlaggedRow, Review
from unlearn.review.shown import Shown


@contextmanager
def open_review(run: Run) -> Iterator[Shown]:
    """Open the review of a run where it was left.

    Args:
        run: whose rows are detected.

    Raises:
        InputError: no row is flagged.
        FolderError: rows are not detected yet, a file is damaged, or the review is open elsewhere.
    """
    facts = read_flagged(run)
    if facts["data"] != run.data.fingerprint:
        raise FolderError(f"{str(run.folder / NAME)!r} was written for other data; run `unlearn detect` again")
    try:
        rows = [FlaggedRow(**row) for row in facts["rows"]]
        run.data.positions([row.id for row in rows])
    except (TypeError, LookupError) as error:
        raise FolderError(f"{str(run.folder / NAME)!r} is damaged: {error}; run `unlearn detect` again") from error
    review = Review(run.folder, rows, classes=run.data.classes or 0, data=facts["data"])
    try:
        yield Shown(review, run.data, Appearance.of(run), run.recipe.name, _next(run), facts["neighbours"]["note"])
    finally:
        review.close()


def _next(run: Run) -> str:
    """Return the command that repairs by the decisions."""
    words: list[Any] = ["unlearn", "repair", "apply", run.folder, run.folder / DECISIONS]
    if (run.folder / "edited.safetensors").exists():
        words.append("--replace")
    return shlex.join(map(str, words))
