"""What each kind of event does, and when it may happen. State comes from events by these rules and by nothing else.

The same rules serve the one who writes (an event that may not happen is not added) and the one who audits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from unlearn.errors import LedgerError
from unlearn.requests.events import Event
from unlearn.requests.state import ORIGINAL, Batch, Request, State


def take_in(state: State, events: Iterable[Event]) -> State:
    """Bring a state up to date, in place, and return it.

    Raises:
        LedgerError: an event that can not follow from what was before.
    """
    for event in events:
        rule = _RULES.get(event.kind)
        if rule is None:
            raise LedgerError(f"event {event.number} is of unknown kind {event.kind!r}; upgrade unlearn, or audit")
        try:
            rule(state, event, event.body)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise LedgerError(
                f"event {event.number} ({event.kind}) can not follow from the events before it ({error!r}); run "
                "`unlearn request audit`"
            ) from error
        state.count, state.head = event.number, event.hash
    return state


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _opened(state: State, event: Event, body: Mapping[str, Any]) -> None:
    _need(state.count == 0, "a ledger is opened once")
    state.opened, state.key = dict(body), str(body["key"])


def _key(state: State, _: Event, body: Mapping[str, Any]) -> None:
    _need(body["key"] is None and state.key is not None, "a row key is given up once, and never exchanged")
    _need(not state.queue and state.unfinished is None and state.held is None, "requests wait for the row key")
    _need(all(state.batches[k].verify_by is None for k in state.stack), "a provisional release is not verified")
    state.key = None


def _submitted(state: State, event: Event, body: Mapping[str, Any]) -> None:
    _need(event.request == len(state.requests) + 1, "requests are numbered 1, 2, 3, ...")
    state.requests[event.request] = Request(  # type: ignore[index]
        event.request,  # type: ignore[arg-type]
        body["action"],
        {row["row"]: row["label"] for row in body["rows"]},
        [(item["kind"], item["code"]) for item in body["not_held"]],
        [(item["kind"], item["code"]) for item in body["asked"]],
        body["reason"],
        body["received"],
        body["due"],
    )


def _repeated(state: State, event: Event, _: Mapping[str, Any]) -> None:
    state.requests[event.request].times += 1  # type: ignore[index]


def _cancelled(state: State, event: Event, _: Mapping[str, Any]) -> None:
    request = state.requests[event.request]  # type: ignore[index]
    _need(request.status == "received", "only a waiting request is cancelled")
    request.status = "cancelled"


def _batch_opened(state: State, event: Event, body: Mapping[str, Any]) -> None:
    number = body["batch"]
    _need(number == len(state.batches) + 1, "batches are numbered 1, 2, 3, ...")
    _need(state.unfinished is None and state.held is None, "another batch is not finished")
    _need(body["base"] == state.current, "a batch starts from the released model")
    for name in body["requests"]:
        request = state.requests[name]
        _need(request.status == "received", f"{request.name} does not wait")
        _need(not request.retrain or body["method"] != "edit", f"{request.name} is to be answered by a retrain")
        request.status, request.batch = "in work", number
    state.batches[number] = Batch(
        number,
        list(body["requests"]),
        body["method"],
        body["base"],
        list(body["removed"]),
        {row["row"]: row["label"] for row in body["relabelled"]},
        dict(body["policy"]),
    )


def _step(stages: tuple[str, ...], then: str) -> Callable[[State, Mapping[str, Any]], Batch]:
    def move(state: State, body: Mapping[str, Any]) -> Batch:
        batch = state.batches[body["batch"]]
        _need(batch.stage in stages, f"batch {batch.number} is {batch.stage}")
        batch.stage = then
        return batch

    return move


def _edited(state: State, _: Event, body: Mapping[str, Any]) -> None:
    _step(("opened",), "edited")(state, body).edited = dict(body)


def _drift_exceeded(state: State, _: Event, body: Mapping[str, Any]) -> None:
    batch = state.batches[body["batch"]]
    _need(batch.stage == "opened" and batch.method == "edit", f"batch {batch.number} is {batch.stage}")
    _need(body["drift"] > batch.policy["drift_limit"], "the drift is within its limit")
    batch.method = "retrain"


def _verified(state: State, event: Event, body: Mapping[str, Any]) -> None:
    batch = state.batches[body["batch"]]
    if batch.stage == "edited":
        batch.stage = "verified"
    else:
        _need(batch.stage == "closed" and batch.verify_by is not None, f"batch {batch.number} is {batch.stage}")
        if body["outcome"] == "undecided":
            _mark(state, batch, "held")
    batch.verdicts.append({**body, "time": event.time})


def _held(state: State, _: Event, body: Mapping[str, Any]) -> None:
    batch = _step(("verified",), "held")(state, body)
    _mark(state, batch, "held")


def _approved(state: State, event: Event, body: Mapping[str, Any]) -> None:
    batch = state.batches[body["batch"]]
    if batch.stage == "closed" and batch.verify_by is not None:
        _settled(state, batch, event)
    else:
        _step(("held",), "approved")(state, body)


def _refused(state: State, _: Event, body: Mapping[str, Any]) -> None:
    batch = _step(("held",), "refused")(state, body)
    _return(state, batch, retrain=True)


def _releasing(state: State, _: Event, body: Mapping[str, Any]) -> None:
    batch = state.batches[body["batch"]]
    _need(may_release(batch, body["provisional_until"]) is None, str(may_release(batch, body["provisional_until"])))
    batch.stage, batch.verify_by = "releasing", body["provisional_until"]
    state.stack.append(batch.number)


def may_release(batch: Batch, provisional_until: str | None) -> str | None:
    """Return why a batch may not be released now; None if its policy, verdict and a person's word allow it."""
    if batch.stage == "approved" or (batch.stage == "opened" and batch.method == "nothing"):
        return None
    if batch.stage != "verified":
        return f"batch {batch.number} is {batch.stage}"
    verdict, policy = batch.verdicts[-1], batch.policy["release"]
    if verdict["outcome"] != "pass":
        return f"the verdict is {verdict['outcome']}, and nobody approved"
    if policy == "approved":
        return "the policy asks for a person's approval"
    if verdict["kind"] == "evidence" and (policy != "evidence" or provisional_until is None):
        return "evidence alone releases only provisionally, under a policy that says so"
    return None


def _released(state: State, event: Event, body: Mapping[str, Any]) -> None:
    batch = _step(("releasing",), "released")(state, body)
    batch.standing, batch.to_certify = event, set(batch.requests)
    for number in batch.requests:
        request = state.requests[number]
        request.status = "not held" if not request.rows else "provisional" if batch.verify_by else "released"


def _certified(state: State, event: Event, body: Mapping[str, Any]) -> None:
    batch = state.batches[body["batch"]]
    _need(batch.stage in ("released", "closed") and event.request in batch.to_certify, "nothing to certify")
    batch.to_certify.discard(event.request)
    batch.certificates.setdefault(event.request, []).append(dict(body))  # type: ignore[arg-type]


def _batch_closed(state: State, _: Event, body: Mapping[str, Any]) -> None:
    batch = _step(("released",), "closed")(state, body)
    _need(not batch.to_certify, "certificates are missing")


def _recertified(state: State, _: Event, body: Mapping[str, Any]) -> None:
    batch = state.batches[body["batch"]]
    _need(batch.stage == "closed" and not batch.to_certify, "certificates are missing")


def _confirmed(state: State, event: Event, body: Mapping[str, Any]) -> None:
    batch = state.batches[body["batch"]]
    _need(batch.stage == "closed" and batch.verify_by is not None and batch.outcome == "pass", "nothing to confirm")
    _need(batch.verdicts[-1]["kind"] != "evidence", "evidence confirms nothing")
    _settled(state, batch, event)


def _settled(state: State, batch: Batch, event: Event) -> None:
    """Note that a provisional release stands for good."""
    batch.verify_by, batch.standing, batch.to_certify = None, event, set(batch.requests)
    _mark(state, batch, "released")


def _rolling_back(state: State, _: Event, body: Mapping[str, Any]) -> None:
    _need(state.unfinished is None and state.held is None, "a batch is not finished")
    target = body["to"]
    _need(target == ORIGINAL or target in state.stack, f"batch {target} is not part of the released model")
    _need(body["knows_deleted"] is True or not state.stack, "the earlier model knows deleted rows")
    while state.stack and state.stack[-1] != target:
        batch = state.batches[state.stack.pop()]
        batch.stage, batch.verify_by, batch.to_certify = "rolled back", None, set()
        _return(state, batch, retrain=bool(body["retrain"]))
    state.moving = dict(body)


def _rolled_back(state: State, _: Event, body: Mapping[str, Any]) -> None:
    _need(state.moving is not None and state.moving["to"] == body["to"], "no rollback was begun")
    state.moving = None


def _purging(state: State, _: Event, body: Mapping[str, Any]) -> None:
    _need(isinstance(body["paths"], list) and state.purging is None, "a purge names what it removes")
    state.purging = dict(body)


def _purged(state: State, _: Event, body: Mapping[str, Any]) -> None:
    _need(state.purging is not None and state.purging["paths"] == body["paths"], "no purge was begun")
    state.purges.append(dict(body))
    state.purging = None


def _mark(state: State, batch: Batch, status: str) -> None:
    for number in batch.requests:
        if state.requests[number].rows:
            state.requests[number].status = status


def _return(state: State, batch: Batch, *, retrain: bool) -> None:
    """Put the requests of a batch that is no more back into the queue."""
    for number in batch.requests:
        request = state.requests[number]
        request.status, request.batch, request.retrain = "received", None, request.retrain or retrain


_RULES: dict[str, Callable[[State, Event, Mapping[str, Any]], None]] = {
    "opened": _opened,
    "key": _key,
    "submitted": _submitted,
    "repeated": _repeated,
    "cancelled": _cancelled,
    "batch opened": _batch_opened,
    "edited": _edited,
    "drift exceeded": _drift_exceeded,
    "verified": _verified,
    "held": _held,
    "approved": _approved,
    "refused": _refused,
    "releasing": _releasing,
    "released": _released,
    "certified": _certified,
    "batch closed": _batch_closed,
    "confirmed": _confirmed,
    "recertified": _recertified,
    "rolling back": _rolling_back,
    "rolled back": _rolled_back,
    "purging": _purging,
    "purged": _purged,
}
