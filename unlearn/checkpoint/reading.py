"""Reading a checkpoint and believing nothing in it: lengths, header, metadata and tensors are checked."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from unlearn.checkpoint.digests import canonical_json, non_finite, sha256_of_tensors, sha256_of_text
from unlearn.errors import CheckpointError, InputError

FORMAT = 1
METADATA_KEY = "unlearn"
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte was checked against its digests.

    Attributes:
        path: the file.
        tensors: parameters and buffers by name, on the CPU.
        metadata: the provenance (see :func:`unlearn.checkpoint.save_checkpoint`), or None for a foreign file.
        digest: sha256 over metadata and tensors; for a foreign file over the tensors.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, Any] | None
    digest: str

    @property
    def kind(self) -> str:
        """``original``, ``edited``, ``imported``, or ``foreign`` (a safetensors file of another program)."""
        return "foreign" if self.metadata is None else str(self.metadata["kind"])

    @property
    def record(self) -> dict[str, Any] | None:
        """The training record as a dictionary, where one was saved."""
        return None if self.metadata is None else self.metadata.get("record")

    @property
    def edit(self) -> dict[str, Any] | None:
        """Method, rows (sha256 of each id), steps and cost of the edit, where there was one."""
        return None if self.metadata is None else self.metadata.get("edit")

    @property
    def spec(self) -> dict[str, Any] | None:
        """Name and options of the model, where they were saved."""
        return None if self.metadata is None else self.metadata.get("model")


@dataclass(frozen=True)
class Header:
    """What the first bytes of a safetensors file say.

    Attributes:
        layout: type and shape of each tensor, by name.
        text: what stands under ``unlearn`` in the file's metadata, not yet checked, or None.
        size: bytes of the file.
    """

    layout: dict[str, tuple[str, tuple[int, ...]]]
    text: str | None
    size: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the names, types and shapes of a safetensors file, without its tensors.

    Raises:
        CheckpointError: the file is missing, cut short, or no safetensors file.
    """
    name = str(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
            text = file.read(min(length, size, _LARGEST_HEADER))
    except OSError as error:
        raise CheckpointError(f"can not read checkpoint {name!r}: {error.strerror}; check the path") from error
    if len(first) < 8:
        raise CheckpointError(f"{name!r} is cut short: {size} bytes are too few for a safetensors file; copy it again")
    if not text.startswith(b"{"):
        raise CheckpointError(
            f"the header of {name!r} is unreadable: this is no safetensors file, or it is damaged; give a .safetensors "
            "file (a .pt file: unlearn checkpoint import)"
        )
    if len(text) < length:
        raise CheckpointError(
            f"{name!r} is cut short: its header has {length} bytes, the file {size}; copy or save it again"
        )
    try:
        entries = json.loads(text)
        extra = entries.pop("__metadata__", {})
        layout = {str(k): (str(v["dtype"]), tuple(int(n) for n in v["shape"])) for k, v in entries.items()}
        end = max((int(v["data_offsets"][1]) for v in entries.values()), default=0)
        provenance = extra.get(METADATA_KEY)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"the header of {name!r} is unreadable: {_line(error)}; the file is damaged: copy or save it again"
        ) from error
    if 8 + length + end != size:
        wrong = "is cut short" if size < 8 + length + end else "has bytes after its end"
        raise CheckpointError(
            f"{name!r} {wrong}: {size} bytes, and its header says {8 + length + end}; copy or save it again"
        )
    return Header(layout, provenance, size)


def parse_metadata(text: str | None, name: str) -> dict[str, Any]:
    """Return the provenance in a header's text, checked against its digest.

    Raises:
        CheckpointError: there is none, it was altered, or a newer version wrote it.
    """
    if text is None:
        raise CheckpointError(
            f"{name!r} has no unlearn metadata: another program wrote it; save it with unlearn.save_checkpoint, or "
            "read it with require_provenance=False"
        )
    altered = f"the metadata of {name!r} was altered or damaged; restore the file from a copy"
    try:
        metadata = json.loads(text)
        version = metadata["format"]
        digest = metadata["digest"]
        canonical = canonical_json(metadata) == text
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{altered} ({_line(error)})") from error
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            f"{name!r} has format {version}, written by a newer version; this one reads formats up to {FORMAT}: "
            "upgrade unlearn"
        )
    if version != FORMAT or not canonical or digest != digest_of(metadata) or not _well_formed(metadata):
        raise CheckpointError(altered)
    return dict(metadata)


def _well_formed(metadata: Mapping[str, Any]) -> bool:
    """Whether what this package reads again is there, with its type; a digest can be written by anybody."""
    wanted: dict[str | None, dict[str, type | tuple[type, ...]]] = {
        None: {"kind": str, "tensors_sha256": str, "versions": dict},
        "parent": {"name": str, "sha256": str, "digest": str},
        "recipe": {"name": (str, type(None)), "sha256": str, "text": str},
        "model": {"name": str, "options": dict},
        "record": {},
        "edit": {},
    }
    for entry, fields in wanted.items():
        value = metadata if entry is None else metadata.get(entry, {})
        absent = entry is not None and entry not in metadata
        if not absent and not (isinstance(value, dict) and all(isinstance(value.get(k), t) for k, t in fields.items())):
            return False
    rows = metadata.get("edit", {}).get("rows", [])
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def digest_of(metadata: Mapping[str, Any]) -> str:
    """Return the sha256 of metadata without its own digest; the tensors' sha256 is part of the metadata."""
    return sha256_of_text(canonical_json({key: value for key, value in metadata.items() if key != "digest"}))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the provenance of a checkpoint, without its tensors.

    Raises:
        CheckpointError: the file is damaged, altered, or has no provenance.
    """
    return parse_metadata(read_header(path).text, str(path))


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file; nothing but the file's own form is checked.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"the header of {str(path)!r} is unreadable: {_line(error)}; the file is damaged: copy or save it again"
        ) from error


def check_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], name: str) -> None:
    """Raise CheckpointError unless the tensors are those that the metadata was written with."""
    if sha256_of_tensors(tensors) != metadata["tensors_sha256"]:
        raise CheckpointError(
            f"the tensors of {name!r} do not match their digest: weights were altered or damaged after saving; restore "
            "the file from a copy"
        )


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise CheckpointError where a tensor has a NaN or an infinity."""
    bad = non_finite(tensors)
    if bad is not None:
        raise CheckpointError(f"tensor {bad!r} of {name!r} is NaN or infinite; train or save the model again")


def read_checkpoint(path: str | os.PathLike[str], *, require_provenance: bool = True) -> Checkpoint:
    """Read a checkpoint and check it: length, header, format, metadata digest, tensor digest, finite weights.

    The digests find damage and careless changes. They are no signature: who writes a file anew can write them too.

    Args:
        path: a safetensors file.
        require_provenance: False also accepts a safetensors file of another program; its kind is ``foreign``.

    Raises:
        CheckpointError: what is wrong with the file.

    >>> import tempfile, torch
    >>> from unlearn.checkpoint import save_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     digest = save_checkpoint(Path(folder, "a.safetensors"), {"weight": torch.ones(2)})
    ...     checkpoint = read_checkpoint(Path(folder, "a.safetensors"))
    >>> checkpoint.kind, checkpoint.digest == digest, checkpoint.tensors["weight"].tolist()
    ('original', True, [1.0, 1.0])
    """
    name = str(path)
    header = read_header(path)
    foreign = header.text is None and not require_provenance
    metadata = None if foreign else parse_metadata(header.text, name)
    tensors = read_tensors(path)
    if metadata is not None:
        check_tensors(tensors, metadata, name)
    check_finite(tensors, name)
    digest = sha256_of_tensors(tensors) if metadata is None else str(metadata["digest"])
    return Checkpoint(Path(path), tensors, metadata, digest)


def model_layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type and shape of each tensor by name, in PyTorch's words."""
    return {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()}


def state_tensors(state: Mapping[str, Any], what: str) -> dict[str, Tensor]:
    """Return a state dictionary whose every entry is a plain tensor with a string name.

    Raises:
        InputError: it is empty, or an entry is something else.
    """
    if not state:
        raise InputError(f"{what} has no tensors; give a model or a state dictionary with at least one")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"entry {name!r} of {what} is {type(value).__name__}; a state dictionary holds tensors by string "
                "names: leave it out"
            )
    return dict(state)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
