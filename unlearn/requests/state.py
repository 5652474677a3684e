"""Every request and every batch as they stand, and which model is released."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unlearn.errors import InputError
from unlearn.requests.events import Event

ORIGINAL = 0
OPEN = ("received", "in work", "held", "provisional")


@dataclass
class Request:
    """A request as it stands.

    Attributes:
        number: shown as ``R-0001``.
        action: ``remove`` or ``relabel``.
        rows: new label (None: remove) by the code of each row that is held.
        not_held: what was asked for and is not in the data, as (kind, code).
        asked: how rows were named, as (kind, code).
        reason: its code, or None.
        received: date.
        due: date.
        status: ``received``, ``in work``, ``held``, ``provisional``, ``released``, ``not held`` or ``cancelled``.
        batch: number of the batch that answers it, or None.
        retrain: whether only a retrain may answer it (an edit for it was refused or rolled back).
        times: how often it came in.
    """

    number: int
    action: str
    rows: dict[str, int | float | None]
    not_held: list[tuple[str, str]]
    asked: list[tuple[str, str]]
    reason: str | None
    received: str
    due: str
    status: str = "received"
    batch: int | None = None
    retrain: bool = False
    times: int = 1

    @property
    def name(self) -> str:
        """The number as people write it."""
        return request_name(self.number)

    def overdue(self, today: str) -> bool:
        """Whether it is open past its due date; ``today`` as ``2026-03-01``."""
        return self.status in OPEN and self.status != "provisional" and today > self.due


@dataclass
class Batch:
    """Requests answered together by one model.

    Attributes:
        number: 1, 2, ...
        requests: their numbers.
        method: ``edit``, ``retrain``, or ``nothing`` (no row of theirs is in the model's data).
        base: the batch whose model was current when it was opened; 0 for the original.
        removed: codes of the rows it removes.
        relabelled: new label by code.
        policy: the release policy in force.
        stage: ``opened``, ``edited``, ``verified``, ``held``, ``approved``, ``releasing``, ``released``, ``closed``,
            ``refused`` or ``rolled back``.
        edited: body of its ``edited`` event.
        verdicts: bodies of its ``verified`` events, in order.
        standing: the event by which it stands as it does: released, confirmed or approved.
        verify_by: date by which a provisional release is verified in full; None once it is, or where it need not be.
        certificates: bodies of its ``certified`` events by request, in order.
        to_certify: requests that wait for a certificate.
    """

    number: int
    requests: list[int]
    method: str
    base: int
    removed: list[str]
    relabelled: dict[str, int | float]
    policy: dict[str, Any]
    stage: str = "opened"
    edited: dict[str, Any] = field(default_factory=dict)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    standing: Event | None = None
    verify_by: str | None = None
    certificates: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    to_certify: set[int] = field(default_factory=set)

    @property
    def outcome(self) -> str | None:
        """Outcome of the last verdict."""
        return str(self.verdicts[-1]["outcome"]) if self.verdicts else None


@dataclass
class State:
    """Everything that the events up to ``count`` say.

    Attributes:
        count: number of events.
        head: hash of the last.
        opened: body of the first event: id of the ledger, digests of the original.
        key: fingerprint of the row key in force; None when it was destroyed.
        requests: by number.
        batches: by number.
        stack: batches whose changes the current model has, oldest first.
        moving: body of a rollback that is not finished, or None.
        purging: body of a purge that is not finished, or None.
        purges: bodies of finished purges.
    """

    count: int = 0
    head: str = ""
    opened: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    requests: dict[int, Request] = field(default_factory=dict)
    batches: dict[int, Batch] = field(default_factory=dict)
    stack: list[int] = field(default_factory=list)
    moving: dict[str, Any] | None = None
    purging: dict[str, Any] | None = None
    purges: list[dict[str, Any]] = field(default_factory=list)

    @property
    def current(self) -> int:
        """The batch whose model is released; 0 for the original."""
        return next((k for k in reversed(self.stack) if self.batches[k].method != "nothing"), ORIGINAL)

    @property
    def unfinished(self) -> Batch | None:
        """The batch that was opened and is neither held nor at an end."""
        return next(
            (b for b in self.batches.values() if b.stage not in ("held", "closed", "refused", "rolled back")), None
        )

    @property
    def held(self) -> Batch | None:
        """The batch that waits for a person."""
        return next((batch for batch in self.batches.values() if batch.stage == "held"), None)

    @property
    def queue(self) -> list[Request]:
        """Requests that wait for a batch, in their order."""
        return [request for request in self.requests.values() if request.status == "received"]

    def drift(self) -> float:
        """How far edits have moved the released model's outputs since the last training, in nats."""
        return 0.0 if self.current == ORIGINAL else float(self.batches[self.current].edited["drift"])

    def deleted(self) -> dict[str, int]:
        """Codes of the rows that the released model was made to forget, with the batch that did it."""
        return {code: k for k in self.stack for code in self.batches[k].removed}

    def request(self, number: int) -> Request:
        """Return a request.

        Raises:
            InputError: there is none of this number.
        """
        if number not in self.requests:
            raise InputError(f"there is no request {request_name(number)}; `unlearn request list` shows all")
        return self.requests[number]


def request_name(number: int) -> str:
    """Return a request's number as people write it.

    >>> request_name(7)
    'R-0007'
    """
    return f"R-{number:04d}"


def request_number(text: str) -> int:
    """Read a request's number.

    Raises:
        InputError: it is none.

    >>> request_number("R-0007"), request_number("7")
    (7, 7)
    """
    digits = text.strip().removeprefix("R-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 10):
        raise InputError(f"{text[:40]!r} is no request; write its number as R-0007 or 7")
    return int(digits)
