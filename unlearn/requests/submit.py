"""Taking requests in: each is written down once, with codes in the place of names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from unlearn.checkpoint.digests import canonical_json
from unlearn.errors import InputError, did_you_mean
from unlearn.requests.desk import Desk
from unlearn.requests.selection import Selection, asked_for, read_subjects, select
from unlearn.requests.state import Request

ACTIONS = ("remove", "relabel")


@dataclass(frozen=True)
class Submission:
    """What became of a request.

    Attributes:
        request: as it stands.
        new: False where the same request was there already.
    """

    request: Request
    new: bool


def submit(
    desk: Desk,
    *,
    ids: Iterable[str] = (),
    subjects: Iterable[str] = (),
    hashes: Iterable[str] = (),
    file: str | Path | None = None,
    action: str = "remove",
    label: int | float | None = None,
    reason: str | None = None,
    received: str | None = None,
    due: str | None = None,
    subject_file: str | Path | None = None,
) -> Submission:
    """Write down a request. The same one again (same action, same rows) is the same request and is noted as repeated.

    What is not in the training data is noted as not held, which is an answer too. A cancelled request may be made
    again.

    Args:
        desk: opened with keys.
        ids: row ids.
        subjects: ``column=value``.
        hashes: content hashes, as :func:`unlearn.requests.content_hashes` gives.
        file: a CSV with ``id``, ``subject`` or ``hash`` (and ``label``), or one id a line.
        action: ``remove`` or ``relabel``.
        label: the new label of rows that have none in the file.
        reason: kept as a code only.
        received: date of the letter, today if None.
        due: date of the answer; the recipe's number of days after ``received`` if None.
        subject_file: CSV with ``id`` and a subject column; the recipe's if None.

    Raises:
        InputError: a value that can not be meant; nothing is written down.
        LedgerError: no row key, or another one.
    """
    if action not in ACTIONS:
        raise InputError(f"unknown action {action[:40]!r}; {did_you_mean(action, ACTIONS)}")
    desk.check_key()
    asked = asked_for(ids, subjects, hashes, file)
    dates = _dates(desk, received, due)
    key, rows = desk.row_key, desk.run.data
    where = subject_file or desk.run.recipe.requests.subjects
    known = read_subjects(where) if where and any(item.kind == "subject" for item in asked) else None
    found = select(asked, rows, known)
    labels = _labels(desk, found, action, label)
    body: dict[str, Any] = {
        "action": action,
        "rows": sorted(({"row": key.code("row", row), "label": new} for row, new in labels.items()), key=_first),
        "not_held": _coded(desk, found.not_held),
        "asked": _coded(desk, asked),
        "reason": None if reason is None else key.code("reason", reason),
        **dates,
    }
    content = key.code("request", canonical_json([action, body["rows"], body["not_held"]]))
    with desk.writing() as (state, add):
        before = desk.ledger.find(content)
        if before is not None and state.requests[before[0]].status != "cancelled":
            add("repeated", {"received": dates["received"]}, before[0])
            return Submission(state.requests[before[0]], new=False)
        number = len(state.requests) + 1
        event = add("submitted", {**body, "content": content}, number)
        desk.ledger.register(number, content, 1 if before is None else before[1] + 1, event.number)
        desk.fault("submitted, not committed")
    desk.fault("submitted")
    return Submission(state.requests[number], new=True)


def cancel(desk: Desk, number: int, *, reason: str) -> Request:
    """Close a waiting request: it was withdrawn, or is not granted (for example under Article 17(3) GDPR).

    Raises:
        InputError: it is not waiting, or no reason is given.
    """
    if not reason:
        raise InputError("a request is cancelled for a reason; give one with --reason (it is kept as a code)")
    code = desk.row_key.code("reason", reason)
    with desk.writing() as (state, add):
        request = state.request(number)
        if request.status != "received":
            raise InputError(f"{request.name} is {request.status}; only a request that waits can be cancelled")
        add("cancelled", {"reason": code}, number)
    return request


def _labels(desk: Desk, found: Selection, action: str, label: int | float | None) -> dict[str, int | float | None]:
    if action == "remove":
        if label is not None or any(new is not None for new in found.labels.values()):
            raise InputError("a label is given, and the action is remove; leave it out, or say --action relabel")
        return found.labels
    labels = {row: label if new is None else new for row, new in found.labels.items()}
    without = [row for row, new in labels.items() if new is None]
    if without or (label is None and not found.labels):
        raise InputError(
            f"relabel needs a label for {len(without)} rows; give --label, or a file with the column label"
        )
    desk.run.data.relabelled({row: new for row, new in labels.items() if new is not None})
    return labels


def _coded(desk: Desk, items: Iterable[Any]) -> list[dict[str, str]]:
    code = desk.row_key.code
    return sorted(
        ({"kind": item.kind, "code": code("row" if item.kind == "id" else item.kind, item.value)} for item in items),
        key=lambda item: (item["kind"], item["code"]),
    )


def _first(row: dict[str, Any]) -> str:
    return str(row["row"])


def _dates(desk: Desk, received: str | None, due: str | None) -> dict[str, str]:
    today = date.fromisoformat(desk.today)
    came = today if received is None else _date(received, "received")
    if came > today:
        raise InputError(f"received is {came}, after today ({today}); give the day on which the letter came")
    by = came + timedelta(days=desk.run.recipe.requests.due_days) if due is None else _date(due, "due")
    if by < came:
        raise InputError(f"due is {by}, before the letter came ({came}); give a later day")
    return {"received": came.isoformat(), "due": by.isoformat()}


def _date(text: str, what: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{what} is {text[:40]!r}; write the date as 2026-03-01") from error
