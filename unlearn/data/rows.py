"""Rows: inputs, labels and stable string ids, with views that copy nothing."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unlearn.data import draws
from unlearn.data.row_ids import RowNumbers, repeated, row_ids, text_order
from unlearn.errors import InputError, RowNotFoundError, some
from unlearn.inputs import Inputs, map_tensors, named_tensors, row_count

DEFAULT_BATCH = 256


class Source(Protocol):
    """Where inputs are read from; positions are those of the underlying storage."""

    def inputs(self, positions: Tensor) -> Inputs:
        """Return the inputs at these positions, stacked along a first dimension."""
        ...


class TensorSource:
    """Inputs held in tensors."""

    def __init__(self, tensors: Inputs) -> None:
        self.tensors = tensors

    def inputs(self, positions: Tensor) -> Inputs:
        """Return the rows at these positions."""
        return map_tensors(lambda tensor: tensor[positions], self.tensors)


class Rows(Dataset[tuple[Inputs, Tensor]]):
    """A data set whose rows have ids. Views share the source: nothing but index and labels is held.

    Attributes:
        ids: row ids, unique strings, shape (n,); see :mod:`unlearn.data.row_ids`.
        labels: given labels; int64 of shape (n,) for classes, int64 of shape (n, positions) for tokens, float of shape
            (n,) or (n, outputs) for regression.
        truth: true labels where they are known (label noise was added), used for scoring only; else None.
        classes: number of classes, or None for regression.
        name: what the rows are called in messages and reports.

    >>> rows = Rows.from_tensors(torch.eye(3), torch.tensor([0, 1, 1]))
    >>> rows.ids, rows.without(["1"]).ids, rows.relabelled({"0": 1}).labels.tolist()
    (('0', '1', '2'), ('0', '2'), [1, 1, 1])
    """

    def __init__(
        self,
        source: Source,
        index: Tensor,
        ids: Sequence[str],
        labels: Tensor,
        *,
        truth: Tensor | None = None,
        classes: int | None = None,
        name: str = "data",
    ) -> None:
        self._source = source
        self._index = index
        self.ids = row_ids(ids)
        self.labels = labels
        self.truth = truth
        self.classes = classes
        self.name = name

    @classmethod
    def from_tensors(
        cls,
        inputs: Inputs,
        labels: Tensor,
        *,
        ids: Sequence[str] | None = None,
        classes: int | None = None,
        name: str = "data",
    ) -> Rows:
        """Return rows over tensors of inputs (first dimension: rows). Without ids, row numbers are the ids.

        Raises:
            InputError: tensors of several lengths, or what :meth:`from_source` refuses.
        """
        lengths = {part: len(tensor) for part, tensor in named_tensors(inputs).items()}
        if len(set(lengths.values())) != 1:
            raise InputError(f"inputs of {name} have {lengths} rows; give each the same number, at least one")
        source = TensorSource(inputs)
        return cls.from_source(source, labels, ids=ids, classes=classes, name=name, length=row_count(inputs))

    @classmethod
    def from_source(
        cls,
        source: Source,
        labels: Tensor,
        *,
        length: int,
        ids: Sequence[str] | None = None,
        classes: int | None = None,
        name: str = "data",
    ) -> Rows:
        """Return rows over any source, checked: lengths, unique ids, labels inside the classes.

        Raises:
            InputError: what is wrong and with which rows.
        """
        if length == 0 or length != len(labels):
            raise InputError(
                f"{name} has {length} inputs and {len(labels)} labels; give one label for each of >= 1 rows"
            )
        names = row_ids(RowNumbers(np.arange(length)) if ids is None else ids)
        if len(names) != length:
            raise InputError(f"{name} has {length} rows and {len(names)} ids; give one id for each row")
        twice = repeated(names)
        if twice:
            raise InputError(f"ids of {name} are not unique: {some(twice)} named twice; make each id unique")
        if labels.is_floating_point():
            if classes is not None:
                raise InputError(
                    f"labels of {name} are {labels.dtype} but {classes} classes are stated; give integer labels, "
                    "or no number of classes for regression"
                )
            bad = [names[i] for i in _not_finite(labels)]
            if bad:
                raise InputError(f"labels of {name} are not finite in rows {some(bad)}; repair or leave out these rows")
        else:
            labels = labels.long()
            if labels.ndim != 1 and (classes is not None or labels.ndim > 2 or labels.shape[1] == 1):
                raise InputError(
                    f"labels of {name} have shape {tuple(labels.shape)}; class labels are one number a row"
                )
            if labels.ndim == 1 and classes is None:
                classes = int(labels.max()) + 1
            if classes is not None:
                outside = ((labels < 0) | (labels >= classes)).nonzero().flatten().tolist()
                if outside:
                    raise InputError(
                        f"label {int(labels[outside[0]])} of row {names[outside[0]]!r} is outside the classes "
                        f"0..{classes - 1} of {name}; correct it or state the number of classes"
                    )
        return cls(source, torch.arange(length), names, labels, classes=classes, name=name)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> tuple[Inputs, Tensor]:
        inputs, labels = self.batch(torch.tensor([range(len(self))[position]]))
        return map_tensors(lambda x: x[0], inputs), labels[0]

    def __repr__(self) -> str:
        return f"Rows({self.name!r}, n={len(self)}, classes={self.classes})"

    def __contains__(self, row: object) -> bool:
        return row in self.ids

    def positions(self, ids: Iterable[str]) -> Tensor:
        """Return the positions of these ids, in their order.

        Raises:
            RowNotFoundError: an id is not in the data.
            InputError: an id is named twice.
        """
        wanted = [ids] if isinstance(ids, str) else list(ids)
        found = self.ids.find(wanted)
        if -1 in found:
            missing = [row for row, position in zip(wanted, found, strict=True) if position < 0]
            raise RowNotFoundError(
                f"{len(missing)} of {len(wanted)} ids not in {self.name}: {some(map(repr, missing))}; "
                f"its ids look like {self.ids[0]!r}"
            )
        if len(set(wanted)) != len(wanted):
            raise InputError(f"{len(wanted) - len(set(wanted))} ids are named twice; name each row once")
        return torch.tensor(found, dtype=torch.long)

    def batch(self, positions: Tensor) -> tuple[Inputs, Tensor]:
        """Return inputs and labels at these positions.

        Raises:
            InputError: an input is not finite; the row is named.
        """
        inputs = self._source.inputs(self._index[positions])
        for part in named_tensors(inputs).values():
            # a finite sum has finite terms, and costs a tenth of looking at each
            if part.is_floating_point() and not torch.isfinite(part.sum()):
                bad = [self.ids[int(positions[i])] for i in _not_finite(part)]
                if bad:
                    raise InputError(
                        f"inputs of {self.name} are NaN or infinite in rows {some(bad)}; repair or remove them"
                    )
        return inputs, self.labels[positions]

    def texts(self, positions: Tensor) -> list[str] | None:
        """Return what a person reads of rows that are made of texts; None where they are made of something else."""
        words = getattr(self._source, "words", None)
        return None if words is None else list(words(self._index[positions]))

    def batches(
        self,
        size: int = DEFAULT_BATCH,
        device: torch.device | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[tuple[Tensor, Inputs, Tensor]]:
        """Yield (positions, inputs, labels) of rows ``start`` to ``stop``, on ``device``; positions stay on the CPU."""
        stop = len(self) if stop is None else stop
        for first in range(start, stop, size):
            positions = torch.arange(first, min(first + size, stop))
            inputs, labels = self.batch(positions)
            yield positions, map_tensors(lambda x: x.to(device), inputs), labels.to(device)

    def at(self, positions: Tensor) -> Rows:
        """Return the view of the rows at these positions, in their order."""
        return Rows(
            self._source,
            self._index[positions],
            self.ids.at(positions.cpu().numpy()),
            self.labels[positions],
            truth=None if self.truth is None else self.truth[positions],
            classes=self.classes,
            name=self.name,
        )

    def only(self, ids: Iterable[str]) -> Rows:
        """Return the view of the rows with these ids, in their order."""
        return self.at(self.positions(ids))

    def sample(self, count: int, seed: int = 0, stream: str = "sample") -> Rows:
        """Return the view of ``count`` rows drawn by id (all, if there are fewer), in the order of these rows."""
        chosen = torch.from_numpy(draws.permutation(seed, self.ids, stream)[:count].copy())
        return self.at(chosen.sort().values)

    def without(self, ids: Iterable[str]) -> Rows:
        """Return the view without these rows; the others keep their ids and order.

        Raises:
            InputError: no row would be left, or an id is named twice.
            RowNotFoundError: an id is not in the data.
        """
        keep = torch.ones(len(self), dtype=torch.bool)
        keep[self.positions(ids)] = False
        if not keep.any():
            raise InputError(f"all {len(self)} rows of {self.name} would be removed; keep at least one")
        return self.at(keep.nonzero().flatten())

    def relabelled(self, labels: Mapping[str, int | float | Sequence[float] | Tensor]) -> Rows:
        """Return the view in which these rows carry other labels.

        Raises:
            InputError: a label is outside the classes, not finite, or of another shape than the labels.
            RowNotFoundError: an id is not in the data.
        """
        positions = self.positions(labels)
        changed = self.labels.clone()
        if labels:
            changed[positions] = torch.stack([self._label(row, label) for row, label in labels.items()])
        return Rows(
            self._source, self._index, self.ids, changed, truth=self.truth, classes=self.classes, name=self.name
        )

    def _label(self, row: str, label: int | float | Sequence[float] | Tensor) -> Tensor:
        """Return a new label for a row as a tensor, checked."""
        if self.classes is not None and label not in range(self.classes):
            raise InputError(
                f"label {label} for row {row!r} is outside the classes 0..{self.classes - 1} of {self.name}"
            )
        value = torch.as_tensor(label, dtype=self.labels.dtype)
        if value.shape != self.labels.shape[1:] or not torch.isfinite(value).all():
            raise InputError(
                f"label {label} for row {row!r} does not fit: a label of {self.name} is of shape "
                f"{tuple(self.labels.shape[1:])}, with finite numbers"
            )
        return value

    def with_truth(self, truth: Tensor | None) -> Rows:
        """Return the view that knows the true labels (for scoring only), or does not."""
        return Rows(self._source, self._index, self.ids, self.labels, truth=truth, classes=self.classes, name=self.name)

    @cached_property
    def digests(self) -> dict[str, bytes]:
        """sha256 of each row's id, input (type, shape, bytes) and given label, by id."""
        return {self.ids[position]: digest for position, digest in self._row_digests()}

    def _row_digests(self) -> Iterator[tuple[int, bytes]]:
        """Yield position and digest of each row, in order."""
        for positions, inputs, labels in self.batches(1024):
            parts = dict(sorted(named_tensors(inputs).items()))
            kind = "".join(f"{name}{part.dtype}{tuple(part.shape[1:])}" for name, part in parts.items())
            kind += str(labels.dtype)
            contents = [_bytes(part) for part in (*parts.values(), labels)]
            for k, position in enumerate(positions.tolist()):
                row = self.ids[position].encode()
                head = struct.pack("<I", len(row)) + row + kind.encode()
                yield position, hashlib.sha256(head + b"".join(c[k].tobytes() for c in contents)).digest()

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of contents and ids, as hex; the same for any order of the rows."""
        found = np.empty((len(self), hashlib.sha256().digest_size), dtype=np.uint8)
        for position, digest in self._row_digests():
            found[position] = np.frombuffer(digest, dtype=np.uint8)
        total = hashlib.sha256(b"unlearn-rows-1")
        for some_rows in np.array_split(text_order(self.ids), len(self) // 65536 + 1):
            total.update(found[some_rows].tobytes())
        return total.hexdigest()


def _not_finite(values: Tensor) -> list[int]:
    """Return the numbers of the rows in which a value is NaN or infinite."""
    return (~torch.isfinite(values.reshape(len(values), -1))).any(1).nonzero().flatten().tolist()


def _bytes(tensor: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Return the raw bytes of each row, shape (rows, bytes)."""
    flat = tensor.detach().cpu().reshape(len(tensor), -1).contiguous()
    return flat.view(torch.uint8).numpy()
