"""The audit: does everything that the ledger says and names still hold? First things first, each by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from unlearn.checkpoint import Check
from unlearn.errors import FolderError, LedgerError, UnlearnError
from unlearn.requests.desk import FOLDER, LEDGER
from unlearn.requests.events import Event, first_flaw
from unlearn.requests.heads import HEADS, read_head
from unlearn.requests.ledger import Ledger
from unlearn.requests.named_files import named_files
from unlearn.requests.state import State
from unlearn.requests.transitions import take_in


def audit(folder: str | Path, *, head: str | Path | None = None, public_key: str | None = None) -> list[Check]:
    """Check the requests of a run; needs no key.

    ``ledger``: the file is whole, with its tables and triggers. ``chain``: every event follows from the one before.
    ``history``: every event may happen where it stands; nothing was released outside its policy. ``requests``: each
    request is registered once, by its event. ``heads``: the heads beside the ledger are heads of it. ``head``: the head
    kept elsewhere is one of it too, so nothing was cut off or rewritten since. ``files``: the pointer, checkpoints,
    verdicts and certificates are those that the events name.

    Args:
        folder: the run folder.
        head: an exported head that was kept elsewhere.
        public_key: hex of the key that must have signed heads.

    Returns:
        The checks in this order, ``ok`` None where one could not be made.

    Raises:
        FolderError: there is no ledger.
    """
    path = Path(folder) / FOLDER / LEDGER
    if not path.is_file():
        raise FolderError(f"there is no ledger {str(path)!r} to audit; check the run folder")
    return list(_Audit(Path(folder), head, public_key).run())


class _Audit:
    def __init__(self, folder: Path, head: str | Path | None, public_key: str | None) -> None:
        self.folder = folder
        self.head = head
        self.public_key = public_key
        self.events: list[Event] = []
        self.registered: list[tuple[int, str, int, int]] = []
        self.state: State | None = None

    def run(self) -> Iterator[Check]:
        checks: dict[str, Callable[[], str | None]] = {
            "ledger": self.check_ledger,
            "chain": self.check_chain,
            "history": self.check_history,
            "requests": self.check_requests,
            "heads": self.check_heads,
            "head": self.check_head,
            "files": self.check_files,
        }
        for name, check in checks.items():
            try:
                detail = check()
            except UnlearnError as error:
                yield Check(name, False, str(error))
            else:
                yield Check(name, None if detail is None else True, detail or "not checked: see above")

    def check_ledger(self) -> str | None:
        with Ledger(self.folder / FOLDER / LEDGER) as ledger:
            flaw = ledger.structure_flaw()
            if flaw is not None:
                raise LedgerError(flaw)
            self.events, self.registered = ledger.events(), ledger.requests()
        if not self.events:
            raise LedgerError("the ledger has no event; it was emptied")
        return f"{len(self.events)} events, {len(self.registered)} requests"

    def check_chain(self) -> str | None:
        if not self.events:
            return None
        flaw = first_flaw(self.events)
        if flaw is not None:
            raise LedgerError(flaw)
        return f"whole; head {self.events[-1].hash[:12]}..."

    def check_history(self) -> str | None:
        if not self.events:
            return None
        self.state = take_in(State(), self.events)
        return f"{len(self.state.batches)} batches, {len(self.state.queue)} requests wait"

    def check_requests(self) -> str | None:
        if self.state is None:
            return None
        flaw = _register_flaw(self.events, self.registered)
        if flaw is not None:
            raise LedgerError(flaw)
        return "each registered once"

    def check_heads(self) -> str | None:
        if not self.events:
            return None
        paths = sorted((self.folder / FOLDER / HEADS).glob("*.json"))
        for path in paths:
            self._check_head(path)
        return f"{len(paths)} beside the ledger"

    def check_head(self) -> str | None:
        if self.head is None or not self.events:
            return None
        count = self._check_head(Path(self.head))
        return f"the ledger goes on from the head given, after event {count} of {len(self.events)}"

    def _check_head(self, path: Path) -> int:
        facts = read_head(path, public_key=self.public_key)
        count = int(facts["count"])
        if count > len(self.events):
            raise LedgerError(
                f"head {str(path)!r} is of event {count}, and the ledger ends with event {len(self.events)}: its end "
                "was cut off"
            )
        event = self.events[count - 1] if count > 0 else None
        if event is None or (event.hash, event.time) != (facts["hash"], facts["time"]):
            raise LedgerError(f"head {str(path)!r} has another hash for event {count}: the ledger was rewritten")
        return count

    def check_files(self) -> str | None:
        if self.state is None:
            return None
        count = 0
        for item in named_files(self.folder, self.state):
            item.check()
            count += 1
        return f"{count} files are as the events name them"


def ledger_flaw(events: list[Event], registered: list[tuple[int, str, int, int]]) -> str | None:
    """Return the first flaw of chain, history and register of these rows, however they were read; None if none."""
    try:
        flaw = first_flaw(events)
        if flaw is None:
            take_in(State(), events)
        return flaw or _register_flaw(events, registered)
    except UnlearnError as error:
        return str(error)


def _register_flaw(events: list[Event], registered: list[tuple[int, str, int, int]]) -> str | None:
    expected: list[tuple[int | None, str, int, int]] = []
    attempts: dict[str, int] = {}
    for event in events:
        if event.kind == "submitted":
            content = str(event.body["content"])
            attempts[content] = attempts.get(content, 0) + 1
            expected.append((event.request, content, attempts[content], event.number))
    for number, (wanted, found) in enumerate(zip(expected, registered, strict=False), 1):
        if wanted != found:
            return f"request {number} is registered as something else than its event says"
    if len(expected) != len(registered):
        return f"{len(registered)} requests are registered, and events name {len(expected)}"
    return None


def audit_passes(checks: list[Check]) -> bool:
    """Whether nothing speaks against it."""
    return all(check.ok is not False for check in checks)
