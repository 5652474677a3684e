"""A person's word: approve or refuse what is held, or go back to an earlier model."""

from __future__ import annotations

from unlearn.errors import InputError
from unlearn.requests.desk import Desk
from unlearn.requests.process import at_work, below, certify, finish, roll_back
from unlearn.requests.state import ORIGINAL, Batch, State


def approve(desk: Desk, number: int, *, reason: str, wait: float = 0.0) -> State:
    """Release the held batch that this request is in, whatever its verdict; or let a provisional one stand.

    Raises:
        InputError: nothing of it is held, or no reason is given.
        LockedError: another process works.
    """
    with at_work(desk, wait):
        batch, code = _held_batch(desk, number), _coded(desk, reason, "approved")
        provisional = batch.stage == "closed"
        desk.record("approved", {"batch": batch.number, "reason": code})
        desk.fault("approved")
        if provisional:
            certify(desk, batch.number, "recertified")
        finish(desk)
    return desk.state()


def refuse(desk: Desk, number: int, *, reason: str, wait: float = 0.0) -> State:
    """Do not release the held batch that this request is in. Its requests wait again, for a retrain.

    A provisional release whose full verdict is undecided is rolled back.

    Raises:
        InputError: nothing of it is held, or no reason is given.
        LockedError: another process works.
    """
    with at_work(desk, wait):
        batch, code = _held_batch(desk, number), _coded(desk, reason, "refused")
        if batch.stage == "closed":
            roll_back(desk, below(desk.state(), batch.number), reason=code, retrain=True)
        else:
            desk.record("refused", {"batch": batch.number, "reason": code})
            desk.fault("refused")
    return desk.state()


def rollback(desk: Desk, to: int, *, reason: str, knows_deleted: bool = False, wait: float = 0.0) -> State:
    """Release an earlier model again. The requests that it does not answer wait again.

    Every earlier model knows rows that were deleted since, so this has to be said.

    Args:
        desk: the desk.
        to: number of a batch in the released model, or 0 for the original.
        reason: kept as a code only.
        knows_deleted: that the caller knows it.
        wait: seconds to wait for another process.

    Raises:
        InputError: no such model, or it was not said that the earlier model knows deleted rows.
        LockedError: another process works.
    """
    with at_work(desk, wait):
        state, code = desk.state(), _coded(desk, reason, "rolled back")
        if state.held is not None:
            raise InputError(f"batch {state.held.number} is held; approve or refuse it first")
        if to == state.current or (to != ORIGINAL and to not in state.stack):
            known = ", ".join(map(str, [ORIGINAL, *state.stack[:-1]])) if state.stack else "none"
            raise InputError(f"there is no earlier model {to} to go back to; known: {known}")
        if not knows_deleted:
            raise InputError(
                f"the model of batch {to} knows rows that were deleted since; if you mean it, say so (--knows-deleted)"
            )
        roll_back(desk, to, reason=code, retrain=False)
    return desk.state()


def _held_batch(desk: Desk, number: int) -> Batch:
    state = desk.state()
    request = state.request(number)
    if request.status != "held" or request.batch is None:
        raise InputError(f"{request.name} is {request.status}; only what is held can be approved or refused")
    return state.batches[request.batch]


def _coded(desk: Desk, reason: str, what: str) -> str:
    if not reason:
        raise InputError(f"it is {what} for a reason; give one with --reason (it is kept as a code)")
    return desk.row_key.code("reason", reason)
