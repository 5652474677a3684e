"""Digests: canonical JSON, and sha256 of tensors and of files."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unlearn.errors import CheckpointError, InputError

_CHUNK = 1 << 20


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no white space, ASCII, finite numbers.

    Raises:
        InputError: something in it has no JSON.

    >>> canonical_json({"b": (1, 2.5), "a": None})
    '{"a":null,"b":[1,2.5]}'
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"checkpoint metadata can not be written as JSON ({error}); use strings, finite numbers, booleans, None, "
            "lists and dictionaries with string keys"
        ) from error


def sha256_of_text(text: str) -> str:
    """Return the sha256 of a text in UTF-8, as hex.

    >>> sha256_of_text("mnist5k-0007")[:8]
    'd157691a'
    """
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file's bytes, as hex.

    Raises:
        CheckpointError: the file can not be read.
    """
    total = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                total.update(chunk)
    except OSError as error:
        raise CheckpointError(f"can not read {str(path)!r}: {error.strerror}; check the path") from error
    return total.hexdigest()


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over name, type, shape and little-endian bytes of each tensor, names sorted, as hex.

    The file format plays no part in it: the same tensors have the same digest in memory and in any file.

    >>> a, b = torch.zeros(2), torch.ones(1)
    >>> sha256_of_tensors({"a": a, "b": b}) == sha256_of_tensors({"b": b, "a": a})
    True
    >>> sha256_of_tensors({"a": a}) == sha256_of_tensors({"a": a.reshape(2, 1)})
    False
    """
    total = hashlib.sha256(b"unlearn-tensors-1")
    for name in sorted(tensors):
        tensor = tensors[name]
        head = f"{len(name)} {name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}".encode()
        total.update(struct.pack("<Q", len(head)) + head)
        total.update(raw_bytes(tensor).numpy().data)
    return total.hexdigest()


def raw_bytes(tensor: Tensor) -> Tensor:
    """Return the elements' little-endian bytes in row-major order, uint8 of shape (bytes,).

    >>> raw_bytes(torch.tensor([1, 256], dtype=torch.int16)).tolist()
    [1, 0, 0, 1]
    """
    plain = tensor.detach().cpu()
    if plain.is_complex():
        plain = torch.view_as_real(plain.resolve_conj())
    raw = plain.resolve_neg().reshape(-1).view(torch.uint8)
    return raw.reshape(-1, plain.element_size()).flip(1).reshape(-1) if sys.byteorder == "big" else raw


def non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a NaN or an infinity, or None.

    >>> non_finite({"weight": torch.ones(2), "bias": torch.tensor(float("nan"))})
    'bias'
    """
    for name, tensor in tensors.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
            return name
    return None
