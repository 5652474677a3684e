"""The file of a curvature's factors, written and read a layer at a time.

It is a safetensors file. The header of such a file stands before the data and says where they lie, so room is left for
it and it is written last: blocks come one by one, and none is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unlearn.checkpoint.digests import raw_bytes
from unlearn.curvature.block import Basis, Block
from unlearn.curvature.layers import Layer
from unlearn.curvature.per_layer import PerLayer
from unlearn.errors import CheckpointError, some

_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_LONGEST = {"dtype": "BF16", "data_offsets": [2**60, 2**60]}


def factor_shapes(layer: Layer, kind: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what a block of a kind of curvature is made of, by name.

    >>> factor_shapes(Layer("fc", "Linear", {"fc.weight": (2, 3)}, False, (1, 2, 3)), "diagonal")
    {'eigenvalues': (1, 2, 3)}
    """
    g, o, i = layer.shape
    if kind == "diagonal":
        return {"eigenvalues": (g, o, i)}
    shapes: dict[str, tuple[int, ...]] = {
        "eigenvalues": (g, o, i),
        "input_eigenvalues": (g, i),
        "output_eigenvalues": (g, o),
    }
    if not layer.unit_inputs:
        shapes["input_basis"] = g, i, i
    if not layer.unit_outputs:
        shapes["output_basis"] = g, o, o
    return shapes


def factor_count(layer: Layer, kind: str) -> int:
    """Return how many numbers a block of a kind of curvature is made of."""
    return sum(map(math.prod, factor_shapes(layer, kind).values()))


def write_factors(path: Path, layers: Iterable[Layer], kind: str, blocks: Iterable[Block]) -> None:
    """Write the blocks of these layers, each when it comes.

    Raises:
        OSError: the file can not be written.
    """
    entries = {f"{la.name}:{part}": shape for la in layers for part, shape in factor_shapes(la, kind).items()}
    room = len(json.dumps({name: {**_LONGEST, "shape": shape} for name, shape in entries.items()}))
    room += -room % 8
    header: dict[str, object] = {}
    with path.open("wb") as file:
        file.seek(8 + room)
        end = 0
        for block in blocks:
            for part, tensor in block.tensors.items():
                begin, end = end, end + tensor.nbytes
                file.write(raw_bytes(tensor).numpy().data)
                header[f"{block.layer.name}:{part}"] = {
                    "dtype": _DTYPES[tensor.dtype],
                    "shape": list(tensor.shape),
                    "data_offsets": [begin, end],
                }
        file.seek(0)
        file.write(room.to_bytes(8, "little") + json.dumps(header).encode().ljust(room))


def stored_blocks(
    path: Path, layers: Iterable[Layer], kind: str, clamped: Mapping[str, int], device: Mapping[str, torch.device]
) -> PerLayer[Block]:
    """Return the blocks in a file, each read when it is asked for.

    Args:
        path: the file.
        layers: those that must be in it, and no others.
        kind: of the curvature.
        clamped: of each block.
        device: where each block goes.

    Raises:
        CheckpointError: the file can not be read, holds other tensors, or, when a block is read, is another file.
    """
    layers = list(layers)
    version = _version(path)
    with _opened(path) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for layer in layers:
        for part, shape in factor_shapes(layer, kind).items():
            if found.pop(f"{layer.name}:{part}", None) != shape:
                raise CheckpointError(
                    f"{path} has no {part} of shape {shape} for layer {layer.name!r}; fit the curvature again"
                )
    if found:
        raise CheckpointError(f"{path} has tensors of no layer: {some(found)}; fit the curvature again")

    def read(layer: Layer) -> Block:
        if _version(path) != version:
            raise CheckpointError(f"{path} was replaced since the curvature was opened; load the curvature again")
        parts = {
            part: _read(path, f"{layer.name}:{part}").to(device[layer.name]) for part in factor_shapes(layer, kind)
        }
        return Block(
            layer,
            Basis(parts.get("input_basis"), parts.get("output_basis")),
            parts["eigenvalues"],
            parts.get("input_eigenvalues"),
            parts.get("output_eigenvalues"),
            clamped[layer.name],
        )

    return PerLayer(layers, read)


def _read(path: Path, name: str) -> Tensor:
    """Return one tensor in memory of its own: a mapped one stays resident with its file, and is not aligned."""
    with _opened(path) as file:
        return file.get_tensor(name).clone()  # type: ignore[no-any-return]


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can not be read: {error}; fit the curvature again") from error


def _version(path: Path) -> tuple[int, int, int]:
    """Return what changes when a file is replaced or written to."""
    try:
        found = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} can not be read: {error}; fit the curvature again") from error
    return found.st_ino, found.st_size, found.st_mtime_ns
