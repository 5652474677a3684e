"""Scores of many rows, written a shard at a time and taken up where a run was cut off."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from unlearn.atomic import make_folder
from unlearn.curvature import Curvature, weights_digest
from unlearn.curvature.digest import curvature_digest
from unlearn.data import as_rows
from unlearn.data.streams import is_stream, row_parts
from unlearn.detect.gif import gif_scores
from unlearn.detect.harm import harm
from unlearn.detect.loss import loss
from unlearn.detect.scores import Scores
from unlearn.detect.self_influence import self_influence
from unlearn.detect.shard_files import FORMAT, ScoreShards, begin, check_part, finish, part_path, write_part
from unlearn.errors import InputError, did_you_mean
from unlearn.precision import precision_option
from unlearn.tasks import get_task

SHARD_ROWS = 65_536
ROW_SCORES: Mapping[str, Callable[..., Scores]] = {
    "self-influence": self_influence,
    "gif": gif_scores,
    "harm": harm,
    "loss": loss,
}
"""Scores whose value of a row depends on no other row, once the curvature is there."""

_ALL_ROWS = {"solver": None, "record": None, "steps": None, "scope": "row"}
"""Options that look at all rows where they are not so."""


def score_shards(
    method: str,
    model: nn.Module,
    data: Any,
    folder: str | Path,
    *,
    curvature: Curvature | None = None,
    shard_rows: int = SHARD_ROWS,
    columns: Mapping[str, Any] | None = None,
    **options: Any,
) -> ScoreShards:
    """Score rows a shard at a time, each written when it is done; what is there already is not computed again.

    The call that was cut off is made again: at most the shard that it was in is recomputed. Values are those of the
    score itself on all rows, bit for bit where ``shard_rows`` is a multiple of the rows that it takes at a time (512
    and 256 divide the default), else to rounding. Several ranks share the rows of each shard.

    Args:
        method: ``self-influence``, ``gif``, ``harm`` (with ``trusted=`` rows) or ``loss``.
        model: left as found.
        data: what :func:`unlearn.as_rows` takes, or a stream of (input, label) pairs or dictionaries, such as an
            ``IterableDataset`` of torch or Hugging Face (``load_dataset(..., streaming=True)``), which must give the
            same rows in the same order when it is read again.
        folder: where the shards go; made where it is missing.
        curvature: of all rows, or of a sample (:func:`unlearn.curvature_rows`); ``loss`` needs none.
        shard_rows: rows of a shard; a shard of a stream is held in memory.
        columns: of the data, see :func:`unlearn.data.streams.row_parts`.
        **options: of the score.

    Raises:
        FolderError: the folder holds scores of other weights, rows, curvature or options, or can not be written.
        InputError: an unknown method or option, one that looks at all rows at once, or no curvature.

    >>> import tempfile
    >>> from unlearn.curvature import fit_curvature
    >>> import torch
    >>> from unlearn.data import Rows
    >>> model, rows = nn.Linear(2, 2), Rows.from_tensors(torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1]))
    >>> curvature = fit_curvature(model, rows)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = score_shards("self-influence", model, rows, folder, curvature=curvature, shard_rows=2)
    ...     len(found), [len(shard) for shard in found]
    (5, [2, 2, 1])
    """
    score = _row_score(method, curvature, shard_rows, options)
    given = options if curvature is None else {**options, "curvature": curvature}
    stream = is_stream(data)
    rows = None if stream else as_rows(data, **(columns or {}))
    manifest = {
        "format": FORMAT,
        "method": method,
        "weights": weights_digest(model),
        "curvature": None if curvature is None else curvature_digest(curvature),
        "data": None if rows is None else rows.fingerprint,
        "rows": None if rows is None else len(rows),
        "shard_rows": shard_rows,
        "options": {name: _described(name, value) for name, value in sorted(options.items())},
        **precision_option(),
    }
    folder = make_folder(folder)
    run = begin(folder, manifest)
    number = total = 0
    for number, part in enumerate(
        row_parts(data if rows is None else rows, shard_rows, columns=columns if stream else None)
    ):
        contents = part.fingerprint if stream else ""
        path = part_path(folder, number)
        if path.exists():
            check_part(path, number, run, contents)
        else:
            write_part(path, score(model, part, **given), number, run, contents)
        total += len(part)
    finish(folder, {"format": FORMAT, "run": run, "shards": number + 1, "rows": total})
    return ScoreShards.open(folder)


def _row_score(
    method: str, curvature: Curvature | None, shard_rows: int, options: Mapping[str, Any]
) -> Callable[..., Scores]:
    """Return the score of a method, with its options checked."""
    if method not in ROW_SCORES:
        raise InputError(f"no score {method!r} goes row by row; {did_you_mean(method, ROW_SCORES)}")
    if shard_rows < 1:
        raise InputError(f"shard_rows is {shard_rows}; give at least 1")
    score = ROW_SCORES[method]
    known = inspect.signature(score).parameters
    takes_curvature = "curvature" in known
    if takes_curvature and curvature is None:
        raise InputError(
            f"{method} of a shard alone would fit curvature on it alone; pass curvature=, fitted on the rows"
        )
    if curvature is not None and not takes_curvature:
        raise InputError(f"curvature has no meaning for {method}; leave it out")
    taken = [name for name in known if name not in ("model", "data", "curvature")]
    for name, value in options.items():
        if name not in taken:
            raise InputError(f"{method} has no option {name!r}; {did_you_mean(name, taken)}")
        if name in _ALL_ROWS and value != _ALL_ROWS[name]:
            raise InputError(f"{name}={value!r} looks at all rows at once; leave it out, or score them without shards")
    if method == "harm" and "trusted" not in options:
        raise InputError("harm needs trusted rows; pass trusted=")
    return score


def _described(name: str, value: Any) -> Any:
    """Return an option as the manifest has it."""
    if name == "trusted":
        return as_rows(value).fingerprint
    if name == "task":
        return get_task(value).name
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise InputError(f"{name} is {type(value).__name__}, which no manifest can name; give a number or a text")
