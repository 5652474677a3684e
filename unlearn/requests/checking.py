"""Checking an answer before release: full verification, evidence without retraining, or a retrain by its rows."""

from __future__ import annotations

import hashlib
from typing import Any

from unlearn.atomic import write_atomically
from unlearn.checkpoint.digests import canonical_json
from unlearn.errors import InputError
from unlearn.predict import predict
from unlearn.requests.answer import as_edit, model_after, rows_after
from unlearn.requests.desk import Desk
from unlearn.requests.membership import audit_of_batch, not_audited
from unlearn.requests.named_files import batch_folder
from unlearn.requests.retrains import references_folder, retrains
from unlearn.requests.state import Batch, State
from unlearn.tasks import phi
from unlearn.verification import Verdict, verify
from unlearn.verification.held_out import HeldOutPhi, difference, kinds_of

ORDER = ("fail", "undecided", "pass")
LEVEL = 0.05


def check_answer(desk: Desk, batch: Batch, state: State, kind: str) -> dict[str, Any]:
    """Check a batch's model, write what was found, and return what the ledger says of it.

    Args:
        desk: the desk.
        batch: whose checkpoint is there.
        state: what the ledger says.
        kind: ``verification``, ``evidence`` or ``retrain``.
    """
    found = dict(_KINDS[kind](desk, batch, state))
    name = f"verdict-{len(batch.verdicts) + 1}.json"
    data = canonical_json({"format": 1, "batch": batch.number, "kind": kind, **found}).encode()
    write_atomically(batch_folder(desk.run.folder, batch.number) / name, data)
    return {
        "batch": batch.number,
        "kind": kind,
        "outcome": found["outcome"],
        "file": name,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _verification(desk: Desk, batch: Batch, state: State) -> dict[str, Any]:
    """Hold the model against retrains without the rows: by the batch's rows, and by all that were ever changed.

    A membership audit of the batch's rows that fails fails the whole; one that is undecided, as with few rows it mostly
    is, changes nothing.
    """
    section = desk.run.recipe.verify
    edit = as_edit(desk, batch, state, everything=False)
    references = retrains(desk, edit.edited_data, section.references, references_folder(desk, batch.number))
    verdicts: dict[str, Verdict] = {}
    for name, one in {"this batch": edit, "all so far": as_edit(desk, batch, state, everything=True)}.items():
        if name == "this batch" or len(one.changes.ids) > len(edit.changes.ids):
            verdicts[name] = verify(
                one,
                test=desk.run.test,
                references=references,
                tolerance=section.tolerance,
                seed=section.verdict_seed,
            )
    worst = min(verdicts.values(), key=lambda verdict: ORDER.index(verdict.outcome))
    audited = audit_of_batch(desk, batch, edit, references)
    outcome, reason = worst.outcome, worst.reason
    if audited["outcome"] == "fail" and outcome != "fail":
        outcome, reason = "fail", f"membership audit: {audited['reason']}"
    return {
        "outcome": outcome,
        "reason": reason,
        "tolerance": section.tolerance,
        "references": len(references.independent),
        "verdicts": {name: _with_codes(desk, verdict) for name, verdict in verdicts.items()},
        "membership_audit": audited,
    }


def _with_codes(desk: Desk, verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as plain values, its rows by their codes."""
    found = verdict.to_dict()
    code = desk.row_key.code
    found["remembered"] = [
        {"row": code("row", row["id"]), **{key: value for key, value in row.items() if key != "id"}}
        for row in found["remembered"]
    ]
    return found


def _evidence(desk: Desk, batch: Batch, state: State) -> dict[str, Any]:
    """Ask whether the changed rows look like rows that training never saw: phi beside held-out rows of their kind.

    The comparison is that of :func:`unlearn.verification.evidence`. It fails where a Mann-Whitney test at 5 % tells the
    changed rows from held-out ones. Few rows are hard to tell, so this is evidence that nothing speaks against the
    edit, not that it worked; full verification is due.
    """
    edit, test = as_edit(desk, batch, state, everything=False), desk.run.test
    changed = edit.data.only(edit.changes.ids)
    none = not_audited("evidence trains no models; the full verification that is due can make one")
    try:
        kinds = kinds_of(changed, edit.changes)
        held = HeldOutPhi.of(predict(edit.model, test).double(), test, kinds)
        values = phi(predict(edit.model, changed).double(), changed.labels).numpy()
        found = difference(held.shares(values, kinds), held.own_shares)
    except InputError as error:
        return {"outcome": "undecided", "reason": str(error), "membership_audit": none}
    told = found.p_place < LEVEL
    return {
        "outcome": "fail" if told else "pass",
        "reason": f"phi of a changed row is above that of a held-out row of its kind in {found.auc:.0%} of pairs "
        f"(bounds {found.lower:.0%} to {found.upper:.0%}; {found.changed} rows), "
        + ("which chance alone seldom gives" if told else "which chance alone can give")
        + f" (p = {found.p_place:.2g}, level {LEVEL:g})",
        "auc": found.auc,
        "lower": found.lower,
        "upper": found.upper,
        "p": found.p_place,
        "rows": found.changed,
        "membership_audit": none,
    }


def _retrain(desk: Desk, batch: Batch, state: State) -> dict[str, Any]:
    """A retrain needs no comparison: it is right if it was trained on the right rows, from weights that saw none."""
    _, record = model_after(desk.run, batch.number, state)
    rows = rows_after(desk, [*state.stack, batch.number], state)
    right = record.data_fingerprint == rows.fingerprint and record.order is not None
    right = right and set(record.order.ids) <= set(rows.ids)  # type: ignore[union-attr]
    return {
        "outcome": "pass" if right else "fail",
        "reason": f"trained from its first weights on the {len(rows)} rows that are left, and on no other"
        if right
        else "the training record names other rows than those that are left",
        "data_fingerprint": rows.fingerprint,
        "membership_audit": not_audited("a retrain never saw the rows, so there is no memory of them to look for"),
    }


_KINDS = {"verification": _verification, "evidence": _evidence, "retrain": _retrain}
