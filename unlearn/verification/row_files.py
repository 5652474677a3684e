"""CSV files of the user's own that name rows: which rows, and which groups."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from unlearn.errors import InputError


def read_groups(path: str | Path) -> dict[str, str]:
    """Read named groups from a CSV file with the columns id and group.

    Raises:
        InputError: no such file, no such columns, or a row named twice; the line is named.
    """
    return dict(_read(path, ("id", "group")))


def read_ids(path: str | Path) -> tuple[str, ...]:
    """Read row ids from a CSV file with the column id; a decisions file or a scores file will do.

    Raises:
        InputError: as for :func:`read_groups`.
    """
    return tuple(row for row, _ in _read(path, ("id",)))


def _read(path: str | Path, columns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the first and the last of the columns of each row; a first line that starts with # is skipped."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can not read rows {str(path)!r}: {error}; give a CSV with {', '.join(columns)}") from error
    skipped = int(text.startswith("#"))
    reader = csv.DictReader(io.StringIO(text.partition("\n")[2] if skipped else text, newline=""))
    if reader.fieldnames is None or not set(columns) <= set(reader.fieldnames):
        raise InputError(f"{path} has columns {reader.fieldnames}; it needs {', '.join(columns)}")
    seen: set[str] = set()
    for row in reader:
        line = f"{path} line {reader.line_num + skipped}"
        if not all(row[column] for column in columns):
            raise InputError(f"{line}: give {' and '.join(columns)}")
        if row["id"] in seen:
            raise InputError(f"{line}: row {row['id']!r} is named twice; name it once")
        seen.add(row["id"])
        yield row["id"], row[columns[-1]]
