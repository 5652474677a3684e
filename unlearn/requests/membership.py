"""The membership audit in a certificate: can an attacker tell that the released model once saw the batch's rows?

It takes models that never saw the rows, which are the verification's references, and models that did. These are trained
where the recipe asks for them (``membership`` under ``[requests]``). Where it does not, the references of the batch
before serve, if they are there: they were trained on the rows as they were before this batch.
"""

from __future__ import annotations

from typing import Any

from unlearn.errors import InputError
from unlearn.repair import Edit
from unlearn.requests.desk import Desk
from unlearn.requests.retrains import references_folder, retrains
from unlearn.requests.state import ORIGINAL, Batch
from unlearn.verification import References, Shadows, membership_audit
from unlearn.verification.membership_verdict import DECIDING
from unlearn.verification.shadows import FEWEST

HOW = "state membership and at least 3 references in the recipe, under [requests] and [verify], for the next requests"


def not_audited(why: str) -> dict[str, Any]:
    """Return what a certificate says where no audit was made."""
    return {"outcome": None, "reason": f"none was made: {why}"}


def audit_of_batch(desk: Desk, batch: Batch, edit: Edit, references: References) -> dict[str, Any]:
    """Audit the changed rows of a batch, or say why not. What is returned names no row.

    Args:
        desk: the desk.
        batch: whose model is audited.
        edit: the batch as an edit of its own rows.
        references: trained on the rows that are left.
    """
    wanted, folder = desk.run.recipe.requests.membership, references_folder(desk, batch.number)
    before = references_folder(desk, batch.base)
    if batch.base != ORIGINAL and before.is_dir():
        wanted, folder = wanted or desk.run.recipe.verify.references, before
    never = references.independent
    if len(never) < FEWEST or wanted < FEWEST:
        return not_audited(
            f"it takes {FEWEST} models trained without the rows and {FEWEST} with them, and there are {len(never)} and "
            f"{wanted}; {HOW}"
        )
    learned = retrains(desk, edit.data, wanted, folder).independent
    try:
        found = membership_audit(edit, shadows=Shadows(never, learned))
    except InputError as error:
        return not_audited(str(error))
    keys = ("attack", "models", "tpr", "lower", "upper", "fpr", "fpr_upper", "auc")
    return {
        "outcome": found.outcome,
        "reason": found.reason,
        "fpr": found.fpr,
        "tolerance": found.tolerance,
        "models": {kind: count for kind, count in found.models.items() if count},
        "rows": len(found.rows),
        "rows_flagged": sum(bool(row["flag"]) for row in found.rows),
        "table": [
            {key: line[key] for key in keys}
            for line in found.table
            if line["group"] == "all" and line["attack"] in DECIDING
        ],
    }
