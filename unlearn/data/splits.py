"""Which rows are test rows, drawn by id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unlearn.data import draws

TEST_SHARE = 0.2


def split_positions(ids: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Return the positions of the ``train`` (80 %) and ``test`` (20 %) rows, in order.

    >>> parts = split_positions([f"r{i}" for i in range(10)], seed=0)
    >>> len(parts["train"]), len(parts["test"]), sorted(torch.cat(list(parts.values())).tolist()) == list(range(10))
    (8, 2, True)
    """
    order = draws.permutation(seed, ids, "split")
    tests = int(TEST_SHARE * len(ids))
    return {part: torch.from_numpy(np.sort(x)) for part, x in (("test", order[:tests]), ("train", order[tests:]))}
