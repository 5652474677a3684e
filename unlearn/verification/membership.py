"""The membership audit: can an attacker tell from a model that rows were in its training?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from torch import nn

from unlearn.data import Rows, as_rows
from unlearn.errors import InputError, some
from unlearn.precision import refuse_half
from unlearn.repair import Changes, Edit, apply_changes
from unlearn.repair.changes import removal
from unlearn.repair.method import Method
from unlearn.training import TrainingRecord
from unlearn.verification.attack_rates import rates
from unlearn.verification.attacks import Read, Scored, scored_attacks
from unlearn.verification.epsilon import epsilon_by_chance, epsilons
from unlearn.verification.likelihood_ratio import Gaussians, calibrated_p
from unlearn.verification.membership_verdict import TOLERANCE, MembershipAudit, judge
from unlearn.verification.processes import Processes
from unlearn.verification.references import Price, Train
from unlearn.verification.shadows import FEWEST, Repair, Shadows, train_shadows
from unlearn.verification.signals import Signals, read_signals

Floats = npt.NDArray[np.float64]

SHADOWS = 16
FPR = 0.01
FALSE_DISCOVERIES = 0.05
MEMORISED_SHARE = 0.25
FEWEST_MEMORISED = 5
REPEATABLE: Mapping[str, Method] = {
    "newton": "newton",
    "rewind-newton-replay": "newton",
    "unrolled": "unrolled",
    "rewind-unrolled-replay": "unrolled",
    "rewind-compressed-replay": "compressed",
    "descent": "descent",
}


def membership_audit(
    edit_or_model: Edit | nn.Module,
    data: Any | None = None,
    ids: Iterable[str] | None = None,
    *,
    shadows: int | Shadows = SHADOWS,
    unlearned: int | None = None,
    rivals: Mapping[str, nn.Module] | None = None,
    repair: Repair | None = None,
    record: TrainingRecord | None = None,
    train: Train | None = None,
    fpr: float = FPR,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    folder: str | Path | None = None,
    processes: Processes = 1,
    tell: Callable[[Price], None] | None = None,
) -> MembershipAudit:
    """Attack single rows of a model, and say whether they can be told from rows that training never saw.

    Shadow models are trained with and without the rows. They give each row its own distributions of phi in both worlds,
    for LiRA (arXiv 2112.03570); models that learned and then unlearned the rows give a third one, for U-LiRA
    (arXiv 2403.01218) and for the epsilon of the 2023 unlearning challenge (2406.09073). The audit is two-sided: a row
    of which the model is *less* confident than one that never saw it gives itself away too.

    Args:
        edit_or_model: an edit, or any trained model.
        data: rows the original was trained on, with their old labels; those of the edit if None.
        ids: rows in question: the changed rows of an edit (or some of them), any training rows of a model.
        shadows: how many models to train, half of them with the rows and half without; or your own models.
        unlearned: how many models learn and then unlearn. By default half of ``shadows`` where an edit has a record
            with its row order, none otherwise.
        rivals: other models to attack beside, by name; of an edit the unedited model always is.
        repair: ``(model, data, changes, record) -> model``, how they unlearn; by default as the edit was made.
        record: of the original training; that of the edit if None.
        train: ``(data, seed) -> model``, where the record alone can not retrain.
        fpr: false positive rate at which true positive rates are read.
        tolerance: largest true positive rate that passes.
        seed: of the draws behind the epsilon of chance.
        folder: where finished shadow models are kept and looked for; a run's ``references`` folder does.
        processes: see :func:`unlearn.verification.train_references`.
        tell: called with the price before the first training.

    Returns:
        The audit; its outcome is ``pass``, ``fail`` or ``undecided``.

    Raises:
        InputError: no rows, rows that the edit did not change, data without classes, or options out of range.
        RowNotFoundError: an id is not in the data.
        RecordError: nothing to train shadow models with.
    """
    refuse_half("a membership audit is")
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance is {tolerance}; give a rate above 0 and below 1 (the usual one is {TOLERANCE})")
    model, original, rows, changes, record = _subject(edit_or_model, data, ids, record)
    asked = list(changes.ids) if ids is None else [ids] if isinstance(ids, str) else list(ids)
    if rows.classes is None:
        raise InputError(f"the audit compares class probabilities, and {rows.name} has none")
    if not isinstance(shadows, Shadows):
        if shadows < 2 * FEWEST:
            raise InputError(
                f"shadows is {shadows}; give at least {2 * FEWEST}: {FEWEST} with the rows, {FEWEST} without"
            )
        name = "" if repair is None else f"{repair.__module__}.{getattr(repair, '__qualname__', type(repair))}"
        if repair is None and isinstance(edit_or_model, Edit) and edit_or_model.method in REPEATABLE:
            edit = edit_or_model
            repair, name = same_edit(edit), f"{edit.method} {edit.budget} {edit.layers}"
        if unlearned is None:
            repeatable = repair is not None and record is not None and record.order is not None
            unlearned = shadows // 2 if repeatable else 0
        shadows = train_shadows(
            original,
            rows,
            changes,
            record,
            counts={"never": shadows - shadows // 2, "learned": shadows // 2, "unlearned": unlearned},
            train=train,
            repair=repair,
            repair_name=name,
            folder=folder,
            processes=processes,
            tell=tell,
        )
    attacked = rows.only(asked)
    kinds = {kind: [read_signals(one, attacked) for one in getattr(shadows, kind)] for kind in _KINDS}

    def attack(one: nn.Module, **known: list[Signals]) -> MembershipAudit:
        return audit_signals(
            Read(read_signals(one, attacked), **known), attacked, fpr=fpr, tolerance=tolerance, seed=seed
        )

    others = {"unedited": original} if isinstance(edit_or_model, Edit) else {}
    beside = {name: attack(one, **{**kinds, "unlearned": []}) for name, one in {**others, **(rivals or {})}.items()}
    return replace(attack(model, **kinds), beside=tuple(_beside(name, audit) for name, audit in beside.items()))


def audit_signals(
    read: Read, rows: Rows, *, fpr: float = FPR, tolerance: float = TOLERANCE, seed: int = 0
) -> MembershipAudit:
    """Return the audit from signals that were read already; rows give ids and labels."""
    attacks = scored_attacks(read)
    gaps = read.phi("learned").mean(0) - read.phi("never").mean(0)
    memorised = np.zeros(len(rows), dtype=bool)
    memorised[np.argsort(-gaps, kind="stable")[: round(MEMORISED_SHARE * len(rows))]] = True
    groups = {"all": np.ones(len(rows), dtype=bool)}
    if memorised.sum() >= FEWEST_MEMORISED:
        groups["memorised"] = memorised
    table = [
        line for group, chosen in groups.items() for scored in attacks for line in _lines(group, scored, chosen, fpr)
    ]
    found = _epsilons(read, seed)
    return judge(
        table,
        _rows(read, rows, attacks, memorised, found),
        {kind: summary for kind, (summary, _) in found.items()},
        fpr=fpr,
        tolerance=tolerance,
        models={kind: len(getattr(read, kind)) for kind in _KINDS},
    )


def _beside(name: str, audit: MembershipAudit) -> dict[str, Any]:
    return {"model": name, **audit.summary(), "table": [row for row in audit.table if row["models"] == "audited"]}


_KINDS = ("never", "learned", "unlearned")


class _SameEdit:
    """The repair by which an edit was made, on another model of the same training."""

    def __init__(self, method: Method, budget: float, layers: tuple[str, ...] | None) -> None:
        self.method, self.budget, self.layers = method, budget, layers

    def __call__(self, model: nn.Module, data: Rows, changes: Changes, record: TrainingRecord) -> nn.Module:
        return apply_changes(
            model,
            data,
            changes,
            record=record,
            method=self.method,
            budget=self.budget,
            layers=self.layers,
            allow_empty_class=True,
        ).model


def same_edit(edit: Edit) -> Repair:
    """Return the repair that makes the same edit, with the same budget, on another model of the same training.

    Raises:
        InputError: the edit was not made by :func:`unlearn.remove` or :func:`unlearn.relabel`.
    """
    if edit.method not in REPEATABLE:
        raise InputError(
            f"an edit of the kind {edit.method!r} can not be repeated here (known: {', '.join(REPEATABLE)}); "
            "pass repair="
        )
    return _SameEdit(REPEATABLE[edit.method], edit.budget, edit.layers)


def _subject(
    edit_or_model: Edit | nn.Module, data: Any | None, ids: Iterable[str] | None, record: TrainingRecord | None
) -> tuple[nn.Module, nn.Module, Rows, Changes, TrainingRecord | None]:
    """Return audited model, original, rows before the change, the change and the record."""
    if isinstance(edit_or_model, Edit):
        edit = edit_or_model
        unchanged = [row for row in ([ids] if isinstance(ids, str) else ids or ()) if row not in set(edit.changes.ids)]
        if unchanged:
            raise InputError(
                f"{len(unchanged)} rows were not changed by the edit: {some(map(repr, unchanged))}; its shadow models "
                "all see them, so give changed rows only"
            )
        rows = edit.data if data is None else as_rows(data)
        return edit.comparable, edit.original, rows, edit.changes, edit.record if record is None else record
    if data is None or ids is None:
        raise InputError("a model alone does not say what it was trained on: pass data and ids, or an edit")
    rows, changes = as_rows(data), removal(ids)
    changes.check(rows, allow_empty_class=True)
    return edit_or_model, edit_or_model, rows, changes, record


def _lines(group: str, scored: Scored, chosen: npt.NDArray[np.bool_], fpr: float) -> list[dict[str, Any]]:
    """Return the table's lines of an attack on a group: the audited model, and models whose past is known."""
    never = scored.never[:, chosen]
    sides = {"audited": scored.audited[chosen]}
    if scored.known is not None:
        sides[scored.known_as] = scored.known[:, chosen]
    return [
        {"group": group, "attack": scored.name, "models": models, **asdict(rates(scores, never, fpr))}
        for models, scores in sides.items()
    ]


def _epsilons(read: Read, seed: int) -> dict[str, tuple[dict[str, Any], Floats]]:
    """Return by kind the summary of epsilon against models that never saw the rows, and epsilon of each row."""
    never, found = read.phi("never"), {}
    for kind in ("learned", "unlearned"):
        if getattr(read, kind):
            phis = read.phi(kind)
            one = epsilons(phis, never)
            found[kind] = ({**one.to_dict(), "by_chance": epsilon_by_chance(phis, never, seed=seed)}, one.values)
    return found


def _rows(
    read: Read,
    rows: Rows,
    attacks: list[Scored],
    memorised: npt.NDArray[np.bool_],
    found: dict[str, tuple[dict[str, Any], Floats]],
) -> list[dict[str, Any]]:
    never, learned = (Gaussians.fit(read.phi(kind), shared=False) for kind in ("never", "learned"))
    phi = read.audited.phi
    p = calibrated_p(phi, read.phi("never"))
    flagged = stats.false_discovery_control(p) <= FALSE_DISCOVERIES
    scores = {scored.name: scored.audited for scored in attacks}
    flags = np.where(~flagged, "", np.where(phi > never.mean, "still remembered", "over-forgotten"))
    columns: dict[str, Iterable[Any]] = {
        "id": rows.ids,
        "label": rows.labels.tolist(),
        "memorised": memorised.tolist(),
        "phi": phi.tolist(),
        "never_mean": never.mean.tolist(),
        "never_std": never.std.tolist(),
        "learned_mean": learned.mean.tolist(),
        "learned_std": learned.std.tolist(),
        "p": p.tolist(),
        "flag": flags.tolist(),
        "lira": scores["lira"].tolist(),
        "u_lira": scores["u-lira"].tolist() if "u-lira" in scores else [None] * len(rows),
        "loss": read.audited.loss.tolist(),
        "gradient_norm": read.audited.gradient_norm.tolist(),
        "epsilon": found["unlearned"][1].tolist() if "unlearned" in found else [None] * len(rows),
    }
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
