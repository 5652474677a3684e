"""Events of the ledger, each chained to the last by its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unlearn.checkpoint.digests import canonical_json
from unlearn.errors import LedgerError

START = "0" * 64


@dataclass(frozen=True)
class Event:
    """One line of the ledger.

    Attributes:
        number: 1, 2, 3, ...
        time: UTC, as ``2026-03-01T12:00:00Z``.
        who: name of the operator.
        kind: what happened, such as ``submitted`` or ``released``.
        request: number of the request that it is about, or None.
        text: canonical JSON of everything else.
        previous: hash of the event before; of the first, 64 zeros.
        hash: of all of these.
    """

    number: int
    time: str
    who: str
    kind: str
    request: int | None
    text: str
    previous: str
    hash: str

    @cached_property
    def body(self) -> dict[str, Any]:
        """Everything else, parsed."""
        try:
            found = json.loads(self.text)
        except ValueError as error:
            raise LedgerError(f"event {self.number} of the ledger is damaged: its body is no JSON ({error})") from error
        if not isinstance(found, dict):
            raise LedgerError(f"event {self.number} of the ledger is damaged: its body is {type(found).__name__}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the event as plain values, for an export."""
        names = ("number", "time", "who", "kind", "request")
        return {**{name: getattr(self, name) for name in names}, "body": self.body, "hash": self.hash}


def next_event(
    last: Event | None, *, time: str, who: str, kind: str, request: int | None, body: dict[str, Any]
) -> Event:
    """Return the event that follows ``last``.

    >>> first = next_event(None, time="2026-03-01T12:00:00Z", who="dpo", kind="opened", request=None, body={})
    >>> first.number, first.previous == START, first_flaw([first])
    (1, True, None)
    """
    number, previous = (1, START) if last is None else (last.number + 1, last.hash)
    text = canonical_json(body)
    return Event(
        number, time, who, kind, request, text, previous, _hash(number, time, who, kind, request, text, previous)
    )


def first_flaw(events: Sequence[Event]) -> str | None:
    """Return what is wrong with the first event that does not follow from the one before; None for a whole chain.

    >>> first = next_event(None, time="2026-03-01T12:00:00Z", who="dpo", kind="opened", request=None, body={})
    >>> from dataclasses import replace
    >>> first_flaw([replace(first, who="someone")])
    'event 1 was altered: its hash is not that of its content'
    """
    previous = START
    for number, event in enumerate(events, 1):
        if event.number != number:
            return f"event {number} is missing (event {event.number!r} stands in its place)"
        if event.previous != previous:
            return f"event {number} does not follow event {number - 1}: another hash is named"
        fields = (event.number, event.time, event.who, event.kind, event.request, event.text, event.previous)
        if event.hash != _hash(*fields):
            return f"event {number} was altered: its hash is not that of its content"
        previous = event.hash
    return None


def _hash(*fields: object) -> str:
    return hashlib.sha256(canonical_json(["unlearn-ledger-1", *fields]).encode()).hexdigest()
