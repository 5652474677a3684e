"""The head of the ledger: how many events it has and the hash of the last, signed, to be kept elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unlearn.atomic import make_folder, write_atomically
from unlearn.checkpoint.digests import canonical_json
from unlearn.errors import LedgerError
from unlearn.requests.desk import Desk
from unlearn.requests.events import Event
from unlearn.requests.keys import Keys, signature_holds

FORMAT = 1
HEADS = "heads"


def head_bytes(event: Event, keys: Keys | None) -> bytes:
    """Return the file that says: at this event the ledger had this hash. Equal arguments give equal bytes."""
    facts: dict[str, Any] = {
        "format": FORMAT,
        "kind": "unlearn ledger head",
        "count": event.number,
        "hash": event.hash,
        "time": event.time,
        "public_key": None if keys is None else keys.public,
    }
    signature = None if keys is None else keys.sign(canonical_json(facts).encode())
    return canonical_json({**facts, "signature": signature}).encode()


def export_head(desk: Desk, path: str | Path | None = None) -> Path:
    """Write the present head; without a path to ``heads/head-<count>.json`` beside the ledger.

    Raises:
        LedgerError: the ledger is empty.
        FolderError: it can not be written.
    """
    last = desk.ledger.last()
    if last is None:
        raise LedgerError("the ledger is empty, so it has no head")
    if path is None:
        return write_head(desk, last)
    write_atomically(path, head_bytes(last, desk.keys))
    return Path(path)


def write_head(desk: Desk, event: Event) -> Path:
    """Write the head at an event beside the ledger."""
    path = head_path(desk, event.number)
    make_folder(path.parent)
    write_atomically(path, head_bytes(event, desk.keys))
    return path


def head_path(desk: Desk, count: int) -> Path:
    """Return where the head after ``count`` events lies."""
    return desk.folder / HEADS / f"head-{count:06d}.json"


def read_head(path: str | Path, *, public_key: str | None = None) -> dict[str, Any]:
    """Read a head and check its signature.

    Args:
        path: the file.
        public_key: hex of the key that must have signed it; the one that the file names if None.

    Raises:
        LedgerError: it was altered, or is no head.
    """
    where = f"head {str(path)!r}"
    try:
        data = Path(path).read_bytes()
        facts = json.loads(data)
        whole = canonical_json(facts).encode() == data and facts["format"] == FORMAT and isinstance(facts["count"], int)
        signature = facts.pop("signature")
        signed_by = facts["public_key"]
    except OSError as error:
        raise LedgerError(f"can not read {where}: {error.strerror}; check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LedgerError(f"{where} is damaged or altered ({error!r}); take another copy") from error
    if not whole:
        raise LedgerError(f"{where} is damaged or altered; take another copy")
    if public_key is not None and signed_by != public_key:
        raise LedgerError(f"{where} is not signed with the public key given; somebody else wrote it")
    if signed_by is not None and not signature_holds(signed_by, str(signature), canonical_json(facts).encode()):
        raise LedgerError(f"the signature of {where} does not hold; it was altered")
    if signed_by is None and signature is not None:
        raise LedgerError(f"{where} is damaged or altered: it has a signature and names no key")
    return dict(facts)
