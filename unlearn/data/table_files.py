"""Tables in files: CSV, JSON Lines and Parquet, as columns."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from unlearn.errors import InputError
from unlearn.extras import extra_module

Columns = dict[str, list[Any]]


def read_table(path: Path) -> Columns:
    r"""Return the columns of a table, by name, in the file's order; values as the file has them (CSV: texts).

    Args:
        path: ending in ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``.

    Raises:
        InputError: no such file, an ending that is not known, no rows, or a line that can not be read.
        MissingExtraError: pyarrow is not installed.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "pets.csv"
    >>> _ = path.write_text("id,label\na,cat\nb,dog\n")
    >>> read_table(path)
    {'id': ['a', 'b'], 'label': ['cat', 'dog']}
    """
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}
    if path.suffix not in readers:
        raise InputError(f"table {str(path)!r} ends in {path.suffix!r}; known: {', '.join(readers)}")
    if not path.is_file():
        raise InputError(f"table {str(path)!r} is not there; give the path of a file, seen from {str(Path.cwd())!r}")
    try:
        columns = readers[path.suffix](path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"table {str(path)!r} can not be read: {str(error).splitlines()[0]}") from error
    if not columns or not len(next(iter(columns.values()))):
        raise InputError(f"table {str(path)!r} has no rows; give at least one")
    return columns


def _csv(path: Path) -> Columns:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        header = next(lines, [])
        if len(set(header)) != len(header):
            raise InputError(f"table {str(path)!r} names a column twice: {', '.join(header)}; name each once")
        rows = []
        for row in lines:
            if row and len(row) != len(header):
                raise InputError(
                    f"line {lines.line_num} of {str(path)!r} has {len(row)} fields and the header {len(header)}; "
                    "give each line as many"
                )
            if row:
                rows.append(row)
    return {column: [row[k] for row in rows] for k, column in enumerate(header)}


def _json_lines(path: Path) -> Columns:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"line {number} of {str(path)!r} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise InputError(f"line {number} of {str(path)!r} is {type(row).__name__}; give an object a line")
            rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parquet(path: Path) -> Columns:
    parquet = extra_module("pyarrow.parquet", "hf", "Parquet files are read by pyarrow")
    pyarrow = extra_module("pyarrow", "hf", "Parquet files are read by pyarrow")
    try:
        return parquet.read_table(path).to_pydict()  # type: ignore[no-any-return]
    except pyarrow.ArrowException as error:
        raise InputError(f"table {str(path)!r} can not be read: {str(error).splitlines()[0]}") from error
