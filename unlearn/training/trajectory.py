"""Each row's margin and class logits, averaged over training, from the forward passes that training makes anyway."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unlearn.atomic import write_atomically
from unlearn.errors import RecordError
from unlearn.tasks import margins

VERSION = 1


@dataclass(frozen=True)
class Trajectory:
    """Means over training, by row.

    Attributes:
        ids: row ids, (n,).
        margin: mean margin of the given label (AUM, arXiv 2001.10528), (n,).
        logits: mean logits, (n, classes).
        count: how often each row was seen, (n,).
    """

    ids: tuple[str, ...]
    margin: Tensor
    logits: Tensor
    count: Tensor

    def save(self, path: str | Path) -> None:
        """Write as safetensors."""
        tensors = {"margin": self.margin, "logits": self.logits, "count": self.count}
        write_atomically(path, save(tensors, {"about": json.dumps({"version": VERSION, "ids": self.ids})}))

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read what :meth:`save` wrote.

        Raises:
            RecordError: missing or damaged file.
        """
        if not Path(path).exists():
            raise RecordError(f"no trajectory at {path}: train with a recorder, or choose another detector")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["about"])
                if about["version"] != VERSION:
                    raise ValueError(f"it has version {about['version']!r}, this release reads {VERSION}")
                parts = (file.get_tensor(name) for name in ("margin", "logits", "count"))
                return cls(tuple(about["ids"]), *parts)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise RecordError(f"trajectory {path} is damaged: {error}; train again") from error


class TrajectoryMeter:
    """Running sums of margins and logits.

    >>> meter = TrajectoryMeter()
    >>> meter.add(["a"], torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    >>> meter.add(["a"], torch.tensor([[3.0, 0.0]]), torch.tensor([0]))
    >>> meter.trajectory().margin.tolist()
    [2.0]
    """

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        self._margin = torch.zeros(0, dtype=torch.float64)
        self._logits = torch.zeros(0, 0, dtype=torch.float64)
        self._count = torch.zeros(0, dtype=torch.int64)

    def add(self, ids: Sequence[str], logits: Tensor, labels: Tensor) -> None:
        """Add one batch; logits (b, c), labels (b,)."""
        for row in ids:
            self._place.setdefault(row, len(self._place))
        new = len(self._place) - len(self._count)
        values = logits.detach().double().cpu()
        if new:
            self._margin = torch.cat([self._margin, self._margin.new_zeros(new)])
            self._logits = torch.cat(
                [self._logits.reshape(-1, values.shape[1]), values.new_zeros(new, values.shape[1])]
            )
            self._count = torch.cat([self._count, self._count.new_zeros(new)])
        at = torch.tensor([self._place[row] for row in ids])
        self._margin.index_add_(0, at, margins(values, labels.cpu()))
        self._logits.index_add_(0, at, values)
        self._count.index_add_(0, at, torch.ones_like(at))

    def trajectory(self) -> Trajectory:
        """Return the means, rows sorted by id."""
        ids = sorted(self._place)
        at = torch.tensor([self._place[row] for row in ids], dtype=torch.long)
        count = self._count[at]
        return Trajectory(tuple(ids), self._margin[at] / count, self._logits[at] / count[:, None], count)
