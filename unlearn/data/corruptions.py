"""Seeded corruptions other than random labels: changed inputs, duplicates, rows from elsewhere, a backdoor trigger.

Which rows are hit, and with what, depends on seed and row id, not on order or batches. Nothing is stored: a corrupted
input is made each time it is read, from the untouched one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from unlearn.data import draws
from unlearn.data.rows import Rows
from unlearn.errors import InputError, did_you_mean
from unlearn.inputs import Inputs, map_tensors, named_tensors

InputCorruption = Literal["gaussian", "occlusion", "permutation"]
NearCopy = Literal["gaussian", "shift"]

STRENGTHS: Mapping[InputCorruption, float] = {"gaussian": 0.5, "occlusion": 0.5, "permutation": 1.0}
NEAR_DEVIATION = 0.05
AMPLITUDE = 16 / 255

_Change = Callable[[Tensor, int], Tensor]  # an input and a seed of its own


@dataclass(frozen=True)
class Corrupted:
    """Rows of which some are corrupted, and which these are; the answer is for scoring only.

    Attributes:
        rows: all rows, corrupted ones among them.
        ids: the corrupted rows (where rows were added: the added ones), in the order of ``rows``.
        kind: what was done, such as ``gaussian`` or ``near duplicates``.
        copy_of: the row that each added duplicate was copied from; empty for other corruptions.
    """

    rows: Rows
    ids: tuple[str, ...]
    kind: str
    copy_of: Mapping[str, str] = field(default_factory=dict)


def corrupt_inputs(
    rows: Rows, rate: float, seed: int, *, kind: InputCorruption = "gaussian", strength: float | None = None
) -> Corrupted:
    """Corrupt the inputs of ``round(rate * n)`` rows; ids, labels and truth stay.

    Args:
        rows: with inputs of floating point.
        rate: share of the rows.
        seed: any integer.
        kind: ``gaussian``: independent normal noise on every entry, not clipped; ``occlusion``: one square block of an
            image, at a random place, set to the mean of that image; ``permutation``: entries change places, along one
            random cycle for each row. The same rows are hit by every kind.
        strength: ``gaussian``: the standard deviation, in units of the inputs (by default 0.5); ``occlusion``: side of
            the block as a share of the image's shorter side (0.5); ``permutation``: share of the entries that
            change places (1), two at least.

    Raises:
        InputError: rate outside [0, 1], an unknown kind, a strength that is not allowed, inputs that are not floating
            point, occlusion of rows that are no images, or permutation of a single entry.

    >>> rows = Rows.from_tensors(torch.zeros(10, 2), torch.arange(10) % 2)
    >>> found = corrupt_inputs(rows, 0.2, seed=0)
    >>> [row for row in rows.ids if found.rows.only([row])[0][0].any()] == list(found.ids), len(found.ids)
    (True, 2)
    """
    if kind not in STRENGTHS:
        raise InputError(f"unknown corruption of inputs {kind!r}; {did_you_mean(kind, STRENGTHS)}")
    amount = STRENGTHS[kind] if strength is None else strength
    most = math.inf if kind == "gaussian" else 1.0
    if not (0 < amount <= most and math.isfinite(amount)):
        allowed = "a finite number above 0" if kind == "gaussian" else "a share above 0 and at most 1"
        raise InputError(f"strength of {kind} is {amount}; give {allowed}")
    shape = _shape(rows, "corrupted")
    if kind == "occlusion" and len(shape) < 2:
        raise InputError(f"occlusion needs images; inputs of {rows.name} are of shape {shape}: use another kind")
    if kind == "permutation" and math.prod(shape) < 2:
        raise InputError(f"permutation needs at least 2 entries; inputs of {rows.name} are of shape {shape}")
    change: dict[InputCorruption, _Change] = {
        "gaussian": partial(_gaussian, deviation=amount),
        "occlusion": partial(_occluded, share=amount),
        "permutation": partial(_permuted, share=amount),
    }
    hit = _drawn(rows, _count(rows, rate), seed, "corrupted-inputs")
    return Corrupted(_changed(rows, hit, change[kind], seed, kind), hit, kind)


def add_duplicates(rows: Rows, rate: float, seed: int, *, near: NearCopy | None = None) -> Corrupted:
    """Add copies of ``round(rate * n)`` rows at the end, with the label (and truth) of the row copied.

    Args:
        rows: the rows; each is copied once at most.
        rate: number of copies as a share of the rows.
        seed: any integer.
        near: None: exact copies; ``gaussian``: copies with independent normal noise of deviation 0.05, in units of the
            inputs; ``shift``: images moved by one pixel to one of the four sides, the last line repeated.

    Returns:
        Rows whose copies have ids such as ``digits-0012+copy``, and ``copy_of``.

    Raises:
        InputError: rate outside [0, 1], an unknown kind of near copy, inputs that do not fit it, or copies that are
            there already.

    >>> rows = Rows.from_tensors(torch.eye(10), torch.arange(10) % 2)
    >>> found = add_duplicates(rows, 0.1, seed=0)
    >>> len(found.rows), found.copy_of == {found.ids[0]: found.ids[0].removesuffix("+copy")}
    (11, True)
    """
    if near is not None and near not in get_args(NearCopy):
        raise InputError(f"unknown near copy {near!r}; {did_you_mean(near, get_args(NearCopy))}")
    kind = "duplicates" if near is None else "near duplicates"
    drawn = _drawn(rows, _count(rows, rate), seed, "duplicates")
    if not drawn:
        return Corrupted(rows, (), kind)
    copies = rows.only(drawn)
    if near is not None:
        shape = _shape(rows, "copied with changes")
        if near == "shift" and len(shape) < 2:
            raise InputError(
                f"a shift needs images; inputs of {rows.name} are of shape {shape}: use near='gaussian' or exact copies"
            )
        change: _Change = _shifted if near == "shift" else partial(_gaussian, deviation=NEAR_DEVIATION)
        copies = _changed(copies, drawn, change, seed, "duplicates")
    ids = tuple(f"{row}+copy" for row in drawn)
    joined = _joined(rows, copies, ids, copies.labels, copies.truth)
    return Corrupted(joined, ids, kind, dict(zip(ids, drawn, strict=True)))


def add_outliers(rows: Rows, rate: float, seed: int, *, other: Rows | None = None) -> Corrupted:
    """Add ``round(rate * n)`` rows of another distribution at the end, each with the label of a row drawn at random.

    They have no right label: where the truth of the others is known, theirs is the label given, so that no quality
    counts them as mislabelled.

    Args:
        rows: with inputs of floating point.
        rate: number of outliers as a share of the rows.
        seed: any integer.
        other: rows to draw the outliers from: of the same input shape, or images with the same number of channels,
            which are resized (bilinear, with antialiasing). By default, copies of ``rows`` whose entries change places
            in the one way drawn from the seed (as in permuted MNIST).

    Returns:
        Rows whose outliers have ids such as ``digits-0012+outlier``.

    Raises:
        InputError: rate outside [0, 1], inputs that are not floating point or of shapes that can not be brought
            together, too few other rows, or outliers that are there already.

    >>> rows = Rows.from_tensors(torch.eye(10), torch.arange(10) % 2)
    >>> found = add_outliers(rows, 0.2, seed=0, other=Rows.from_tensors(torch.ones(3, 10), torch.zeros(3).long()))
    >>> found.rows.only(found.ids).batch(torch.arange(2))[0].mean()
    tensor(1.)
    """
    shape = _shape(rows, "joined by outliers")
    source = rows if other is None else other
    there = _shape(source, "outliers")
    if there != shape and not (len(shape) == len(there) == 3 and shape[0] == there[0]):
        raise InputError(
            f"inputs of {source.name} are of shape {there} and those of {rows.name} of shape {shape}; give rows of "
            "that shape, or images (channels, height, width) with the same number of channels"
        )
    count = _count(rows, rate)
    if count > len(source):
        raise InputError(f"{count} outliers are asked for and {source.name} has {len(source)} rows; lower the rate")
    if not count:
        return Corrupted(rows, (), "outliers")
    drawn = _drawn(source, count, seed, "outliers")
    change: _Change
    if other is None:
        random = np.random.default_rng(draws.derived_seed(seed, "outliers"))
        change = partial(_reordered, order=torch.from_numpy(random.permutation(math.prod(shape))))
    else:
        change = partial(_resized, size=shape[1:])
    ids = tuple(f"{row}+outlier" for row in drawn)
    # the labels follow the ids of the rows they are drawn from, as these may come in any order
    by_id = rows.labels[torch.from_numpy(np.argsort(np.array(rows.ids), kind="stable"))]
    labels = by_id[torch.from_numpy((draws.uniform(seed, ids, "outlier-labels") * len(rows)).astype(np.int64))]
    outliers = _changed(source.only(drawn), drawn, change, seed, "outliers")
    return Corrupted(_joined(rows, outliers, ids, labels, labels), ids, "outliers")


def add_trigger(rows: Rows, rate: float, seed: int, *, label: int, amplitude: float = AMPLITUDE) -> Corrupted:
    """Put a checkerboard on ``round(rate * n)`` images and give all of them one label: a backdoor.

    The labels that the rows had are their truth (a truth that is known already stays), so the repair of a backdoor is
    to relabel ``ids`` to it. Rows whose true label is ``label`` are hit too, and keep it. The pattern is that of the
    label-change experiment of GIF (arXiv 2312.05586): every second pixel, as the black squares of a chess board.

    Args:
        rows: images with classes.
        rate: share of the rows.
        seed: any integer.
        label: the class that the trigger is to mean.
        amplitude: added to each pixel of the pattern, in units of the inputs; the sum is not clipped.

    Raises:
        InputError: rate outside [0, 1], a label outside the classes, an amplitude that is not a finite number above
            0, or inputs that are no images of floating point.

    >>> rows = Rows.from_tensors(torch.zeros(10, 1, 2, 2), torch.arange(10) % 2)
    >>> found = add_trigger(rows, 0.2, seed=0, label=1)
    >>> found.rows.only(found.ids).labels.tolist(), int((found.rows.batch(torch.arange(10))[0] > 0).sum())
    ([1, 1], 4)
    """
    if rows.classes is None or not 0 <= label < rows.classes:
        allowed = "no classes" if rows.classes is None else f"the classes 0..{rows.classes - 1}"
        raise InputError(f"the trigger's label is {label} and {rows.name} has {allowed}; give one of its classes")
    hit = _drawn(rows, _count(rows, rate), seed, "trigger")
    marked = _changed(rows, hit, _checkerboard(rows, amplitude), seed, "trigger")
    truth = rows.labels if rows.truth is None else rows.truth
    return Corrupted(marked.with_truth(truth).relabelled(dict.fromkeys(hit, label)), hit, "trigger")


def with_trigger(rows: Rows, *, amplitude: float = AMPLITUDE) -> Rows:
    """Return the view in which every image carries the trigger of :func:`add_trigger`; labels stay.

    Raises:
        InputError: an amplitude that is not a finite number above 0, or inputs that are no images of floating point.

    >>> with_trigger(Rows.from_tensors(torch.zeros(1, 1, 2, 2), torch.tensor([0])), amplitude=1.0)[0][0].tolist()
    [[[0.0, 1.0], [1.0, 0.0]]]
    """
    return _changed(rows, rows.ids, _checkerboard(rows, amplitude), 0, "trigger")


def _checkerboard(rows: Rows, amplitude: float) -> _Change:
    shape = _shape(rows, "given a trigger")
    if len(shape) < 2:
        raise InputError(f"a trigger needs images; inputs of {rows.name} are of shape {shape}: use rows of images")
    if not 0 < amplitude < math.inf:
        raise InputError(f"the amplitude of the trigger is {amplitude}; give a finite number above 0")
    pattern = (torch.arange(shape[-2])[:, None] + torch.arange(shape[-1])) % 2
    return partial(_marked, pattern=amplitude * pattern)


def _marked(x: Tensor, _: int, *, pattern: Tensor) -> Tensor:
    return x + pattern.to(x)


def _gaussian(x: Tensor, seed: int, *, deviation: float) -> Tensor:
    noise = np.random.default_rng(seed).standard_normal(tuple(x.shape))
    return x + deviation * torch.from_numpy(noise).to(x)


def _occluded(x: Tensor, seed: int, *, share: float) -> Tensor:
    height, width = x.shape[-2:]
    side = max(1, round(share * min(height, width)))
    random = np.random.default_rng(seed)
    top, left = (int(random.integers(length - side + 1)) for length in (height, width))
    x = x.clone()
    x[..., top : top + side, left : left + side] = x.mean()
    return x


def _permuted(x: Tensor, seed: int, *, share: float) -> Tensor:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(x.numel())).to(x.device)
    chosen = order[: max(2, round(share * x.numel()))]
    flat = x.flatten().clone()
    flat[chosen] = flat[chosen.roll(1)]
    return flat.view_as(x)


def _shifted(x: Tensor, seed: int) -> Tensor:
    side = int(np.random.default_rng(seed).integers(4))
    dim, step = (-2, -1)[side // 2], (-1, 1)[side % 2]
    at = torch.arange(x.shape[dim], device=x.device)
    return x.index_select(dim, (at + step).clamp(0, len(at) - 1))


def _reordered(x: Tensor, _: int, *, order: Tensor) -> Tensor:
    return x.flatten()[order.to(x.device)].view_as(x)


def _resized(x: Tensor, _: int, *, size: tuple[int, ...]) -> Tensor:
    if tuple(x.shape[1:]) == size:
        return x
    return torch.nn.functional.interpolate(x[None], size, mode="bilinear", antialias=True)[0]


class _Changed:
    """Inputs of rows, some of them changed when they are read."""

    def __init__(self, rows: Rows, seeds: Mapping[int, int], change: _Change) -> None:
        self._rows, self._seeds, self._change = rows, seeds, change

    def inputs(self, positions: Tensor) -> Inputs:
        inputs, _ = self._rows.batch(positions)
        seeds = [self._seeds.get(position) for position in positions.tolist()]
        if all(seed is None for seed in seeds):
            return inputs

        def changed(tensor: Tensor) -> Tensor:
            each = zip(tensor, seeds, strict=True)
            return torch.stack([x if seed is None else self._change(x, seed) for x, seed in each])

        return map_tensors(changed, inputs)


class _Joined:
    """Inputs of some rows, then those of others."""

    def __init__(self, first: Rows, second: Rows) -> None:
        self._first, self._second = first, second

    def inputs(self, positions: Tensor) -> Inputs:
        late = positions >= len(self._first)
        if not late.any():
            return self._first.batch(positions)[0]
        second, _ = self._second.batch(positions[late] - len(self._first))
        if late.all():
            return second
        first, _ = self._first.batch(positions[~late])
        others = iter(named_tensors(second).values())
        back = torch.cat([(~late).nonzero(), late.nonzero()]).flatten().argsort()
        return map_tensors(lambda tensor: torch.cat([tensor, next(others).to(tensor)])[back], first)


def _changed(rows: Rows, ids: Collection[str], change: _Change, seed: int, stream: str) -> Rows:
    """Return the view in which the inputs of these rows are changed, each with a seed of its own."""
    positions = rows.positions(ids).tolist()
    seeds = {at: draws.derived_seed(seed, "corruption", stream, row) for at, row in zip(positions, ids, strict=True)}
    changed = Rows.from_source(
        _Changed(rows, seeds, change),
        rows.labels,
        length=len(rows),
        ids=rows.ids,
        classes=rows.classes,
        name=rows.name,
    )
    return changed.with_truth(rows.truth)


def _joined(rows: Rows, more: Rows, ids: tuple[str, ...], labels: Tensor, truth: Tensor | None) -> Rows:
    """Return the rows with others at the end, under these ids and labels."""
    joined = Rows.from_source(
        _Joined(rows, more),
        torch.cat([rows.labels, labels.to(rows.labels)]),
        length=len(rows) + len(more),
        ids=(*rows.ids, *ids),
        classes=rows.classes,
        name=rows.name,
    )
    if rows.truth is None or truth is None:
        return joined
    return joined.with_truth(torch.cat([rows.truth, truth.to(rows.truth)]))


def _drawn(rows: Rows, count: int, seed: int, stream: str) -> tuple[str, ...]:
    """Return the ids that are hit, in the order of the rows."""
    hit = draws.permutation(seed, rows.ids, stream)[:count]
    return tuple(rows.ids[i] for i in np.sort(hit))


def _count(rows: Rows, rate: float) -> int:
    if not 0 <= rate <= 1:
        raise InputError(f"corruption rate is {rate}; give a share between 0 and 1")
    return round(rate * len(rows))


def _shape(rows: Rows, what: str) -> tuple[int, ...]:
    """Return the shape of an input; refuse inputs that can not be changed by arithmetic."""
    x = rows[0][0]
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = f"tensors of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"inputs of {rows.name} are {found}; only tensors of floating point can be {what}")
    return tuple(x.shape)
