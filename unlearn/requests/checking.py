"""Checking an answer before release: full verification, evidence without retraining, or a retrain by its rows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from unlearn.atomic import write_atomically
from unlearn.checkpoint.digests import canonical_json
from unlearn.data import Rows
from unlearn.models import build_model
from unlearn.predict import predict
from unlearn.repair import Edit
from unlearn.requests.answer import as_edit, model_after, rows_after
from unlearn.requests.desk import Desk
from unlearn.requests.named_files import batch_folder
from unlearn.requests.state import Batch, State
from unlearn.tasks import phi
from unlearn.training import train
from unlearn.verification import References, Verdict, train_references, verify

ORDER = ("fail", "undecided", "pass")


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
    """Hold the model against retrains without the rows: by the batch's rows, and by all that were ever changed."""
    section = desk.run.recipe.verify
    edit = as_edit(desk, batch, state, everything=False)
    references = _references(desk, batch, edit.edited_data)
    found: dict[str, Verdict] = {}
    for name, one in {"this batch": edit, "all so far": as_edit(desk, batch, state, everything=True)}.items():
        if name == "this batch" or len(one.changes.ids) > len(edit.changes.ids):
            found[name] = verify(
                one,
                test=desk.run.test,
                references=references,
                tolerance=section.tolerance,
                seed=section.verdict_seed,
            )
    worst = min(found.values(), key=lambda verdict: ORDER.index(verdict.outcome))
    return {
        "outcome": worst.outcome,
        "reason": worst.reason,
        "tolerance": section.tolerance,
        "references": len(references.independent),
        "verdicts": {name: verdict.to_dict() for name, verdict in found.items()},
    }


def _references(desk: Desk, batch: Batch, rows: Rows) -> References:
    """Train the recipe's model on the rows that are left, under other seeds; finished ones are found again."""
    recipe, settings = desk.run.recipe, desk.run.settings

    def retrain(data: Rows, seed: int) -> Any:
        start = build_model(recipe.model.name, seed=seed, **recipe.model.options)
        device = desk.run.device
        return train(start.to(device) if device else start, data, settings, seed=seed, description=f"retrain {seed}")[0]

    folder = batch_folder(desk.run.folder, batch.number) / "references"
    return train_references(desk.run.build(), rows, None, count=recipe.verify.references, train=retrain, folder=folder)


def _evidence(desk: Desk, batch: Batch, state: State) -> dict[str, Any]:
    """Ask whether held-out rows would do: is a removed row as likely at its label as test rows of the same label are?

    Each changed row has a place among the test rows of its old label, by phi in the edited model: 0 below all, 1 above
    all. Places of rows that training never saw are uniform, so their mean lies within 1.96 / sqrt(12 m) of 1/2 in 95 of
    100 cases. Few rows have a wide band: this is evidence, and full verification is due.
    """
    edit = as_edit(desk, batch, state, everything=False)
    places = np.array(list(_places(edit, desk.run.test)))
    if not len(places):
        return {"outcome": "undecided", "reason": "no test row has the label of a changed row", "rows": 0}
    band, mean = 1.96 / math.sqrt(12 * len(places)), float(places.mean())
    inside = abs(mean - 0.5) <= band
    return {
        "outcome": "pass" if inside else "fail",
        "reason": f"the mean place of {len(places)} changed rows among test rows of their label is {mean:.3f}, "
        f"{'within' if inside else 'outside'} 0.5 -+ {band:.3f}",
        "rows": len(places),
        "mean_place": mean,
        "band": band,
    }


def _places(edit: Edit, test: Rows) -> Iterator[float]:
    changed = edit.data.only(edit.changes.ids)
    own = phi(predict(edit.model, changed), changed.labels).numpy()
    others = phi(predict(edit.model, test), test.labels).numpy()
    labels = test.labels.numpy()
    for value, label in zip(own, changed.labels.tolist(), strict=True):
        same = others[labels == label]
        if len(same):
            yield float((same < value).mean() + (same == value).mean() / 2)


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
    }


_KINDS = {"verification": _verification, "evidence": _evidence, "retrain": _retrain}
