"""Changes: what can not be meant is refused in one line, and decisions survive a round trip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unlearn.data import Rows
from unlearn.errors import InputError, RowNotFoundError
from unlearn.repair import Changes

IDS = ("a", "b", "c", "d", "e")


def rows() -> Rows:
    return Rows.from_tensors(torch.eye(5), torch.tensor([0, 0, 1, 1, 2]), ids=IDS, classes=3)


BAD: dict[str, tuple[Changes, type[Exception], str]] = {
    "nothing": (Changes(), InputError, "no row is changed"),
    "unknown id": (Changes(removed=("a", "zz")), RowNotFoundError, "1 of 2 ids not in data: 'zz'"),
    "unknown id to relabel": (Changes(relabelled={"zz": 1}), RowNotFoundError, "'zz'"),
    "removed twice": (Changes(removed=("a", "a")), InputError, "named twice"),
    "removed and relabelled": (Changes(removed=("a",), relabelled={"a": 1}), InputError, "named twice"),
    "label as it is": (Changes(relabelled={"a": 1, "b": 0}), InputError, "1 rows carry their new label already: 'b'"),
    "label outside": (Changes(relabelled={"a": 3}), InputError, r"label 3 for row 'a' is outside the classes 0..2"),
    "label negative": (Changes(relabelled={"a": -1}), InputError, "outside the classes"),
    "label no class": (Changes(relabelled={"a": 1.5}), InputError, "outside the classes"),
    "all rows": (Changes(removed=IDS), InputError, "all 5 rows of data would be removed"),
    "class emptied by removal": (Changes(removed=("e",)), InputError, "no row of class 2 would be left"),
    "class emptied by labels": (Changes(relabelled={"c": 0, "d": 2}), InputError, "no row of class 1 would be left"),
    "class emptied by both": (Changes(removed=("c",), relabelled={"d": 2}), InputError, "no row of class 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_meant_is_refused(case: str) -> None:
    changes, error, message = BAD[case]
    with pytest.raises(error, match=message) as found:
        changes.check(rows())
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("case", [case for case in BAD if case.startswith("class emptied")])
def test_a_class_may_be_emptied_on_request(case: str) -> None:
    BAD[case][0].check(rows(), allow_empty_class=True)


def test_removing_every_row_is_refused_even_then() -> None:
    with pytest.raises(InputError, match="all 5 rows"):
        Changes(removed=IDS).check(rows(), allow_empty_class=True)


def test_changes_are_applied_as_a_view() -> None:
    data = rows()
    edited = Changes(removed=("b",), relabelled={"d": 0}).apply(data)
    assert edited.ids == ("a", "c", "d", "e")
    assert edited.labels.tolist() == [0, 1, 0, 2]
    assert data.labels.tolist() == [0, 0, 1, 1, 2]


def test_regression_labels_may_be_any_finite_number() -> None:
    data = Rows.from_tensors(torch.eye(3), torch.tensor([0.5, 1.0, 2.0]))
    Changes(relabelled={"0": -3.25}).check(data)
    for label in (0.5, float("nan"), float("inf")):
        with pytest.raises(InputError):
            Changes(relabelled={"0": label}).check(data)


ODD_IDS = ("a,b", 'say "yes"', " space ", "#1", "größe", "", "two\nlines", "unit\x1c\u2028sep")


def test_round_trip_of_odd_ids(tmp_path: Path) -> None:
    """Lines were split before the CSV was read: ids with a newline lost it, \\x1c ended a row."""
    changes = Changes(ODD_IDS[::2], {row: k for k, row in enumerate(ODD_IDS[1::2])})
    changes.save(tmp_path / "decisions.csv")
    assert Changes.load(tmp_path / "decisions.csv") == changes


def test_round_trip_of_numbers(tmp_path: Path) -> None:
    changes = Changes(relabelled={"a": 0.1 + 0.2, "b": -3, "c": 1e-9})
    changes.save(tmp_path / "decisions.csv")
    assert Changes.load(tmp_path / "decisions.csv") == changes


def decisions(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "decisions.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_rows_to_keep_and_other_columns_are_passed_over(tmp_path: Path) -> None:
    text = "# unlearn decisions 1\nscore,id,label,action\n0.9,a,,remove\n0.8,b,1,keep\n\n0.7,c,2,relabel\n"
    assert Changes.load(decisions(tmp_path, text)) == Changes(("a",), {"c": 2})


def test_a_file_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    """With a byte order mark, \\r\\n, and the comment line lost."""
    assert Changes.load(decisions(tmp_path, "id,action,label\r\na,relabel,2\r\n", "utf-8-sig")) == Changes((), {"a": 2})
    text = "# unlearn decisions 1\r\nid,action,label\r\na,relabel,2\r\n"
    assert Changes.load(decisions(tmp_path, text)) == Changes((), {"a": 2})


WRONG_FILES = {
    "unknown action": ("a,drop,", "line 3: unknown action 'drop'; known: remove, relabel, remove-class, keep"),
    "no action": ("a", "line 3: unknown action None"),
    "label missing": ("a,relabel,", "line 3: relabel of 'a' needs a number as label, not ''"),
    "label a word": ("a,relabel,seven", "not 'seven'"),
    "label with two signs": ("a,relabel,--3", "not '--3'"),
    "label a superscript": ("a,relabel,²", "not '²'"),
    "label not finite": ("a,relabel,nan", "not 'nan'"),
    "class with an id": (
        "a,remove-class,1",
        "line 3: remove-class takes a class as label, once, and no id; got id 'a'",
    ),
    "class without a label": (",remove-class,", "and no id; got id '' and label ''"),
    "class of half": (",remove-class,1.5", "label '1.5'"),
    "class twice": (",remove-class,1\n,remove-class,1", "line 4: remove-class takes a class as label, once"),
    "twice": ("a,remove,\na,relabel,1", r"line 4: row 'a' is named twice \(remove, relabel\)"),
    "kept and removed": ("a,keep,\na,remove,", "line 4: row 'a' is named twice"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_decisions_are_refused_with_the_line(tmp_path: Path, case: str) -> None:
    text, message = WRONG_FILES[case]
    path = decisions(tmp_path, f"# unlearn decisions 1\nid,action,label\n{text}\n")
    with pytest.raises(InputError, match=message) as found:
        Changes.load(path)
    assert "\n" not in str(found.value)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"starts with '# unlearn decisions 2'; this release reads"):
        Changes.load(decisions(tmp_path, "# unlearn decisions 2\nid,action,label\n"))
    with pytest.raises(InputError, match=r"has columns \['row', 'do'\]; decisions need id, action, label"):
        Changes.load(decisions(tmp_path, "row,do\na,remove\n"))
    with pytest.raises(InputError, match="decisions need id, action, label"):
        Changes.load(decisions(tmp_path, ""))
    with pytest.raises(InputError, match="can not read decisions"):
        Changes.load(tmp_path / "missing.csv")
    with pytest.raises(InputError, match="can not read decisions"):
        Changes.load(decisions(tmp_path, "größe", "latin-1"))


def test_mixed_decisions_go_through_a_file(tmp_path: Path) -> None:
    changes = Changes(("a",), {"b": 2}, (1,))
    changes.save(tmp_path / "decisions.csv")
    assert Changes.load(tmp_path / "decisions.csv") == changes
    named = changes.on(rows())
    assert named.removed == ("a", "c", "d")
    named.save(tmp_path / "decisions.csv")
    assert Changes.load(tmp_path / "decisions.csv") == named
    assert named.on(rows()) == named


def test_a_row_of_a_removed_class_that_is_relabelled_goes_on_under_its_new_label() -> None:
    named = Changes(relabelled={"c": 0}, removed_classes=(1,)).on(rows())
    assert named.removed == ("d",)
    named.check(rows())
    assert named.apply(rows()).labels.tolist() == [0, 0, 0, 2]


def test_removing_a_class_does_not_allow_another_to_be_emptied() -> None:
    data = Rows.from_tensors(torch.eye(5), torch.tensor([0, 0, 1, 2, 3]), ids=IDS, classes=4)
    with pytest.raises(InputError, match="no row of class 3 would be left"):
        Changes(removed=("e",), removed_classes=(1,)).on(data).check(data)


BAD_CLASSES: dict[str, tuple[Changes, str]] = {
    "not there": (Changes(removed_classes=(4,)), "no row of data is of class 4; its classes are 0, 1, 2"),
    "relabelled to it": (Changes(relabelled={"a": 1}, removed_classes=(1,)), "relabelled to class 1, which is removed"),
    "all but one": (Changes(removed_classes=(0, 2)), "would be of class 1 alone; at least two classes must be left"),
    "all": (Changes(removed_classes=(0, 1, 2)), "would be of no class; at least two"),
}


@pytest.mark.parametrize("case", BAD_CLASSES)
def test_classes_that_can_not_be_removed(case: str) -> None:
    changes, message = BAD_CLASSES[case]
    with pytest.raises(InputError, match=message) as found:
        changes.on(rows())
    assert "\n" not in str(found.value)
    numbers = Rows.from_tensors(torch.eye(3), torch.tensor([0.5, 1.0, 2.0]))
    with pytest.raises(InputError, match="data has no classes, so none can be removed"):
        changes.on(numbers)


def test_the_action_says_what_is_done() -> None:
    assert Changes(("a",)).action == "remove"
    assert Changes((), {"a": 1}).action == "relabel"
    assert Changes(("a",), {"b": 1}).action == "mixed"
    assert Changes(removed_classes=(1,)).action == "remove-class"
    assert Changes(("a",), {"b": 1}, (1,)).action == "mixed"
    assert not Changes().asked
    assert Changes(removed_classes=(0,)).asked
