"""Whether two sets of rows have rows in common, by id or by content."""

from __future__ import annotations

import hashlib

from unlearn.data.rows import Rows
from unlearn.errors import InputError, some
from unlearn.inputs import named_tensors


def shared_rows(rows: Rows, others: Rows) -> list[str]:
    """Return the ids of ``others`` that are rows of ``rows`` too: the same input, whatever its label, or the same id.

    Ids that are the row numbers, as they are without ids, name no row outside of their set and are not compared.

    >>> import torch
    >>> a = Rows.from_tensors(torch.eye(3), torch.tensor([0, 1, 1]))
    >>> shared_rows(a, Rows.from_tensors(torch.tensor([[0.0, 1.0, 0.0], [2.0, 2.0, 2.0]]), torch.tensor([0, 1])))
    ['0']
    """
    seen = set(contents(rows).values())
    numbered = others.ids == tuple(map(str, range(len(others))))
    return [row for row, content in contents(others).items() if content in seen or (not numbered and row in rows)]


def contents(rows: Rows) -> dict[str, bytes]:
    """Return sha256 of each row's input (type, shape, bytes), by id."""
    found: dict[str, bytes] = {}
    for positions, inputs, _ in rows.batches(1024):
        parts = dict(sorted(named_tensors(inputs).items()))
        for k, position in enumerate(positions.tolist()):
            digest = hashlib.sha256()
            for name, part in parts.items():
                row = part[k].detach().cpu().contiguous()
                digest.update(f"{name}{row.dtype}{tuple(row.shape)}".encode())
                digest.update(row.numpy().tobytes())
            found[rows.ids[position]] = digest.digest()
    return found


def check_disjoint(rows: Rows, others: Rows, what: str, are: str, do: str) -> None:
    """Refuse rows in common.

    Args:
        rows: one set.
        others: the set that must hold none of its rows.
        what: what the others are called in the message.
        are: what those in common are, as ``trained on``.
        do: what to do.

    Raises:
        InputError: how many rows, and which.
    """
    common = shared_rows(rows, others)
    if common:
        raise InputError(f"{len(common)} of {what} were {are} (by id or content): {some(map(repr, common))}; {do}")
