"""The files that the ledger names, with their digests: pointer, checkpoints, curvature, verdicts, certificates."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.checkpoint.digests import canonical_json, sha256_of_file
from unlearn.errors import CheckpointError, LedgerError
from unlearn.requests.factors import factors_folder
from unlearn.requests.state import ORIGINAL, State, request_name

POINTER = "current.json"
ORIGINAL_FILE = "original.safetensors"
CERTIFICATES = "certificates"


@dataclass(frozen=True)
class NamedFile:
    """A file and what must be in it.

    Attributes:
        what: as a person would call it.
        path: where.
        sha256: of its bytes.
        needed: whether it has to be there; what can be made anew need not.
    """

    what: str
    path: Path
    sha256: str
    needed: bool = True

    def check(self) -> None:
        """Raise LedgerError unless the file is there, with these bytes."""
        if not self.needed and not self.path.exists():
            return
        try:
            found = sha256_of_file(self.path)
        except CheckpointError as error:
            raise LedgerError(f"{self.what} is missing: {str(self.path)!r}; restore it from a copy") from error
        if found != self.sha256:
            raise LedgerError(
                f"{self.what} was altered: {str(self.path)!r} has sha256 {found[:12]}..., the ledger says "
                f"{self.sha256[:12]}..."
            )


def batch_folder(run: Path, batch: int) -> Path:
    """Return the folder of a batch."""
    return run / "requests" / "batches" / f"{batch:04d}"


def model_path(run: Path, batch: int) -> Path:
    """Return the checkpoint of a batch, or the original."""
    return run / ORIGINAL_FILE if batch == ORIGINAL else batch_folder(run, batch) / f"batch-{batch:04d}.safetensors"


def model_digests(state: State, batch: int) -> dict[str, str]:
    """Return sha256 and digest of a batch's model, or of the original's."""
    facts: dict[str, Any] = state.opened["original"] if batch == ORIGINAL else state.batches[batch].edited
    return {"sha256": str(facts["sha256"]), "digest": str(facts["digest"])}


def pointer_bytes(run: Path, state: State) -> bytes:
    """Return what the pointer to the released model has to say; its path is relative to the run folder."""
    batch = state.current
    path = model_path(run, batch).relative_to(run).as_posix()
    return canonical_json({"format": 1, "batch": batch, "checkpoint": path, **model_digests(state, batch)}).encode()


def named_files(run: Path, state: State) -> Iterator[NamedFile]:
    """Yield every file that the events name and that no purge removed, in the order of the events."""
    gone = {path for purge in state.purges for path in purge["paths"]}
    yield from (item for item in _all_files(run, state) if item.path.relative_to(run).as_posix() not in gone)


def _all_files(run: Path, state: State) -> Iterator[NamedFile]:
    yield NamedFile("the original", model_path(run, ORIGINAL), state.opened["original"]["sha256"])
    pointer = run / "requests" / POINTER
    if state.stack or pointer.exists():
        digest = hashlib.sha256(pointer_bytes(run, state)).hexdigest()
        yield NamedFile("the pointer to the released model", pointer, digest)
    for batch in state.batches.values():
        folder = batch_folder(run, batch.number)
        if batch.edited:
            what = f"the checkpoint of batch {batch.number}"
            yield NamedFile(what, model_path(run, batch.number), batch.edited["sha256"])
        factors = batch.edited.get("factors")
        if factors is not None and factors["fitted_by"] == batch.number:
            for name, digest in factors["sha256"].items():
                what, path = f"the curvature fitted by batch {batch.number}", factors_folder(run, factors["key"]) / name
                yield NamedFile(what, path, digest, needed=False)
        for verdict in batch.verdicts:
            yield NamedFile(f"the verdict of batch {batch.number}", folder / verdict["file"], verdict["sha256"])
        for request, issued in sorted(batch.certificates.items()):
            for facts, kind in itertools.product(issued, ("json", "html")):
                what, place = f"the certificate of {request_name(request)}", run / "requests" / CERTIFICATES
                yield NamedFile(what, place / facts[kind], facts[f"{kind}_sha256"])
