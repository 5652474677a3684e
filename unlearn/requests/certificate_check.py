"""Checking a certificate: its form, its signature, the chain it stands in, and the files it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unlearn.checkpoint import Check
from unlearn.checkpoint.digests import canonical_json, sha256_of_file
from unlearn.errors import LedgerError, UnlearnError
from unlearn.requests.certificate import FORMAT
from unlearn.requests.desk import FOLDER, LEDGER
from unlearn.requests.events import Event, first_flaw
from unlearn.requests.keys import signature_holds
from unlearn.requests.ledger import Ledger
from unlearn.requests.named_files import CERTIFICATES, model_path
from unlearn.requests.state import State, request_number
from unlearn.requests.transitions import take_in


def read_certificate(path: str | Path) -> dict[str, Any]:
    """Read a certificate.

    Raises:
        LedgerError: it is none, or not in the one form that is written.
    """
    where = f"certificate {str(path)[:200]!r}"
    try:
        data = Path(path).read_bytes()
        facts = json.loads(data)
        whole = canonical_json(facts).encode() == data and facts["format"] == FORMAT
        whole = whole and facts["kind"] == "unlearn deletion certificate" and "signature" in facts
    except OSError as error:
        raise LedgerError(f"can not read {where}: {error.strerror}; check the path") from error
    except (ValueError, KeyError, TypeError, UnlearnError, RecursionError) as error:
        raise LedgerError(f"{where} is damaged or altered: it is no JSON of a certificate") from error
    if not whole:
        raise LedgerError(f"{where} is damaged or altered: it is not in the form that is written")
    return dict(facts)


def verify_certificate(
    path: str | Path, *, run: str | Path | None = None, public_key: str | None = None
) -> list[Check]:
    """Check a certificate, first things first.

    ``form``: it reads as a certificate. ``signature``: it holds, under the public key given or the one it names.
    ``chain``: the ledger is whole and has the event it names, with this hash. ``record``: the ledger says that exactly
    this file was issued, and it was not rolled back since. ``digests``: the checkpoint named is the one in the run.

    Args:
        path: the JSON file.
        run: the run folder; looked for around the file if None. Without one, chain, record and digests are not checked.
        public_key: hex of the key that must have signed.

    Returns:
        The checks in this order, ``ok`` None where one could not be made.
    """
    file = Path(path)
    if run is None and file.resolve().parent.name == CERTIFICATES and file.resolve().parents[1].name == FOLDER:
        run = file.resolve().parents[2]
    return _Checks(file, None if run is None else Path(run), public_key).run()


class _Checks:
    def __init__(self, path: Path, run: Path | None, public_key: str | None) -> None:
        self.path, self.folder, self.public_key = path, run, public_key
        self.facts: dict[str, Any] = {}
        self.events: list[Event] = []
        self.state: State | None = None

    def run(self) -> list[Check]:
        checks: dict[str, Callable[[], str | None]] = {
            "form": self.form,
            "signature": self.signature,
            "chain": self.chain,
            "record": self.record,
            "digests": self.digests,
        }
        out = []
        for name, check in checks.items():
            try:
                detail = check() if name == "form" or self.facts else None
            except UnlearnError as error:
                out.append(Check(name, False, str(error)))
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                out.append(Check(name, False, f"the certificate lacks what is needed: {error!r}"))
            else:
                out.append(Check(name, None if detail is None else True, detail or "not checked"))
        return out

    def form(self) -> str | None:
        self.facts = read_certificate(self.path)
        return f"{self.facts['request']}, {self.facts['answer']}"

    def signature(self) -> str | None:
        public, signature = self.facts["public_key"], self.facts["signature"]
        if self.public_key is not None and public != self.public_key:
            raise LedgerError("it is not signed with the public key given; somebody else wrote it")
        if public is None and signature is None:
            return None
        unsigned = {key: value for key, value in self.facts.items() if key != "signature"}
        if not signature_holds(str(public), str(signature), canonical_json(unsigned).encode()):
            raise LedgerError("the signature does not hold: the certificate was altered")
        known = "the public key given" if self.public_key else "the key that it names itself (give --public-key)"
        return f"holds under {known}"

    def chain(self) -> str | None:
        if self.folder is None:
            return None
        with Ledger(self.folder / FOLDER / LEDGER) as ledger:
            self.events = ledger.events()
        flaw = first_flaw(self.events)
        if flaw is not None:
            raise LedgerError(f"the ledger does not hold: {flaw}")
        at = self.facts["ledger"]
        position = at["position"]
        if not 1 <= position <= len(self.events) or self.events[position - 1].hash != at["hash"]:
            raise LedgerError(
                f"the ledger has no event {position} with the hash named; it is another ledger, or was cut"
            )
        self.state = take_in(State(), self.events)
        return f"event {position} of {len(self.events)}"

    def record(self) -> str | None:
        if self.state is None:
            return None
        number = request_number(self.facts["request"])
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        issued = [e for e in self.events if e.kind == "certified" and e.request == number]
        found = next((event for event in issued if event.body["json_sha256"] == digest), None)
        if found is None:
            raise LedgerError("the ledger says nothing of this certificate: it was altered, or never issued")
        batch = self.state.batches[found.body["batch"]]
        if batch.number not in self.state.stack:
            raise LedgerError(f"batch {batch.number} was rolled back after this certificate was issued")
        if found is not issued[-1]:
            raise LedgerError(f"a later certificate of this request was issued: {issued[-1].body['json']}")
        return f"issued by event {found.number}"

    def digests(self) -> str | None:
        if self.state is None or self.folder is None:
            return None
        after = self.facts["model"]["after"]
        path = model_path(self.folder, after["batch"])
        if path.relative_to(self.folder).as_posix() in {p for purge in self.state.purges for p in purge["paths"]}:
            return f"the checkpoint of batch {after['batch']} was purged by an event"
        if sha256_of_file(path) != after["sha256"]:
            raise LedgerError(f"{str(path)!r} is not the checkpoint that the certificate names: its sha256 differs")
        return f"the checkpoint of batch {after['batch']} is the one named"
