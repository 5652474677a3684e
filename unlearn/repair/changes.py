"""What is asked for: rows to remove, rows to relabel; checked once, before anything is computed."""

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


@dataclass(frozen=True)
class Changes:
    """Rows to remove and rows to relabel.

    Attributes:
        removed: ids.
        relabelled: new label by id; numbers of NumPy and torch become Python's.

    >>> changes = Changes(removed=("a",), relabelled={"b": 3})
    >>> changes.ids, changes.action
    (('a', 'b'), 'mixed')
    """

    removed: tuple[str, ...] = ()
    relabelled: Mapping[str, int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = {row: label.item() if hasattr(label, "item") else label for row, label in self.relabelled.items()}
        object.__setattr__(self, "relabelled", numbers)

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
        """``remove``, ``relabel`` or ``mixed``."""
        return "mixed" if self.removed and self.relabelled else "remove" if self.removed else "relabel"

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
        if data.classes is not None and not allow_empty_class:
            before, after = set(data.labels.tolist()), set(edited.labels.tolist())
            if before - after:
                raise InputError(
                    f"no row of class {some(sorted(before - after))} would be left; pass allow_empty_class=True if you "
                    "mean it"
                )

    def apply(self, data: Rows) -> Rows:
        """Return the changed data, as views."""
        if self.relabelled:
            data = data.relabelled(self.relabelled)
        return data.without(self.removed) if self.removed else data

    def save(self, path: str | Path) -> None:
        """Write as CSV with the columns id, action, label."""
        text = io.StringIO()
        text.write(HEADER + "\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((row, "remove", "") for row in self.removed)
        writer.writerows((row, "relabel", label) for row, label in self.relabelled.items())
        write_atomically(path, text.getvalue().encode())

    @classmethod
    def load(cls, path: str | Path) -> Changes:
        """Read decisions; the action is ``remove``, ``relabel`` or ``keep``.

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
        seen: dict[str, str] = {}
        removed: list[str] = []
        relabelled: dict[str, int | float] = {}
        for row in reader:
            number, name, action = reader.line_num + skip, row["id"], row["action"]
            if name in seen:
                raise InputError(
                    f"{path} line {number}: row {name!r} is named twice ({seen[name]}, {action}); decide once"
                )
            seen[name] = action
            if action == "remove":
                removed.append(name)
            elif action == "relabel":
                label = _number(row.get("label") or "")
                if label is None:
                    raise InputError(
                        f"{path} line {number}: relabel of {name!r} needs a number as label, not {row.get('label')!r}"
                    )
                relabelled[name] = label
            elif action != "keep":
                raise InputError(f"{path} line {number}: unknown action {action!r}; known: remove, relabel, keep")
        return cls(tuple(removed), relabelled)


def _number(text: str) -> int | float | None:
    """Return a class or a finite number; None for anything else.

    >>> _number("3"), _number("-0.5"), _number("three"), _number("nan")
    (3, -0.5, None, None)
    """
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else None
    return None


def removal(ids: Iterable[str]) -> Changes:
    """Return the change that removes these rows."""
    return Changes(removed=(ids,) if isinstance(ids, str) else tuple(ids))
