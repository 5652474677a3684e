"""A user's table, or a folder of images with a table that lists them, as rows."""

from __future__ import annotations

from pathlib import Path

from unlearn.data.column_rows import column_rows
from unlearn.data.rows import Rows
from unlearn.data.table_files import read_table
from unlearn.source_options import TableOptions


def table_rows(split: str, split_seed: int, options: TableOptions) -> Rows:
    """Return the rows of a CSV, JSON Lines or Parquet file.

    Without a file of test rows, a share of the rows is drawn by id. Without a column of ids they are
    ``<file>-<row number>``, or ``train-<row number>`` and ``test-<row number>`` where there are two files.

    Raises:
        InputError: what :func:`unlearn.data.table_files.read_table` and :func:`unlearn.data.column_rows.column_rows`
            refuse.
    """
    path = Path(options.path).expanduser()
    parts = {path.stem if options.test is None else "train": read_table(path)}
    if options.test is not None:
        parts["test"] = read_table(Path(options.test).expanduser())
    folder = path.parent if options.folder is None else Path(options.folder).expanduser()
    return column_rows(parts, split, split_seed, options, name=path.name, folder=folder)
