"""Something of each layer that is made when it is asked for and kept by nobody, so that one layer is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from unlearn.curvature.layers import Layer

Made = TypeVar("Made")


class PerLayer(Mapping[str, Made]):
    """A mapping by layer name whose values are made anew at every access.

    Attributes:
        layers: the layers by name, known without making anything.

    >>> layer = Layer("fc", "Linear", {"fc.weight": (2, 3)}, False, (1, 2, 3))
    >>> made = PerLayer([layer], lambda layer: list(layer.shape))
    >>> made["fc"], made["fc"] is made["fc"], list(made.layers)
    ([1, 2, 3], False, ['fc'])
    """

    def __init__(self, layers: Iterable[Layer], make: Callable[[Layer], Made]) -> None:
        self.layers = {layer.name: layer for layer in layers}
        self._make = make

    def __getitem__(self, name: str) -> Made:
        return self._make(self.layers[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)
