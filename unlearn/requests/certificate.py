"""The certificate of a request: one JSON file, signed, and the same as a page to print."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from unlearn.atomic import make_folder, read_json, write_atomically
from unlearn.checkpoint import read_metadata
from unlearn.checkpoint.digests import canonical_json
from unlearn.requests.desk import Desk
from unlearn.requests.membership import not_audited
from unlearn.requests.named_files import CERTIFICATES, batch_folder, model_digests, model_path
from unlearn.requests.shown import shown
from unlearn.requests.state import ORIGINAL, Batch, Request, State, request_name

FORMAT = 1
LIMITS = (
    "It is evidence of an honest operator, not proof to a third party: who holds keys and run can make another.",
    "It speaks of the model named here, not of copies, backups, logs or the source data set.",
    "It says nothing of models that other people trained on the same rows.",
    "A verdict compares with retraining on the rows and outputs that were measured; another test may see more.",
)


def issue(desk: Desk, batch: Batch, number: int) -> dict[str, Any]:
    """Write the certificate of a request and its page; return what the ledger says of them.

    Equal ledgers and keys give equal bytes: the time in it is that of the event by which the answer stands.
    """
    state = desk.state()
    facts = certificate_facts(desk, batch, state.requests[number], state)
    signature = None if desk.keys is None else desk.keys.sign(canonical_json(facts).encode())
    whole = {**facts, "signature": signature}
    name = f"{request_name(number)}-{facts['ledger']['position']:06d}"
    folder = make_folder(desk.folder / CERTIFICATES)
    said: dict[str, Any] = {}
    for kind, data in (("json", canonical_json(whole).encode()), ("html", certificate_page(whole).encode())):
        write_atomically(folder / f"{name}.{kind}", data)
        said |= {kind: f"{name}.{kind}", f"{kind}_sha256": hashlib.sha256(data).hexdigest()}
    return said


def certificate_facts(desk: Desk, batch: Batch, request: Request, state: State) -> dict[str, Any]:
    """Return everything that the certificate says, without its signature."""
    standing, run = batch.standing, desk.run.folder
    if standing is None:
        raise ValueError("the batch was not released")  # the ledger's rules exclude it
    answered = batch.method != "nothing"
    after = batch.number if answered else batch.base
    verdict, audited = _verdict(run, batch)
    return {
        "format": FORMAT,
        "kind": "unlearn deletion certificate",
        "request": request.name,
        "answer": request.status,
        "answered": standing.time,
        "asked": {
            "action": request.action,
            "named": _counts(request.asked),
            "reason": request.reason,
            "received": request.received,
            "due": request.due,
            "came_in": request.times,
        },
        "rows": [
            {"row": code, "label": label, "done": _done(code, label, batch, state)}
            for code, label in sorted(request.rows.items())
        ],
        "not_held": [{"kind": kind, "code": code} for kind, code in request.not_held],
        "row_key": state.opened["key"],
        "model": {
            "before": {"batch": batch.base, **model_digests(state, batch.base)},
            "after": {"batch": after, **model_digests(state, after)},
        },
        "method": {"kind": batch.method, "drift": batch.edited.get("drift", 0.0), **batch.edited.get("answer", {})},
        "verdict": verdict,
        "full_verification_due": batch.verify_by,
        "near_duplicates_left": batch.edited.get("near_duplicates"),
        "bound": "no bound",
        "membership_audit": audited,
        "ledger": {"position": standing.number, "hash": standing.hash},
        "versions": read_metadata(model_path(run, after if answered else ORIGINAL))["versions"],
        "does_not_prove": list(LIMITS),
        "public_key": None if desk.keys is None else desk.keys.public,
    }


def _counts(asked: list[tuple[str, str]]) -> dict[str, int]:
    kinds = [kind for kind, _ in asked]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _done(code: str, label: int | float | None, batch: Batch, state: State) -> str:
    if code in batch.removed:
        return "removed"
    if code in batch.relabelled:
        return "relabelled"
    for k in reversed(state.stack):
        if k <= batch.number and code in state.batches[k].removed:
            return f"removed before, by batch {k}"
    return "not in the data any more" if label is None else "carries this label already"


def _verdict(run: Path, batch: Batch) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return the last verdict and its membership audit."""
    if not batch.verdicts:
        return None, not_audited("no model was changed for this request")
    last = batch.verdicts[-1]
    found = read_json(batch_folder(run, batch.number) / last["file"])
    rows = [
        {"verdict": name, **{key: row[key] for key in ("group", "r", "lower", "upper", "rows", "references")}}
        for name, verdict in found.get("verdicts", {}).items()
        for row in verdict["table"]
    ]
    verdict = {
        "kind": last["kind"],
        "outcome": last["outcome"],
        "reason": found["reason"],
        "tolerance": found.get("tolerance"),
        "sha256": last["sha256"],
        "table": rows,
    }
    return verdict, found.get("membership_audit") or not_audited("the version that checked this made none")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("unlearn.requests"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["shown"] = lambda value: shown(str(value), 400)
    made.filters["method_lines"] = _method_lines
    return made


def _method_lines(method: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and text of what a reader of the page should know of the method."""
    cost = method.get("cost", {})
    parts = ", ".join(f"{name} {cost[name]:.3g}" for name in ("factors", "solve", "replay") if cost.get(name))
    steps = method.get("steps") or [{}]
    found = {
        "method": method.get("method", method["kind"]),
        "rows trained on": method.get("rows_trained_on"),
        "replayed at most": None if "budget" not in method else f"{method['budget']:g} training epochs",
        "damping": None if steps[-1].get("damping") is None else f"{steps[-1]['damping']:.3g}",
        "cost": f"{cost['total']:.3g} training epochs" + (f" ({parts})" if parts else "") if cost else None,
        "drift": f"{method['drift']['moved']:.3g} nats since the last training, limit {method['drift']['limit']}"
        if isinstance(method["drift"], dict)
        else None,
    }
    return [(name, str(text)) for name, text in found.items() if text is not None]


def certificate_page(facts: dict[str, Any]) -> str:
    """Return a certificate as one HTML page without script and without any request; text is shown as text."""
    return _environment().get_template("certificate.html.j2").render(certificate=facts)
