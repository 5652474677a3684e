"""What is asked of a package, and clocks.

Times are CPU seconds of the process (user and system): with one thread they are what a calm machine takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.case import Case


class Peer(Protocol):
    """One package on one case; each method is called once, in this order, with the batch size that suits it best.

    Attributes:
        DISTRIBUTION: name of the package on PyPI.
        BATCHES: batch sizes that are tried; the best is taken.
        ONLY_LINEAR: whether it covers Linear layers only.
        FISHER: of what its factors are made, beside the sampled labels that all get.
    """

    DISTRIBUTION: ClassVar[str]
    BATCHES: ClassVar[tuple[int, ...]]
    ONLY_LINEAR: ClassVar[bool]
    FISHER: ClassVar[str]

    def __init__(self, case: Case, folder: str) -> None: ...

    def fit(self, batch: int) -> float:
        """Fit EK-FAC, or what the package has in its place; return the seconds of eigendecompositions."""

    def self_influence(self, batch: int) -> Tensor | None:
        """Return g^T (G + d)^-1 g of each row at its given label; None where the package has no such thing."""

    def pairwise(self, batch: int) -> Tensor:
        """Return influences (queries, rows), positive where a row is harmful, as in :func:`unlearn.influence`."""


class Clock:
    """CPU seconds spent."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done inside."""
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds += time.process_time() - start


@contextmanager
def inside(module: Any, name: str) -> Iterator[Clock]:
    """Count what a function of a module takes whenever it is called."""
    clock, function = Clock(), getattr(module, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        with clock.running():
            return function(*arguments, **options)

    with mock.patch.object(module, name, timed):
        yield clock


def loader(case: Case, batch: int, labels: Tensor) -> DataLoader[Any]:
    """Return the rows in order with some labels."""
    return DataLoader(TensorDataset(case.inputs, labels), batch_size=batch)


def query_loader(case: Case, batch: int) -> DataLoader[Any]:
    """Return the queries in order."""
    return DataLoader(TensorDataset(*case.queries), batch_size=batch)


def per_sample_gradients(model: nn.Module) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """Return the function (inputs, labels) -> gradients (b, ...) by name: torch.func's, as their docs do it."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, weights, (x[None],))
        return torch.nn.functional.cross_entropy(outputs, y[None])

    gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    return lambda inputs, labels: gradient(parameters, inputs, labels)
