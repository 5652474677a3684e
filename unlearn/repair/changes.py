"""What is asked for: rows to remove, rows to relabel, classes to remove; checked once, before anything is computed."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn.atomic import write_atomically
from unlearn.data import Rows
from unlearn.errors import InputError, some

HEADER = "# unlearn decisions 1"
COLUMNS = ("id", "action", "label")
ACTIONS = ("remove", "relabel", "remove-class", "keep")


@dataclass(frozen=True)
class Changes:
    """Rows to remove, rows to relabel, classes to remove.

    Attributes:
        removed: ids.
        relabelled: new label by id; numbers of NumPy and torch become Python's.
        removed_classes: classes of which no row is to be left; :meth:`on` names their rows in ``removed``.

    >>> changes = Changes(removed=("a",), relabelled={"b": 3})
    >>> changes.ids, changes.action
    (('a', 'b'), 'mixed')
    """

    removed: tuple[str, ...] = ()
    relabelled: Mapping[str, int | float] = field(default_factory=dict)
    removed_classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "relabelled", {row: _plain(label) for row, label in self.relabelled.items()})
        object.__setattr__(self, "removed_classes", tuple(map(_plain, self.removed_classes)))

    @property
    def asked(self) -> bool:
        """Whether anything is to be changed."""
        return bool(self.ids or self.removed_classes)

    @property
    def ids(self) -> tuple[str, ...]:
        """All changed rows, the removed first."""
        return (*self.removed, *self.relabelled)

    def hashed_rows(self) -> list[dict[str, Any]]:
        """Return what a checkpoint may say of the rows: sha256 of the id, action and new label, in a fixed order."""
        asked = [(row, "remove", None) for row in self.removed]
        asked += [(row, "relabel", label) for row, label in self.relabelled.items()]  # type: ignore[misc]
        named = ((hashlib.sha256(row.encode()).hexdigest(), action, label) for row, action, label in asked)
        return [dict(zip(("id_sha256", "action", "label"), row, strict=True)) for row in sorted(named)]

    @property
    def action(self) -> str:
        """``remove``, ``relabel``, ``mixed``, or ``remove-class`` where rows go because of their class."""
        removal = "remove-class" if self.removed_classes else "remove" if self.removed else ""
        return "mixed" if removal and self.relabelled else removal or "relabel"

    def on(self, data: Rows) -> Changes:
        """Return the changes with every row of the removed classes named.

        A row of such a class that is relabelled is not removed: it goes on as a row of its new class.

        Raises:
            InputError: the data has no classes or no row of one, a row is to be relabelled to a class that is to be
                removed, or fewer than two classes would be left.

        >>> import torch
        >>> rows = Rows.from_tensors(torch.eye(4), torch.tensor([0, 1, 2, 2]))
        >>> Changes(removed_classes=(2,)).on(rows).removed
        ('2', '3')
        """
        if not self.removed_classes:
            return self
        if data.classes is None:
            raise InputError(f"{data.name} has no classes, so none can be removed; name the rows to remove")
        labels, gone = data.labels.tolist(), set(self.removed_classes)
        for one in self.removed_classes:
            if one not in labels:
                raise InputError(
                    f"no row of {data.name} is of class {one}; its classes are {some(sorted(set(labels)), 12)}"
                )
        for row, label in self.relabelled.items():
            if label in gone:
                raise InputError(f"row {row!r} is relabelled to class {label}, which is removed; decide once")
        left = (set(labels) | set(self.relabelled.values())) - gone
        if len(left) < 2:
            raise InputError(
                f"without class {some(self.removed_classes)} the rows of {data.name} would be of "
                f"{f'class {min(left)} alone' if left else 'no class'}; at least two classes must be left"
            )
        named = set(self.ids)
        of_classes = (row for row, label in zip(data.ids, labels, strict=True) if label in gone and row not in named)
        return Changes((*self.removed, *of_classes), self.relabelled, self.removed_classes)

    def check(self, data: Rows, *, allow_empty_class: bool = False) -> None:
        """Refuse what can not be meant.

        Raises:
            InputError: nothing is changed, a row is named twice, a label is outside the classes or is the present
                one, or no row (or no row of a class) would be left.
            RowNotFoundError: an id is not in the data.
        """
        if not self.ids:
            raise InputError("no row is changed; name at least one row to remove or relabel")
        at = data.positions(self.ids)
        edited = self.apply(data)
        present = data.labels[at[len(self.removed) :]].tolist()
        same = [row for row, old in zip(self.relabelled, present, strict=True) if self.relabelled[row] == old]
        if same:
            raise InputError(f"{len(same)} rows carry their new label already: {some(map(repr, same))}; leave them out")
        emptied = set() if allow_empty_class else emptied_classes(data, edited) - set(self.removed_classes)
        if emptied:
            raise InputError(
                f"no row of class {some(sorted(emptied))} would be left; pass allow_empty_class=True if you mean it"
            )

    def apply(self, data: Rows) -> Rows:
        """Return the changed data, as views."""
        if self.relabelled:
            data = data.relabelled(self.relabelled)
        return data.without(self.removed) if self.removed else data

    def to_csv(self, kept: Iterable[str] = ()) -> str:
        """Return as CSV with the columns id, action, label; a removed class is a line without id.

        Args:
            kept: ids of rows that were looked at and stay as they are; lines that change nothing.
        """
        text = io.StringIO()
        text.write(HEADER + "\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((row, "remove", "") for row in self.removed)
        writer.writerows((row, "relabel", label) for row, label in self.relabelled.items())
        writer.writerows(("", "remove-class", label) for label in self.removed_classes)
        writer.writerows((row, "keep", "") for row in kept)
        return text.getvalue()

    def save(self, path: str | Path, *, kept: Iterable[str] = ()) -> None:
        """Write what :meth:`to_csv` returns."""
        write_atomically(path, self.to_csv(kept).encode())

    @classmethod
    def load(cls, path: str | Path) -> Changes:
        """Read decisions; the action is ``remove``, ``relabel``, ``remove-class`` or ``keep``.

        Raises:
            InputError: what is wrong, with the line number.
        """
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"can not read decisions {str(path)!r}: {error}; give a CSV with {','.join(COLUMNS)}"
            ) from error
        first, _, rest = text.partition("\n")
        skip = int(first.startswith("#"))
        version = first.rstrip("\r") if skip else HEADER
        if version != HEADER:
            raise InputError(f"{path} starts with {version!r}; this release reads {HEADER!r}")
        reader = csv.DictReader(io.StringIO(rest if skip else text, newline=""))
        if reader.fieldnames is None or not {"id", "action"} <= set(reader.fieldnames):
            raise InputError(f"{path} has columns {reader.fieldnames}; decisions need {', '.join(COLUMNS)}")
        return cls.of((f"{path} line {reader.line_num + skip}", row) for row in reader)

    @classmethod
    def of(cls, decisions: Iterable[tuple[str, Mapping[str, Any]]]) -> Changes:
        """Return the changes that decisions ask for.

        Args:
            decisions: where each stands, for messages, and its ``id``, ``action`` and ``label``.

        Raises:
            InputError: an unknown action, a row or class named twice, a label that is missing or no number.

        >>> Changes.of([("first", {"id": "a", "action": "relabel", "label": "3"})])
        Changes(removed=(), relabelled={'a': 3}, removed_classes=())
        """
        seen: dict[str, str] = {}
        removed: list[str] = []
        relabelled: dict[str, int | float] = {}
        classes: list[int] = []
        for place, row in decisions:
            name, action, label = row.get("id") or "", row["action"], _number(row.get("label"))
            if action == "remove-class":
                if name or not isinstance(label, int) or label in classes:
                    raise InputError(
                        f"{place}: remove-class takes a class as label, once, and no id; got id {name!r} and label "
                        f"{row.get('label')!r}"
                    )
                classes.append(label)
                continue
            if name in seen:
                raise InputError(f"{place}: row {name!r} is named twice ({seen[name]}, {action}); decide once")
            seen[name] = action
            if action == "remove":
                removed.append(name)
            elif action == "relabel":
                if label is None:
                    raise InputError(f"{place}: relabel of {name!r} needs a number as label, not {row.get('label')!r}")
                relabelled[name] = label
            elif action != "keep":
                raise InputError(f"{place}: unknown action {action!r}; known: {', '.join(ACTIONS)}")
        return cls(tuple(removed), relabelled, tuple(classes))


def _plain(label: Any) -> Any:
    """Return a number of NumPy or torch as Python's."""
    return label.item() if hasattr(label, "item") else label


def _number(text: object) -> int | float | None:
    """Return a class or a finite number; None for anything else.

    >>> _number("3"), _number("-0.5"), _number("three"), _number("nan"), _number(None)
    (3, -0.5, None, None, None)
    """
    for kind in (int, float):
        try:
            number = kind(str(text))
        except ValueError:
            continue
        return number if math.isfinite(number) else None
    return None


def emptied_classes(data: Rows, edited: Rows) -> set[int]:
    """Return the classes that have rows in the data and none in the changed data."""
    return set() if data.classes is None else set(data.labels.tolist()) - set(edited.labels.tolist())


def removal(ids: Iterable[str]) -> Changes:
    """Return the change that removes these rows."""
    return Changes(removed=(ids,) if isinstance(ids, str) else tuple(ids))
