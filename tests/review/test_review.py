"""What a person decides, and the file in which it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from review_cases import flagged

from unlearn.errors import FolderError, InputError, RowNotFoundError
from unlearn.repair import Changes
from unlearn.review import Review


@pytest.fixture
def review(tmp_path: Path) -> Review:
    return Review(tmp_path, flagged(5), classes=3, data="00")


def again(review: Review) -> Review:
    review.close()
    return Review(review.folder, review.rows, classes=review.classes, data="00")


def actions(review: Review) -> dict[str, tuple[str, int | None]]:
    return {row: (one.action, one.label) for row, one in review.decisions.items()}


def test_decisions_survive_and_the_last_on_a_row_holds(review: Review) -> None:
    review.decide("row-0", "keep")
    review.decide("row-1", "relabel", 2)
    review.decide("row-0", "remove")
    expected = {"row-0": ("remove", None), "row-1": ("relabel", 2)}
    assert actions(review) == actions(again(review)) == expected


def test_undo_goes_back_decision_by_decision_also_after_a_restart(review: Review) -> None:
    """Rejects an undo that forgets the row's earlier decision, and a replay that undoes the wrong one."""
    review.decide("row-0", "keep")
    review.decide("row-1", "remove")
    review.decide("row-0", "relabel", 1)
    review = again(review)
    assert review.undo() == "row-0"
    assert actions(again(review)) == {"row-0": ("keep", None), "row-1": ("remove", None)}
    review = again(review)
    assert [review.undo(), review.undo(), review.undo()] == ["row-1", "row-0", None]
    assert actions(again(review)) == {}


def test_counts_and_the_next_open_row(review: Review) -> None:
    for row, action, label in (("row-1", "keep", None), ("row-2", "relabel", 0), ("row-4", "remove", None)):
        review.decide(row, action, label)
    assert review.counts == {"rows": 5, "decided": 3, "keep": 1, "remove": 1, "relabel": 1}
    assert [review.next_open(at) for at in (-1, 0, 1, 3, 4)] == [0, 3, 3, 0, 0]
    review.decide("row-0", "keep")
    review.decide("row-3", "keep")
    assert review.next_open(2) is None


def test_it_ends_in_a_decisions_file(review: Review) -> None:
    (review.folder / "decisions.csv").write_text("what stood there before")
    review.decide("row-3", "relabel", 1)
    review.decide("row-0", "remove")
    review.decide("row-1", "keep")
    assert not review.written
    assert review.finish() == Changes(removed=("row-0",), relabelled={"row-3": 1})
    path = review.folder / "decisions.csv"
    assert path.read_text().splitlines()[1:] == ["id,action,label", "row-0,remove,", "row-3,relabel,1", "row-1,keep,"]
    assert Changes.load(path) == Changes(removed=("row-0",), relabelled={"row-3": 1})
    assert review.written
    assert again(review).written
    assert (review.folder / "decisions-before-review.csv").read_text() == "what stood there before"


def test_a_later_decision_is_not_yet_in_the_file_and_the_first_copy_stays(review: Review) -> None:
    (review.folder / "decisions.csv").write_text("what stood there before")
    review.decide("row-0", "keep")
    review.finish()
    review.decide("row-0", "remove")
    assert not review.written
    review = again(review)
    assert not review.written
    review.finish()
    review.undo()
    assert not review.written
    assert (review.folder / "decisions-before-review.csv").read_text() == "what stood there before"


REFUSED = {
    "another row": (("row-9", "keep", None), RowNotFoundError, "'row-9' is not flagged"),
    "action": (("row-0", "delete", None), InputError, "unknown action 'delete'; .*known: keep, relabel, remove"),
    "no label": (("row-0", "relabel", None), InputError, "label None is no class; .*from 0 to 2"),
    "no class": (("row-0", "relabel", 3), InputError, "label 3 is no class"),
    "below": (("row-0", "relabel", -1), InputError, "label -1 is no class"),
    "truth": (("row-0", "relabel", True), InputError, "label True is no class"),
    "text": (("row-0", "relabel", "1"), InputError, "label '1' is no class"),
    "the same": (("row-0", "relabel", 0), InputError, "carries label 0 already; keep it"),
    "label too many": (("row-0", "remove", 1), InputError, "remove takes no label, but 1 came"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_meant_is_refused_and_not_written(review: Review, case: str) -> None:
    wrong, error, message = REFUSED[case]
    journal = (review.folder / "review.jsonl").read_bytes()
    with pytest.raises(error, match=message):
        review.decide(*wrong)
    assert review.decisions == {}
    assert (review.folder / "review.jsonl").read_bytes() == journal


def test_nothing_to_review_and_nothing_decided(tmp_path: Path, review: Review) -> None:
    with pytest.raises(InputError, match="nothing to review"):
        Review(tmp_path, [], classes=3, data="00")
    with pytest.raises(InputError, match="no row is decided"):
        review.finish()
    assert not (review.folder / "decisions.csv").exists()


def test_the_journal_of_other_rows_or_other_data_is_refused(review: Review) -> None:
    review.close()
    for rows, data in ((flagged(4), "00"), (flagged(5), "01")):
        with pytest.raises(FolderError, match="begun on other rows"):
            Review(review.folder, rows, classes=3, data=data)
    (review.folder / "review.jsonl").open("a").write('{"row": "row-9", "action": "keep"}\n')
    with pytest.raises(FolderError, match="which is no decision"):
        again(review)
