"""Exact and near duplicates: rows that lie next to another row, by the cosine of their inputs or features.

No score of influence or loss asks whether a row is there twice; this one asks nothing else. It ignores labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.data import DEFAULT_BATCH, Rows, as_rows
from unlearn.detect.scores import Scores
from unlearn.errors import InputError
from unlearn.inputs import call_model, named_tensors
from unlearn.modes import evaluation
from unlearn.precision import precision_option

CHUNK = 1024
MOST_PAIRS = 1_000_000
_FORWARD = 1 / 3  # of a training epoch: forward 1, backward 2


def duplicate_scores(
    data: Any, *, model: nn.Module | None = None, batch_size: int = DEFAULT_BATCH, chunk: int = CHUNK
) -> Scores:
    """Return each row's cosine similarity to the row most similar to it; 1 for an exact duplicate.

    Time grows with the square of the rows (a product of two chunks for every pair of chunks); memory holds the
    features, n x f numbers of 4 bytes, and chunk x chunk similarities.

    Args:
        data: at least two rows. See :func:`unlearn.data.as_rows`.
        model: None: a row's features are its input (all its tensors, one after the other). A model: they are what
            enters its last layer with a weight matrix (the last one called in a forward pass), in evaluation mode. It
            is left as found.
        batch_size: rows read at a time; changes time and memory, not the result.
        chunk: rows compared with as many others at a time; likewise.

    Returns:
        Scores from -1 to 1 (exact copies up to rounding, about 1e-6), whose options hold ``features`` (``inputs`` or
        the name of the layer) and ``cost_epochs``.

    Raises:
        InputError: fewer than two rows, a number below 1, inputs that are no numbers, or a model without a weight
            matrix.

    >>> data = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [3.0, 3.0]]), torch.tensor([0, 1, 0, 1])
    >>> duplicate_scores(data).values.round(3)
    array([0.707, 1.   , 0.707, 1.   ])
    """
    rows = as_rows(data)
    features, source = _features(rows, model, batch_size, chunk)
    best = torch.full((len(rows),), -1.0)
    for i, j, similarity in _chunks(features, chunk):
        best[i : i + chunk] = torch.maximum(best[i : i + chunk], similarity.amax(1))
        best[j : j + chunk] = torch.maximum(best[j : j + chunk], similarity.amax(0))
    options = {"features": source, "cost_epochs": 0.0 if model is None else _FORWARD, **precision_option()}
    return Scores(rows.ids, best.clamp(-1, 1).double().numpy(), "duplicates", options)


def duplicate_pairs(
    data: Any,
    *,
    similarity: float,
    model: nn.Module | None = None,
    batch_size: int = DEFAULT_BATCH,
    chunk: int = CHUNK,
) -> list[tuple[str, str, float]]:
    """Return all pairs of rows that are at least so similar, the most similar first.

    What counts as near depends on the data: digits of one class are often above 0.97 without being copies. Exact
    copies are above 0.99999.

    Args:
        data: at least two rows. See :func:`unlearn.data.as_rows`.
        similarity: smallest cosine of a pair, at most 1.
        model: as for :func:`duplicate_scores`.
        batch_size: rows read at a time.
        chunk: rows compared with as many others at a time.

    Returns:
        Tuples of two ids, in the order of the rows, and their similarity. Equal similarities in the order of the rows.

    Raises:
        InputError: as :func:`duplicate_scores`; a similarity outside [-1, 1]; more than 1,000,000 pairs.

    >>> data = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [3.0, 3.0]]), torch.tensor([0, 1, 0, 1])
    >>> [pair[:2] for pair in duplicate_pairs(data, similarity=0.999)]
    [('1', '3')]
    """
    if not -1 <= similarity <= 1:
        raise InputError(f"similarity is {similarity}; give the smallest cosine of a pair, between -1 and 1")
    rows = as_rows(data)
    features, _ = _features(rows, model, batch_size, chunk)
    found: list[tuple[int, int, float]] = []
    for i, j, part in _chunks(features, chunk):
        part = part.clamp(max=1)
        near = part >= similarity
        if i == j:
            near = near.triu(1)
        if len(found) + int(near.sum()) > MOST_PAIRS:
            raise InputError(f"more than {MOST_PAIRS:,} pairs have a similarity of {similarity}; ask for a larger one")
        first, second = near.nonzero(as_tuple=True)
        found += zip((first + i).tolist(), (second + j).tolist(), part[near].tolist(), strict=True)
    found.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
    return [(rows.ids[a], rows.ids[b], value) for a, b, value in found]


def copies_of(
    data: Any,
    ids: Iterable[str],
    *,
    similarity: float,
    model: nn.Module | None = None,
    batch_size: int = DEFAULT_BATCH,
    chunk: int = CHUNK,
) -> list[tuple[str, str, float]]:
    """Return the other rows that are at least so similar to some chosen ones, the most similar first.

    Time grows with the chosen rows times all rows, not with the square of all.

    Args:
        data: at least two rows. See :func:`unlearn.data.as_rows`.
        ids: the chosen rows.
        similarity: smallest cosine of a pair, at most 1.
        model: as for :func:`duplicate_scores`.
        batch_size: rows read at a time.
        chunk: rows compared at a time.

    Returns:
        Tuples of a chosen id, the id of a row that was not chosen, and their similarity.

    Raises:
        InputError: as :func:`duplicate_pairs`.
        RowNotFoundError: an id is not in the data.

    >>> data = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [3.0, 3.0]]), torch.tensor([0, 1, 0, 1])
    >>> [pair[:2] for pair in copies_of(data, ["3"], similarity=0.999)]
    [('3', '1')]
    """
    if not -1 <= similarity <= 1:
        raise InputError(f"similarity is {similarity}; give the smallest cosine of a pair, between -1 and 1")
    rows = as_rows(data)
    features, _ = _features(rows, model, batch_size, chunk)
    chosen = rows.positions(ids)
    others = torch.ones(len(rows), dtype=torch.bool)
    others[chosen] = False
    found: list[tuple[int, int, float]] = []
    for i in range(0, len(chosen), chunk):
        for j in range(0, len(rows), chunk):
            part = (features[chosen[i : i + chunk]] @ features[j : j + chunk].T).clamp(max=1)
            first, second = ((part >= similarity) & others[j : j + chunk]).nonzero(as_tuple=True)
            if len(found) + len(first) > MOST_PAIRS:
                raise InputError(
                    f"more than {MOST_PAIRS:,} pairs have a similarity of {similarity}; ask for a larger one"
                )
            at = (chosen[first + i].tolist(), (second + j).tolist(), part[first, second].tolist())
            found += zip(*at, strict=True)
    found.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
    return [(rows.ids[a], rows.ids[b], value) for a, b, value in found]


def _chunks(features: Tensor, chunk: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield starts i <= j of two chunks and their similarities; that of a row to itself is -1."""
    for i in range(0, len(features), chunk):
        for j in range(i, len(features), chunk):
            similarity = features[i : i + chunk] @ features[j : j + chunk].T
            if i == j:
                similarity.fill_diagonal_(-1)
            yield i, j, similarity


def _features(rows: Rows, model: nn.Module | None, batch_size: int, chunk: int) -> tuple[Tensor, str]:
    """Return features of length 1, shape (n, f + 1), and what they are.

    The last entry is 1 where all others are 0: blank rows are duplicates of each other and of nothing else.
    """
    for name, value in (("batch_size", batch_size), ("chunk", chunk)):
        if value < 1:
            raise InputError(f"{name} is {value}; give at least 1")
    if len(rows) < 2:
        raise InputError(f"{rows.name} has {len(rows)} row; duplicates need at least 2")
    if model is None:
        flat = ([x.flatten(1) for x in named_tensors(inputs).values()] for _, inputs, _ in rows.batches(batch_size))
        parts, source = [torch.cat(tensors, 1).float().cpu() for tensors in flat], "inputs"
    else:
        parts, source = _last_inputs(model, rows, batch_size)
    features = torch.cat(parts)
    norms = torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=torch.float64)
    blank = norms == 0
    return torch.cat([(features / norms.masked_fill(blank, 1)).float(), blank.float()], 1), source


def _last_inputs(model: nn.Module, rows: Rows, batch_size: int) -> tuple[list[Tensor], str]:
    """Return what enters the last layer with a weight matrix, batch by batch, and the name of that layer."""
    last: dict[str, Tensor] = {}

    def keep(name: str, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            last.clear()
            last[name] = inputs[0]

    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs))
        for name, module in model.named_modules()
        if any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    ]
    parts: list[Tensor] = []
    names: dict[str, None] = {}
    try:
        with evaluation(model), torch.no_grad():
            device = next(model.parameters()).device if handles else None
            for _, inputs, _ in rows.batches(batch_size, device):
                call_model(model, inputs)
                if not last:
                    raise InputError(
                        "no layer with a weight matrix is called in a forward pass of the model; "
                        "leave the model out to compare inputs"
                    )
                ((name, features),) = last.items()
                names[name] = None
                parts.append(features.detach().flatten(1).float().cpu())
    finally:
        for handle in handles:
            handle.remove()
    return parts, ", ".join(names)
