"""Processing: from waiting requests to a released model, in steps that can be cut off anywhere and taken up again.

The ledger says which step was finished last. A step writes its files under their final names first and its event
after; done again it gives the same bytes, so a file without its event is no harm. The pointer to the released model is
moved between two events: ``releasing`` says that it will be, ``released`` that it was.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any

from unlearn.atomic import make_folder, write_atomically
from unlearn.errors import InputError
from unlearn.repair.drift import DRIFT_LIMIT
from unlearn.requests.answer import edited, retrained, rows_after, save_answer
from unlearn.requests.certificate import issue
from unlearn.requests.checking import check_answer
from unlearn.requests.desk import Desk
from unlearn.requests.heads import head_path, write_head
from unlearn.requests.lock import working
from unlearn.requests.named_files import POINTER, batch_folder, pointer_bytes
from unlearn.requests.removal import finish_key, finish_purge
from unlearn.requests.state import ORIGINAL, Batch, Request, State
from unlearn.requests.transitions import may_release

FAULT_POINTS = (
    "submitted, not committed",
    "submitted",
    "batch opened",
    "curvature kept",
    "answer saved",
    "edited",
    "drift exceeded",
    "verdict written",
    "verified",
    "held",
    "releasing",
    "pointer moved",
    "released",
    "certificate written",
    "certified",
    "batch closed",
    "head written",
    "confirmed",
    "approved",
    "refused",
    "rolling back",
    "pointer moved back",
    "rolled back",
    "purging",
    "purged a part",
    "purged",
    "key given up",
)
HEAD_AFTER = ("batch closed", "recertified", "rolled back", "purged")


def process(desk: Desk, *, wait: float = 0.0, verify_now: bool = False, retrain: bool = False) -> State:
    """Answer all waiting requests in one batch, and verify provisional releases that are due.

    What an earlier process left unfinished is finished first. A held batch stops: it waits for :func:`approve` or
    :func:`refuse`.

    Args:
        desk: opened with keys.
        wait: seconds to wait for another process.
        verify_now: verify provisional releases before they are due too.
        retrain: train anew on the rows that are left, whether or not requests wait: the scheduled retrain. What was
            deleted stays out.

    Returns:
        What the ledger says afterwards.

    Raises:
        LockedError: another process works.
        LedgerError: no row key.
    """
    with at_work(desk, wait):
        _verify_due(desk, verify_now)
        while open_batch(desk, retrain=retrain) is not None:
            finish(desk)
            retrain = False
    return desk.state()


@contextlib.contextmanager
def at_work(desk: Desk, wait: float = 0.0, *, row_key: bool = True) -> Iterator[None]:
    """Hold the lock, with what was left unfinished finished; ``row_key``: whether a ledger without one is refused."""
    with working(desk.folder / "lock", who=desk.who, wait=wait):
        if desk.state().key is not None:
            desk.check_key()
        settle(desk)
        if row_key:
            desk.check_key()
        finish(desk)
        yield


def settle(desk: Desk) -> None:
    """Bring pointer, rollback, purge and head up to what the ledger says."""
    state = desk.state()
    point(desk, state)
    finish_rollback(desk)
    finish_purge(desk)
    finish_key(desk)
    for batch in state.batches.values():
        if batch.stage == "closed" and batch.to_certify:
            certify(desk, batch.number, "recertified")
    for event in desk.ledger.events():
        if event.kind in HEAD_AFTER and not head_path(desk, event.number).exists():
            write_head(desk, event)


def point(desk: Desk, state: State) -> None:
    """Let the pointer name the released model; nothing is written where it does."""
    path, data = desk.folder / POINTER, pointer_bytes(desk.run.folder, state)
    if not path.exists() or path.read_bytes() != data:
        write_atomically(path, data)


def open_batch(desk: Desk, *, retrain: bool = False) -> Batch | None:
    """Put all waiting requests into a batch; None if there are none, or if one waits for a person.

    What each asks for is resolved against the rows as they are for the released model: a row that was removed before
    is no work, and in one batch a removal wins over a relabel and a later label over an earlier one.

    Raises:
        InputError: no row would be left.
    """
    desk.check_key()
    state = desk.state()
    if state.held is not None or state.unfinished is not None or not (state.queue or retrain):
        return None
    rows = rows_after(desk, state.stack, state)
    labels = dict(zip(rows.ids, rows.labels.tolist(), strict=True))
    with desk.writing() as (state, add):
        if state.held is not None or state.unfinished is not None or not (state.queue or retrain):
            return None
        queue = list(state.queue)
        removed, relabelled = _resolve(desk, queue, labels)
        if len(removed) == len(rows):
            raise InputError(f"the waiting requests would remove all {len(rows)} rows; cancel one, or retire the model")
        number, section = len(state.batches) + 1, desk.run.recipe.requests
        again = retrain or any(request.retrain for request in queue)
        body = {
            "batch": number,
            "requests": [request.number for request in queue],
            "method": ("retrain" if again else "edit") if removed or relabelled or retrain else "nothing",
            "base": state.current,
            "removed": sorted(removed),
            "relabelled": [{"row": code, "label": new} for code, new in sorted(relabelled.items())],
            "policy": {
                "release": section.release,
                "verify_days": section.verify_days,
                "drift_limit": DRIFT_LIMIT if section.drift_limit is None else section.drift_limit,
            },
        }
        add("batch opened", body)
    desk.fault("batch opened")
    return state.batches[number]


def _resolve(desk: Desk, queue: list[Request], labels: dict[str, Any]) -> tuple[set[str], dict[str, int | float]]:
    removed: set[str] = set()
    relabelled: dict[str, int | float] = {}
    for request in queue:
        for code, new in request.rows.items():
            row = desk.id_of.get(code)
            if row is None or row not in labels or code in removed:
                continue
            relabelled.pop(code, None)
            if new is None:
                removed.add(code)
            elif new != labels[row]:
                relabelled[code] = new
    return removed, relabelled


def finish(desk: Desk) -> None:
    """Take the unfinished batch, if there is one, step by step to its end or until it is held."""
    while (batch := desk.state().unfinished) is not None:
        _STEPS[batch.stage](desk, batch, desk.state())


def _answer(desk: Desk, batch: Batch, state: State) -> None:
    if batch.method == "nothing":
        return _release(desk, batch, state)
    folder = make_folder(batch_folder(desk.run.folder, batch.number))
    shutil.rmtree(folder / "snapshots", ignore_errors=True)  # of an attempt that was cut off or drifted too far
    answer = (retrained if batch.method == "retrain" else edited)(desk, batch, state)
    if batch.method == "edit" and answer.drift > batch.policy["drift_limit"]:
        desk.record("drift exceeded", {"batch": batch.number, "drift": answer.drift})
        desk.fault("drift exceeded")
        return None
    facts = save_answer(desk, batch, answer)
    desk.fault("answer saved")
    desk.record("edited", facts)
    desk.fault("edited")
    return None


def _check(desk: Desk, batch: Batch, state: State) -> None:
    kind = "verification"
    if batch.method == "retrain":
        kind = "retrain"
    elif batch.policy["release"] == "evidence":
        kind = "evidence"
    facts = check_answer(desk, batch, state, kind)
    desk.fault("verdict written")
    desk.record("verified", facts)
    desk.fault("verified")


def _decide(desk: Desk, batch: Batch, state: State) -> None:
    why = may_release(batch, _provisional_until(desk, batch))
    if why is None:
        _release(desk, batch, state)
    else:
        desk.record("held", {"batch": batch.number, "why": why})
        desk.fault("held")


def _provisional_until(desk: Desk, batch: Batch) -> str | None:
    """Return the day by which full verification is due, where only evidence speaks for the batch."""
    if not batch.verdicts or batch.verdicts[-1]["kind"] != "evidence" or batch.stage == "approved":
        return None
    return (date.fromisoformat(desk.today) + timedelta(days=int(batch.policy["verify_days"]))).isoformat()


def _release(desk: Desk, batch: Batch, _: State) -> None:
    desk.record("releasing", {"batch": batch.number, "provisional_until": _provisional_until(desk, batch)})
    desk.fault("releasing")


def _point(desk: Desk, batch: Batch, state: State) -> None:
    point(desk, state)
    desk.fault("pointer moved")
    desk.record("released", {"batch": batch.number})
    desk.fault("released")


def _certify(desk: Desk, batch: Batch, _: State) -> None:
    certify(desk, batch.number, "batch closed")


def certify(desk: Desk, number: int, end: str) -> None:
    """Issue the certificates that a batch lacks, then close it (or note that they are new) and write the head."""
    batch = desk.state().batches[number]
    for request in sorted(batch.to_certify):
        facts = issue(desk, batch, request)
        desk.fault("certificate written")
        desk.record("certified", {"batch": number, **facts}, request)
        desk.fault("certified")
    event = desk.record(end, {"batch": number})
    desk.fault("batch closed")
    write_head(desk, event)
    desk.fault("head written")


_STEPS: dict[str, Callable[[Desk, Batch, State], None]] = {
    "opened": _answer,
    "edited": _check,
    "verified": _decide,
    "approved": _release,
    "releasing": _point,
    "released": _certify,
}


def _verify_due(desk: Desk, verify_now: bool) -> None:
    """Verify provisional releases in full: a pass confirms, a fail rolls back and asks for a retrain."""
    for number in list(desk.state().stack):
        state = desk.state()
        batch = state.batches[number]
        if batch.verify_by is None or number not in state.stack:
            continue
        if batch.verdicts[-1]["kind"] == "evidence" and (verify_now or batch.verify_by <= desk.today):
            facts = check_answer(desk, batch, state, "verification")
            desk.fault("verdict written")
            desk.record("verified", facts)
            desk.fault("verified")
        settle_provisional(desk, number)


def settle_provisional(desk: Desk, number: int) -> None:
    """Act on the full verdict of a provisional release; an undecided one waits for a person."""
    state = desk.state()
    batch = state.batches[number]
    if batch.verdicts[-1]["kind"] == "evidence":
        return
    if batch.outcome == "pass":
        desk.record("confirmed", {"batch": number})
        desk.fault("confirmed")
        certify(desk, number, "recertified")
    elif batch.outcome == "fail":
        roll_back(desk, below(state, number), reason=None, retrain=True)


def below(state: State, number: int) -> int:
    """Return the batch under this one in the released model; 0 for the original."""
    at = state.stack.index(number)
    return state.stack[at - 1] if at else ORIGINAL


def roll_back(desk: Desk, to: int, *, reason: str | None, retrain: bool) -> None:
    """Point to an earlier model; requests that it does not answer go back into the queue."""
    desk.record("rolling back", {"to": to, "reason": reason, "knows_deleted": True, "retrain": retrain})
    desk.fault("rolling back")
    finish_rollback(desk)


def finish_rollback(desk: Desk) -> None:
    """Bring a begun rollback to its end."""
    moving = desk.state().moving
    if moving is None:
        return
    point(desk, desk.state())
    desk.fault("pointer moved back")
    event = desk.record("rolled back", {"to": moving["to"]})
    desk.fault("rolled back")
    write_head(desk, event)
