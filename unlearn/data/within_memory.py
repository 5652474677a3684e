"""Work on batches of rows, halving the batches where memory runs out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from unlearn.data.rows import Rows
from unlearn.errors import InputError
from unlearn.inputs import Inputs
from unlearn.progress import track
from unlearn.ranks import own_span

Result = TypeVar("Result")


def within_memory(
    rows: Rows,
    size: int,
    device: torch.device,
    work: Callable[[Tensor, Inputs, Tensor], Result],
    description: str,
    *,
    shared: bool = False,
) -> Iterator[Result]:
    """Yield ``work(positions, inputs, labels)`` of batches over all rows, in order, with a progress bar.

    Where memory runs out in a batch, it and the batches after it are of half the rows, which is warned of once.

    Args:
        rows: the rows.
        size: rows of a batch to begin with.
        device: where inputs and labels go; positions stay on the CPU.
        work: what is done with a batch. It must leave nothing behind when it fails.
        description: of the progress bar.
        shared: take this rank's rows only, of :func:`unlearn.ranks.own_span`; the caller adds up.

    Raises:
        InputError: the batch size is not positive, or memory runs out with a single row.

    >>> rows = Rows.from_tensors(torch.arange(3.0)[:, None], torch.tensor([0, 1, 0]))
    >>> list(within_memory(rows, 2, torch.device("cpu"), lambda positions, inputs, labels: inputs.sum().item(), "sums"))
    [1.0, 2.0]
    """
    if size < 1:
        raise InputError(f"batch_size is {size}; give at least 1")
    span = own_span(len(rows)) if shared else range(len(rows))
    yield from track(_halving(rows, span, size, device, work), description, math.ceil(len(span) / size))


def _halving(
    rows: Rows, span: range, first: int, device: torch.device, work: Callable[[Tensor, Inputs, Tensor], Result]
) -> Iterator[Result]:
    size, done = first, span.start
    while done < span.stop:
        try:
            for positions, inputs, labels in rows.batches(size, device, done, span.stop):
                result = work(positions, inputs, labels)
                done += len(positions)
                yield result
                del result  # not to be held beside the next one
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise InputError(f"memory runs out with a single row of {rows.name}: {error}") from error
            size = max(1, min(size, len(span)) // 2)
    if size < first:
        warnings.warn(
            f"memory ran out with batches of {first} rows of {rows.name}, so they were made smaller, down to {size}; "
            f"batch_size={size} saves the attempts",
            stacklevel=2,
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory ran out.

    >>> is_out_of_memory(RuntimeError("shapes differ"))
    False
    """
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
