"""Sketches of rows: kept in memory or in a file, searched for the nearest, put side by side for several noise levels.

Axes: n rows, q queries, k numbers of a sketch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unlearn.atomic import write_atomically
from unlearn.errors import InputError, some

FORMAT = "1"
_QUERY_CHUNK, _ROW_CHUNK = 256, 8192


@dataclass(frozen=True)
class Sketches:
    """Compressed gradients of rows, of unit length (zero, where a gradient is zero).

    Attributes:
        ids: row ids, (n,).
        values: float32, shape (n, k).
        options: how they were made: ``size``, ``seed``, ``task``, the digests of weights, layers and compression, the
            preconditioner. Only sketches with equal options are compared.
    """

    ids: tuple[str, ...]
    values: Tensor
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.dtype != torch.float32 or self.values.ndim != 2 or len(self.values) != len(self.ids):
            raise InputError(
                f"{len(self.ids)} ids and values {self.values.dtype} of shape {tuple(self.values.shape)}; give float32 "
                "values of shape (rows, size)"
            )
        if len(set(self.ids)) != len(self.ids):
            raise InputError("ids of the sketches are not unique; give one sketch for each row")
        bad = (~torch.isfinite(self.values.sum(1))).nonzero().flatten().tolist()
        if bad:
            raise InputError(
                f"sketches of rows {some(self.ids[i] for i in bad)} are not finite; check the model and these rows"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def nearest(self, queries: Sketches, k: int) -> list[list[tuple[str, float]]]:
        """Return for each query the ``k`` rows with the largest inner products: exact, a block of both at a time.

        Args:
            queries: sketches with the options of these.
            k: rows for each query (all, where there are fewer).

        Returns:
            In the order of the queries, lists of (row id, similarity), the nearest first; equal similarities in the
            order of the rows. A similarity is a cosine, from -1 to 1; most negative rows pull against the query.

        Raises:
            InputError: k is below 1, or the queries were made in another way.

        >>> rows = Sketches(("a", "b"), torch.eye(2))
        >>> rows.nearest(Sketches(("q",), torch.tensor([[0.6, 0.8]])), k=1)
        [[('b', 0.800000011920929)]]
        """
        if k < 1:
            raise InputError(f"k is {k}; give at least 1 row for each query")
        self._check_comparable(queries)
        found: list[list[tuple[str, float]]] = []
        for first in range(0, len(queries), _QUERY_CHUNK):
            part = queries.values[first : first + _QUERY_CHUNK]
            best = Nearest(part.new_zeros(len(part), 0), torch.zeros(len(part), 0, dtype=torch.long))
            for start in range(0, len(self), _ROW_CHUNK):
                best = best.merged(part @ self.values[start : start + _ROW_CHUNK].T, start, k)
            found += [
                [(self.ids[i], value) for i, value in zip(*pair, strict=True)]
                for pair in zip(best.positions.tolist(), best.similarities.tolist(), strict=True)
            ]
        return found

    def save(self, path: str | Path) -> None:
        """Write ids, values and options as one safetensors file, whole or not at all.

        Raises:
            FolderError: the file can not be written.
        """
        ids = np.frombuffer(json.dumps(self.ids).encode(), dtype=np.uint8).copy()
        facts = {"unlearn_sketches": FORMAT, "options": json.dumps(self.options)}
        tensors = {"values": self.values.contiguous(), "ids_json": torch.from_numpy(ids)}
        write_atomically(path, save(tensors, metadata=facts))

    @classmethod
    def load(cls, path: str | Path) -> Sketches:
        """Read a file that :meth:`save` wrote; values come back bit for bit.

        Raises:
            InputError: there is no such file, it is not a sketches file of this version, or it is damaged.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Sketches(("a",), torch.ones(1, 1), {"seed": 0}).save(folder + "/rows.safetensors")
        ...     Sketches.load(folder + "/rows.safetensors").options
        {'seed': 0}
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                if facts.get("unlearn_sketches") != FORMAT:
                    raise InputError(
                        f"{path} is not a sketches file of format {FORMAT}; make the sketches again and save them"
                    )
                ids = json.loads(file.get_tensor("ids_json").numpy().tobytes())
                return cls(tuple(ids), file.get_tensor("values"), json.loads(facts["options"]))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} can not be read as sketches: {error}; give a file that save wrote") from error
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is damaged ({error!r}); make the sketches again and save them") from error

    def _check_comparable(self, queries: Sketches) -> None:
        for name, here, there in _differences(self.options, queries.options):
            raise InputError(
                f"the queries were made with {name} = {there!r}, the rows with {here!r}: their inner products would "
                "mean nothing; make both with the same model and options"
            )
        if self.values.shape[1] != queries.values.shape[1]:
            raise InputError(
                f"the queries have {queries.values.shape[1]} numbers each, the rows {self.values.shape[1]}; make both "
                "with one size"
            )


def join_sketches(levels: Mapping[str, Sketches]) -> Sketches:
    """Return sketches of the same rows at several noise levels (or models) side by side, as one.

    The inner product of joined sketches is the mean of those at the levels, as the authors of DMin take the mean of
    influences over time steps and index the flattened sketches of all steps.

    Args:
        levels: by the name of the level, the sketches of the same rows in the same order. Names are recorded, and have
            to be the same for rows and queries.

    Returns:
        Values of shape (n, levels times k).

    Raises:
        InputError: no level, or levels with different rows.

    >>> one = Sketches(("a",), torch.tensor([[1.0, 0.0]]))
    >>> two = Sketches(("a",), torch.tensor([[0.0, 1.0]]))
    >>> join_sketches({"t=0.2": one, "t=0.8": one}).nearest(join_sketches({"t=0.2": one, "t=0.8": two}), k=1)
    [[('a', 0.4999999701976776)]]
    """
    if not levels:
        raise InputError("no sketches to join; give at least one level")
    parts = list(levels.values())
    for name, part in levels.items():
        if part.ids != parts[0].ids:
            raise InputError(
                f"level {name!r} has other rows, or another order of rows, than level {next(iter(levels))!r}; make the "
                "sketches of all levels from the same rows"
            )
    values = torch.cat([part.values for part in parts], 1) / math.sqrt(len(parts))
    return Sketches(parts[0].ids, values, {"levels": {name: dict(part.options) for name, part in levels.items()}})


def _differences(
    here: Mapping[str, Any], there: Mapping[str, Any], within: str = ""
) -> Iterator[tuple[str, object, object]]:
    """Yield (name, value here, value there) of options that differ; None stands for an option that is not there."""
    for name in dict.fromkeys([*here, *there]):
        a, b = here.get(name), there.get(name)
        if isinstance(a, Mapping) or isinstance(b, Mapping):
            yield from _differences(a or {}, b or {}, f"{within}{name}.")
        elif a != b:
            yield f"{within}{name}", a, b


class Nearest(NamedTuple):
    """The best rows so far of some queries, the best first.

    Attributes:
        similarities: shape (queries, up to k).
        positions: of the rows, the same shape.
    """

    similarities: Tensor
    positions: Tensor

    def merged(self, similarities: Tensor, start: int, k: int) -> Nearest:
        """Return the best k of these and of further rows, whose positions count from ``start``."""
        positions = torch.arange(start, start + similarities.shape[1]).expand(similarities.shape)
        values = torch.cat([self.similarities, similarities], 1)
        order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
        return Nearest(values.gather(1, order), torch.cat([self.positions, positions], 1).gather(1, order))
