"""The front door of verification: retrain, measure, decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from unlearn.checkpoint import load_weights, read_checkpoint
from unlearn.data import Rows, as_rows
from unlearn.data.overlap import check_disjoint
from unlearn.errors import InputError
from unlearn.precision import refuse_half
from unlearn.predict import predict
from unlearn.repair import Edit
from unlearn.tasks import phi
from unlearn.verification.activations import penultimate
from unlearn.verification.measures import Compared, Group, measure, measure_weights
from unlearn.verification.processes import Processes
from unlearn.verification.references import (
    Price,
    References,
    Train,
    given_references,
    retrain_epochs,
    train_references,
)
from unlearn.verification.row_files import read_groups
from unlearn.verification.row_table import row_table
from unlearn.verification.subgroups import check_groups, measure_subgroups
from unlearn.verification.verdict import TOLERANCE, GroupPhi, Verdict, decide

MOST_ACTIVATIONS = 1000  # rows that activations are compared on: more cost memory and move the alignment little
Labelled = Mapping[str, tuple[Rows, Tensor]]
Named = Mapping[str, str] | str | Path


def verify(
    edit: Edit,
    *,
    test: Any,
    references: int | References | Sequence[nn.Module | str | Path] = 3,
    train: Train | None = None,
    rivals: Mapping[str, nn.Module] | None = None,
    groups: Named | None = None,
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
        groups: names of groups of rows that are to be measured apart, beside the classes: by row id, or a CSV file
            with the columns id and group.
        tolerance: of the verdict; printed with it.
        seed: of the verdict's resampling.
        folder: where finished retrains are kept and looked for.
        processes: how many to retrain in at once, or ``auto``; see :func:`unlearn.verification.train_references`.
        tell: called with the price of the references before the first is trained.

    Returns:
        The verdict, with the measures of every model in ``measures``, of the edited one by class and named group in
        ``subgroups``, and each row in ``rows``. Without references it is undecided.

    Raises:
        InputError: the task has no classes.
        RecordError: nothing to retrain with.
        RowNotFoundError: a named group has rows that are not there.
    """
    if edit.data.classes is None:
        raise InputError(f"the verdict compares class probabilities, and {edit.data.name} has none")
    test_rows = as_rows(test)
    if edit.calibration is not None:
        check_disjoint(
            edit.calibration.rows, test_rows, "the test rows", "calibrated on", "test on rows that the edit never saw"
        )
    refuse_half("a verdict is")
    named = _named(groups, {*edit.data.ids, *test_rows.ids})
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
    models = Compared(edit.comparable, edit.original, references.coupled, references.independent, dict(rivals or {}))
    verdict = _measured(models, _rows_of(edit, test_rows), named, tolerance, seed)
    retrain = None if edit.record is None else retrain_epochs(edit.record, edit.edited_data)
    spent = edit.cost.total
    cost = {"edit": spent, "retrain": retrain, "ratio": spent / retrain if retrain else None}
    return replace(verdict, notes=references.notes, cost=cost)


def compare_models(
    model: nn.Module | str | Path,
    against: Sequence[nn.Module | str | Path],
    data: Any,
    *,
    architecture: nn.Module | None = None,
    groups: Named | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    device: str | None = None,
) -> Verdict:
    """Compare any model with others of one architecture on any rows; with two or more others, decide.

    The others are taken to be independent of each other and of the model, as retrains with other seeds are: whether
    they are is the caller's to know. r is the model's distance to them over their distance to each other.

    Args:
        model: a module or a safetensors file.
        against: the others, at least one; with one there are distances and no floor, so nothing is decided.
        data: rows, all of them one group.
        architecture: what files are loaded into; built from the first file's own description if None.
        groups: as in :func:`verify`.
        tolerance: of the verdict.
        seed: of the verdict's resampling.
        device: where models that are read from files are put; the CPU if None.

    Raises:
        InputError: nothing to compare with, or the task has no classes.
        CheckpointError: a file is damaged, does not fit, or does not say how to build its model.

    >>> import torch
    >>> rows = Rows.from_tensors(torch.eye(4), torch.tensor([0, 1, 0, 1]))
    >>> with torch.random.fork_rng():
    ...     a, b, c = (nn.Linear(4, 2) for _ in range(3))
    >>> verdict = compare_models(a, [b, c], rows)
    >>> [row["group"] for row in verdict.table], "subgroups" in verdict.to_dict()
    (['given'], True)
    """
    refuse_half("a verdict is")
    rows = as_rows(data)
    if rows.classes is None:
        raise InputError(f"the verdict compares class probabilities, and {rows.name} has none")
    if not against:
        raise InputError("there is no model to compare with; give at least one, and two or more for a verdict")
    named = _named(groups, set(rows.ids))
    if not isinstance(model, nn.Module):
        model = load_weights(architecture, read_checkpoint(model, require_provenance=False)).eval().to(device)
    others = given_references(against, model)
    compared = Compared(model, independent=others.independent)
    return _measured(compared, {"given": (rows, rows.labels)}, named, tolerance, seed)


def _measured(
    models: Compared[nn.Module], labelled: Labelled, named: Mapping[str, str], tolerance: float, seed: int
) -> Verdict:
    groups = {name: (_group(name, rows, wanted, models), tuple(rows.ids)) for name, (rows, wanted) in labelled.items()}
    tables = {name: row_table(group, ids) for name, (group, ids) in groups.items()}
    verdict = decide_groups([group for group, _ in groups.values()], tolerance=tolerance, seed=seed)
    first, table = next(iter(tables.items()))
    return replace(
        verdict,
        measures=tuple(row for group, _ in groups.values() for row in measure(group)),
        subgroups=tuple(row for group, ids in groups.values() for row in measure_subgroups(group, ids, named)),
        weights=tuple(measure_weights(models.map(lambda model: dict(model.named_parameters())))),
        remembered=tuple({"group": first, **row} for row in table.remembered()),
        rows=tables,
    )


def decide_groups(groups: list[Group], *, tolerance: float, seed: int) -> Verdict:
    """Return the verdict over groups of logits; undecided without independent retrains."""
    if not all(group.independent for group in groups):
        reason = "no independent retrain was asked for, so there is no floor to hold the edit against"
        return Verdict("undecided", reason, tolerance, [])
    return decide(
        {
            group.name: GroupPhi(
                edited=_phi(group.edited, group),
                unedited=None if group.unedited is None else _phi(group.unedited, group),
                references=np.stack([_phi(z, group) for z in group.independent]),
            )
            for group in groups
        },
        tolerance=tolerance,
        seed=seed,
    )


def _phi(logits: Any, group: Group) -> Any:
    return phi(logits, group.phi_labels).numpy()  # type: ignore[arg-type]


def _named(groups: Named | None, ids: set[str]) -> Mapping[str, str]:
    named = {} if groups is None else groups if isinstance(groups, Mapping) else read_groups(groups)
    check_groups(named, ids)
    return named


def _rows_of(edit: Edit, test: Rows) -> Labelled:
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


def _group(name: str, rows: Rows, wanted: Tensor, models: Compared[nn.Module]) -> Group:
    logits = models.map(lambda model: predict(model, rows).double())
    some = rows.sample(MOST_ACTIVATIONS)
    activations = models.map(lambda model: penultimate(model, some))
    every = [*activations.contenders().values(), *activations.independent]
    return Group(
        name,
        labels_for_accuracy=wanted,
        phi_labels=rows.labels,
        unedited=logits.unedited,
        edited=logits.edited,
        coupled=logits.coupled,
        independent=logits.independent,
        rivals=logits.rivals,
        activations=None if any(one is None for one in every) else activations,  # type: ignore[arg-type]
    )
