"""Evidence without any retraining, for models that are too large to train again. Never a verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from unlearn.curvature import Curvature, fit_curvature
from unlearn.data import Rows, as_rows
from unlearn.detect import self_influence
from unlearn.detect.damped_curvature import damped_curvature
from unlearn.errors import InputError
from unlearn.precision import refuse_half
from unlearn.predict import predict
from unlearn.repair import Edit
from unlearn.tasks import get_task, phi
from unlearn.verification.held_out import Difference, HeldOutPhi, Kind, difference, kinds_of, matched_rows
from unlearn.verification.linear_prediction import agreement_of, output_change, predicted_step

FORMAT = 1
MARGIN = 0.1
FORETOLD = 3.0
MOST_CURVATURE_ROWS = 4096
MOST_KEPT_ROWS = 1000


@dataclass(frozen=True)
class Evidence:
    """What can be said of an edit without retraining. It is not a verdict, and says so wherever it is printed.

    Attributes:
        reading: ``like held-out rows``, ``still remembered``, ``over-forgotten`` or ``not telling``: what phi of the
            changed rows shows beside that of held-out rows.
        reason: one sentence.
        margin: how far from 1/2 the auc may be by the choice of rows alone.
        against_held_out: a row for each model (unedited, edited) and quantity (phi, self-influence) with the keys
            ``model``, ``quantity``, ``changed`` and ``held_out`` (medians), ``auc`` with one-sided 95 % bounds
            ``lower`` and ``upper``, ``p_place`` (Mann-Whitney), ``p_form`` (Kolmogorov-Smirnov), ``p`` (both,
            Bonferroni), ``rows``, ``held_out_rows``. Phi is compared within kinds of rows, see
            :mod:`unlearn.verification.held_out`. Empty without held-out rows.
        prediction: a row for each group (changed, kept, held-out) with the keys ``group``, ``cosine``, ``slope``,
            ``predicted``, ``actual``: the change of logits that the curvature foretells against what happened.
        rows: for each changed row ``id``, ``label``, ``looks_like``, ``phi_before``, ``phi_after``,
            ``phi_predicted``, ``share_before``, ``share_after`` (of held-out rows of its kind with a lower phi),
            ``self_influence_before``, ``self_influence_after``.
        cost_epochs: what it cost, in training epochs (decompositions not counted).
        notes: what a reader should know.
    """

    reading: str
    reason: str
    margin: float
    against_held_out: list[dict[str, Any]]
    prediction: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    cost_epochs: float
    notes: tuple[str, ...] = ()

    outcome = "evidence"
    exit_code = 3

    def to_dict(self) -> dict[str, Any]:
        """Return the evidence as a dictionary of plain values."""
        return {"format": FORMAT, "outcome": self.outcome, "verdict": None, **asdict(self), "notes": list(self.notes)}

    def to_json(self) -> str:
        """Return the evidence as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        return f"evidence, never a verdict: {self.reading}; {self.reason}"


def evidence(
    edit: Edit,
    *,
    held_out: Any | None = None,
    looks_like: Mapping[str, int] | None = None,
    curvature: Curvature | None = None,
    margin: float = MARGIN,
    seed: int = 0,
) -> Evidence:
    """Gather evidence on an edit without training anything.

    Three questions, each with what it can not tell:

    - Do the changed rows look like rows that training never saw? Their phi in the edited model against that of held-out
      rows of the same kind, by two-sample tests. The auc must lie within ``margin`` of 1/2, bounds and all: rows that a
      detector picked are harder than others of their kind, so that even a model that never saw them departs from it.
    - Did the outputs change as the curvature foretells? The Newton step of the change at the original's weights, to
      first order, against what happened on changed, kept and held-out rows. Where the original has memorised the rows,
      the prediction is far too small. Who forgets all rows of a kind alike moves held-out rows along, and only this
      question shows it.
    - Does the model still lean on the changed rows? Their self-influence, beside that of held-out rows.

    Args:
        edit: what :func:`unlearn.remove` or :func:`unlearn.relabel` returned.
        held_out: rows that neither training nor edit saw, rightly labelled. Without them the first question is open.
        looks_like: the class that a removed row looks like, by id, where its label is wrong; never from the edited
            model. A relabelled row looks like its new label, any other row like its old one.
        curvature: of the original's weights; fitted where missing, on at most 4,096 rows.
        margin: see above; between 0 and 1/2.
        seed: of the held-out rows drawn for self-influence.

    Raises:
        InputError: the task has no classes, no held-out row is of a class that a changed row looks like, fewer than two
            rows are changed, or a margin that can not be meant.
        StaleCurvatureError: curvature of other weights.
    """
    refuse_half("evidence is")
    data, changes = edit.data, edit.changes
    if data.classes is None:
        raise InputError(f"the evidence compares class probabilities, and {data.name} has none")
    if not 0 < margin < 0.5:
        raise InputError(f"margin is {margin}; give a number above 0 and below 1/2 (the usual one is {MARGIN})")
    task = get_task("classification" if edit.record is None else edit.record.task)
    changed = data.only(changes.ids)
    kinds = kinds_of(changed, changes, looks_like)
    decay = 0.0 if edit.record is None else edit.record.weight_decay
    fit_rows = edit.edited_data.sample(MOST_CURVATURE_ROWS, seed, "evidence-curvature")
    if curvature is None:
        curvature = fit_curvature(edit.original, fit_rows, task=task)
    damping, notes = _damping(edit), []
    if damping is None:
        notes.append("the damping is a tenth of the mean eigenvalue: no record gives a horizon")
    options: dict[str, Any] = {"damping": damping, "weight_decay": decay, "task": task, "batch_size": 256}
    damped = damped_curvature(edit.original, fit_rows, curvature=curvature, **options)
    options["damping"] = damped.damping

    groups = {"changed": changed, "kept": data.without(changes.ids).sample(MOST_KEPT_ROWS, seed, "evidence-kept")}
    test = None if held_out is None else as_rows(held_out)
    if test is not None:
        groups["held-out"] = test
    before = {name: predict(edit.original, rows).double() for name, rows in groups.items()}
    after = {name: predict(edit.comparable, rows).double() for name, rows in groups.items()}
    step = predicted_step(
        edit.original, data, changes, damped.curvature, task=task, weight_decay=decay, damping=damped.damping
    )
    foretold = {name: output_change(edit.original, rows, step).double() for name, rows in groups.items()}
    prediction = [
        {"group": name, **asdict(agreement_of(foretold[name], after[name] - before[name]))} for name in groups
    ]

    sample = None if test is None else matched_rows(test, kinds, seed)
    curvatures = {"unedited": damped.curvature, "edited": fit_curvature(edit.comparable, fit_rows, task=task)}
    models = {"unedited": edit.original, "edited": edit.comparable}
    influence = {
        name: self_influence(model, changed, curvature=curvatures[name], **options).values
        for name, model in models.items()
    }
    columns = _columns(changed, kinds, before["changed"], after["changed"], foretold["changed"], influence)
    table: list[dict[str, Any]] = []
    if test is None or sample is None:
        notes.append("no held-out rows were given, so nothing shows how such rows look when training never saw them")
    else:
        for name, logits in (("unedited", before), ("edited", after)):
            held = HeldOutPhi.of(logits["held-out"], test, kinds)
            values = phi(logits["changed"], changed.labels).numpy()
            shares = held.shares(values, kinds)
            columns["share_before" if name == "unedited" else "share_after"] = shares.tolist()
            others = phi(predict(models[name], sample).double(), sample.labels).numpy()
            table.append(_line(name, "phi", values, others, difference(shares, held.own_shares)))
        for name, model in models.items():
            others = self_influence(model, sample, curvature=curvatures[name], **options).values
            table.append(_line(name, "self-influence", influence[name], others, difference(influence[name], others)))
    reading, reason = _reading(table, margin, prediction[0]["slope"])
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    cost = _cost(len(data), len(fit_rows), len(changed), sum(map(len, groups.values())))
    return Evidence(reading, reason, margin, table, prediction, rows, cost, tuple(notes))


def _damping(edit: Edit) -> float | None:
    """Return the damping by the training horizon; None where there is no number for it."""
    record = edit.record
    if record is None or record.optimizer == "adam":
        return None
    return record.damping()


def _columns(
    changed: Rows, kinds: list[Kind], before: Tensor, after: Tensor, foretold: Tensor, influence: Mapping[str, Any]
) -> dict[str, list[Any]]:
    labels = changed.labels
    return {
        "id": list(changed.ids),
        "label": labels.tolist(),
        "looks_like": [looks for _, looks in kinds],
        "phi_before": phi(before, labels).tolist(),
        "phi_after": phi(after, labels).tolist(),
        "phi_predicted": phi(before + foretold, labels).tolist(),
        "share_before": [None] * len(changed),
        "share_after": [None] * len(changed),
        "self_influence_before": influence["unedited"].tolist(),
        "self_influence_after": influence["edited"].tolist(),
    }


def _line(model: str, quantity: str, changed: Any, held_out: Any, found: Difference) -> dict[str, Any]:
    return {
        "model": model,
        "quantity": quantity,
        "changed": _median(changed),
        "held_out": _median(held_out),
        "auc": found.auc,
        "lower": found.lower,
        "upper": found.upper,
        "p_place": found.p_place,
        "p_form": found.p_form,
        "p": found.p,
        "rows": found.changed,
        "held_out_rows": found.held_out,
    }


def _median(values: Any) -> float:
    return float(torch.as_tensor(values).double().quantile(0.5))


def _reading(table: list[dict[str, Any]], margin: float, slope: float) -> tuple[str, str]:
    """Return what phi beside held-out rows shows, unless the outputs moved much farther than foretold.

    Who forgets all rows of a kind alike moves the held-out rows along: beside them nothing shows.
    """
    phis = {row["model"]: row for row in table if row["quantity"] == "phi"}
    if not phis:
        return "not telling", "there are no held-out rows to compare the changed rows with"
    readings = {name: _placed(row["lower"], row["upper"], margin) for name, row in phis.items()}
    edited, unedited = (
        f"{row['auc']:.0%} of pairs (bounds {row['lower']:.0%} to {row['upper']:.0%})"
        for row in (phis["edited"], phis["unedited"])
    )
    reason = (
        f"phi of a changed row is above that of a held-out row of its kind in {edited}, before the edit in {unedited}"
    )
    if readings["edited"] == readings["unedited"] == "like held-out rows":
        return "not telling", reason + "; the edit was not needed for that"
    if readings["edited"] == "like held-out rows" and slope > FORETOLD:
        return "not telling", (
            reason
            + f"; but outputs on changed rows moved {slope:.2g} times as far as foretold (over {FORETOLD:g}), and "
            "held-out rows may have moved along"
        )
    return readings["edited"], reason + f"; like held-out rows is {0.5 - margin:.0%} to {0.5 + margin:.0%}"


def _placed(lower: float, upper: float, margin: float) -> str:
    if lower > 0.5 + margin:
        return "still remembered"
    if upper < 0.5 - margin:
        return "over-forgotten"
    return "like held-out rows" if lower >= 0.5 - margin and upper <= 0.5 + margin else "not telling"


def _cost(n: int, fitted: int, changed: int, predicted: int) -> float:
    """Return training epochs: two fits, gradients of the changed rows and their matches, two predictions and a JVP."""
    return (2 * 6 * fitted + 3 * 5 * changed + (1 + 1 + 3) * predicted) / (3 * n)
