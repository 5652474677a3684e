"""One shape for every score: ids, values, method; larger is more suspicious."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unlearn.atomic import write_atomically
from unlearn.data.row_ids import repeated, text_order
from unlearn.errors import InputError

HEADER = "# unlearn scores 1"
_COLUMNS = ("rank", "id", "score")


@dataclass(frozen=True)
class Scores:
    """A value for each row; the larger, the more suspicious.

    Attributes:
        ids: row ids, (n,).
        values: float64, (n,).
        method: name of the score.
        options: what it was computed with, such as the damping.

    >>> scores = Scores(("a", "b", "c"), np.array([0.5, 2.0, 1.0]), "loss")
    >>> scores.top(2)
    [('b', 2.0), ('c', 1.0)]
    """

    ids: Sequence[str]
    values: npt.NDArray[np.float64]
    method: str
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.asarray(self.values, dtype=np.float64))
        if self.values.shape != (len(self.ids),):
            raise InputError(
                f"{len(self.ids)} ids and values of shape {self.values.shape}; give one value for each row"
            )
        if repeated(self.ids):
            raise InputError(f"ids of score {self.method!r} are not unique; give one value for each row")
        bad = np.flatnonzero(~np.isfinite(self.values))
        if len(bad):
            raise InputError(
                f"score {self.method!r} of row {self.ids[bad[0]]!r} is {self.values[bad[0]]}; check its input"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def order(self) -> npt.NDArray[np.int64]:
        """Positions from the most to the least suspicious row; equal values in the order of their ids."""
        by_id = text_order(self.ids)
        return by_id[np.argsort(-self.values[by_id], kind="stable")]

    def top(self, k: int) -> list[tuple[str, float]]:
        """Return ids and values of the ``k`` most suspicious rows (all, where there are fewer).

        Raises:
            InputError: k is negative.
        """
        if k < 0:
            raise InputError(f"k is {k}; give a number of rows of at least 0")
        return [(self.ids[i], float(self.values[i])) for i in self.order()[:k]]

    def save(self, path: str | Path, columns: Mapping[str, Sequence[object]] | None = None) -> None:
        """Write as CSV in UTF-8, the most suspicious row first; values come back bit for bit.

        Args:
            path: file to write.
            columns: further columns, each in the order of ``ids``.

        Raises:
            InputError: a column has not one value for each row, or the name of a column that is always there.
            FolderError: the file can not be written.
        """
        extra = columns or {}
        for name, cells in extra.items():
            if len(cells) != len(self) or name in _COLUMNS:
                raise InputError(
                    f"column {name!r} has {len(cells)} values for {len(self)} rows, or a name in {_COLUMNS}"
                )
        text = io.StringIO(newline="")
        text.write(f"{HEADER} {self.method}\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_COLUMNS, *extra])
        for rank, i in enumerate(self.order(), 1):
            writer.writerow([rank, self.ids[i], repr(float(self.values[i])), *(values[i] for values in extra.values())])
        write_atomically(path, text.getvalue().encode())

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read ids, values and method from a file that :meth:`save` wrote.

        Raises:
            InputError: there is no such file, it is not a scores file of this version, or it is damaged.
        """
        try:
            first, _, table = Path(path).read_bytes().decode().partition("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} can not be read: {error}; give a scores file") from error
        if not first.startswith(HEADER + " "):
            raise InputError(f"{path} does not start with {HEADER!r}: not a scores file that this release reads")
        try:
            rows = [(row["id"], float(row["score"])) for row in csv.DictReader(io.StringIO(table, newline=""))]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise InputError(f"{path} is damaged ({error!r}); write the scores again") from error
        return cls(tuple(row for row, _ in rows), np.array([value for _, value in rows]), first[len(HEADER) + 1 :])


def read_column(path: str | Path, column: str) -> dict[str, str]:
    """Return one column of a scores file by row id.

    Raises:
        InputError: no such column.
    """
    lines = Path(path).read_text().splitlines()
    rows = list(csv.DictReader(lines[1:]))
    if not rows or column not in rows[0]:
        raise InputError(f"{path} has no column {column!r}; run detect again")
    return {row["id"]: row[column] for row in rows}
