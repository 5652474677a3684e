"""The front door of verification: retrain, measure, decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from unlearn.data import Rows, as_rows
from unlearn.data.overlap import check_disjoint
from unlearn.errors import InputError
from unlearn.predict import predict
from unlearn.repair import Edit
from unlearn.tasks import phi
from unlearn.verification.distances import Group, measure
from unlearn.verification.processes import Processes
from unlearn.verification.references import Price, References, Train, given_references, train_references
from unlearn.verification.verdict import TOLERANCE, GroupPhi, Verdict, decide


def verify(
    edit: Edit,
    *,
    test: Any,
    references: int | References | Sequence[nn.Module | str | Path] = 3,
    train: Train | None = None,
    rivals: Mapping[str, nn.Module] | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    folder: str | Path | None = None,
    processes: Processes = 1,
    tell: Callable[[Price], None] | None = None,
) -> Verdict:
    """Compare an edited model with retraining on the changed data, and decide by the rule of math.md 5.

    Args:
        edit: what :func:`unlearn.remove` or :func:`unlearn.relabel` returned.
        test: rows that neither training nor edit saw.
        references: number of independent retrains; or the user's own retrains on the changed data, as modules or
            safetensors files.
        train: the user's ``(data, seed) -> model``, where the record alone can not retrain.
        rivals: other edited models to measure beside, by name.
        tolerance: of the verdict; printed with it.
        seed: of the verdict's resampling.
        folder: where finished retrains are kept and looked for.
        processes: how many to retrain in at once, or ``auto``; see :func:`unlearn.verification.train_references`.
        tell: called with the price of the references before the first is trained.

    Returns:
        The verdict, with the measures of every model in ``measures``. Without references it is undecided.

    Raises:
        InputError: the task has no classes.
        RecordError: nothing to retrain with.
    """
    if edit.data.classes is None:
        raise InputError(f"the verdict compares class probabilities, and {edit.data.name} has none")
    test_rows = as_rows(test)
    if edit.calibration is not None:
        check_disjoint(
            edit.calibration.rows, test_rows, "the test rows", "calibrated on", "test on rows that the edit never saw"
        )
    if isinstance(references, int):
        references = train_references(
            edit.original,
            edit.edited_data,
            edit.record,
            count=references,
            train=train,
            folder=folder,
            processes=processes,
            tell=tell,
        )
    elif not isinstance(references, References):
        references = given_references(references, edit.original)
    groups = [
        _group(name, rows, labels, edit, references, rivals or {})
        for name, (rows, labels) in _rows_of(edit, test_rows).items()
    ]
    measures = tuple(row for group in groups for row in measure(group))
    verdict = decide_groups(groups, tolerance=tolerance, seed=seed)
    return replace(verdict, measures=measures, notes=references.notes)


def decide_groups(groups: list[Group], *, tolerance: float, seed: int) -> Verdict:
    """Return the verdict over groups of logits; undecided without independent retrains."""
    if not all(group.independent for group in groups):
        reason = "no independent retrain was asked for, so there is no floor to hold the edit against"
        return Verdict("undecided", reason, tolerance, [])
    return decide(
        {
            group.name: GroupPhi(
                edited=_phi(group.edited, group),
                unedited=_phi(group.unedited, group),
                references=np.stack([_phi(z, group) for z in group.independent]),
            )
            for group in groups
        },
        tolerance=tolerance,
        seed=seed,
    )


def _phi(logits: Any, group: Group) -> Any:
    return phi(logits, group.phi_labels).numpy()  # type: ignore[arg-type]


def _rows_of(edit: Edit, test: Rows) -> dict[str, tuple[Rows, Tensor]]:
    """Return rows with the labels phi is taken at, and the labels that a good model should predict, by group.

    A removed row has no other label than its old one; there a high accuracy is a trace, not a merit.
    """
    changed = edit.data.only(edit.changes.ids)
    wanted = changed.relabelled(edit.changes.relabelled) if edit.changes.relabelled else changed
    groups = {"changed": (changed, wanted.labels)}
    if len(changed) < len(edit.data):
        kept = edit.data.without(edit.changes.ids)
        groups["kept"] = (kept, kept.labels)
    return {**groups, "test": (test, test.labels)}


def _group(
    name: str, rows: Rows, labels: Tensor, edit: Edit, references: References, rivals: Mapping[str, nn.Module]
) -> Group:
    def logits(model: nn.Module) -> Tensor:
        return predict(model, rows).double()

    return Group(
        name,
        labels_for_accuracy=labels,
        phi_labels=rows.labels,
        unedited=logits(edit.original),
        edited=logits(edit.comparable),
        coupled=None if references.coupled is None else logits(references.coupled),
        independent=[logits(model) for model in references.independent],
        rivals={rival: logits(model) for rival, model in rivals.items()},
    )
