"""From a recipe to a verdict: stages that read and write one run folder, each skipped when it is finished.

A stage writes its last file when everything else of it is there; that file marks it as finished.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from unlearn import detect
from unlearn.atomic import read_json, write_atomically
from unlearn.checkpoint import save_checkpoint
from unlearn.errors import InputError
from unlearn.pipeline.appearance import Appearance
from unlearn.pipeline.audit import AUDIT_FILE, audit_run
from unlearn.pipeline.certified import ACCOUNT_FILE
from unlearn.pipeline.detectors import DETECTORS
from unlearn.pipeline.evidence import EVIDENCE_FILE, gather_evidence
from unlearn.pipeline.flagged import write_flagged
from unlearn.pipeline.rivals import rivals_beside
from unlearn.pipeline.run import FORMAT, Run
from unlearn.predict import predict
from unlearn.ranks import on_first_rank
from unlearn.recipe import Recipe
from unlearn.repair import Changes, Edit, OutputCut, apply_changes, drop_outputs, restricted_edit
from unlearn.repair.restricted_steps import EditMethod
from unlearn.report import assemble_report, listed_rows, render_report
from unlearn.training import snapshot_epochs, train
from unlearn.verification import Price, Verdict, verify
from unlearn.verification.processes import Processes

SHOWN = 48
BINS = 60
FOUND_POINTS = 31


def train_stage(run: Run) -> None:
    """Train the original; leave its record, snapshots and trajectory."""
    section = run.recipe.train
    model, record = train(
        run.build(),
        run.data,
        run.settings,
        seed=section.train_seed,
        folder=run.folder,
        snapshot_epochs=snapshot_epochs(section.snapshot_epochs, section.epochs),
        description="training the original",
    )
    save_checkpoint(
        run.folder / "original.safetensors",
        model,
        record=record,
        recipe=(run.recipe.name, run.recipe.text),
        spec={"name": run.recipe.model.name, "options": run.recipe.model.options},
    )


def suggestions_of(run: Run) -> dict[str, int]:
    """Return a suggested label for every row, from the trajectory, or the model where there is none."""
    logits = None if run.trajectory is not None else predict(run.original[0], run.data)
    return detect.suggest_labels(run.data, trajectory=run.trajectory, logits=logits)


def write_scores(run: Run, method: str, suggestions: dict[str, int]) -> detect.Scores:
    """Compute the scores of one method and write ``scores-<method>.csv``."""
    scores = DETECTORS[method].score(run)
    given = dict(zip(run.data.ids, run.data.labels.tolist(), strict=True))
    columns = {"given": [given[row] for row in scores.ids], "suggested": [suggestions[row] for row in scores.ids]}
    scores.save(run.folder / f"scores-{method}.csv", columns)
    return scores


def detect_stage(run: Run) -> None:
    """Compute the scores, estimate the cut-off, suggest labels."""
    section = run.recipe.detect
    suggestions = suggestions_of(run)
    given = dict(zip(run.data.ids, run.data.labels.tolist(), strict=True))
    table: list[dict[str, Any]] = []
    orders: dict[str, detect.Scores] = {}
    for method in (*(name for name in section.beside if name != section.method), section.method):
        deciding = write_scores(run, method, suggestions)
        orders[method] = deciding
        quality = detect.ranking_quality(deciding, run.data) if run.data.truth is not None else {}
        table.append({"method": method, "cost_epochs": DETECTORS[method].cost(deciding, run), **quality})
    cutoff = detect.estimate_cutoff(deciding) if section.count is None else detect.count_cutoff(deciding, section.count)
    write_flagged(run, deciding, cutoff.ids)
    quality_of_decision = None if run.data.truth is None else detect.decision_quality(cutoff.ids, suggestions, run.data)
    counts, edges = np.histogram(deciding.values, bins=BINS)
    run.write(
        "detection.json",
        {
            "method": section.method,
            "scores": table,
            "cutoff": {
                "how": cutoff.how,
                "count": len(cutoff.ids),
                "threshold": cutoff.threshold if cutoff.ids else None,
                "means": list(cutoff.means),
                "weights": list(cutoff.weights),
            },
            "quality": quality_of_decision,
            "found": None if run.data.truth is None else _found(run, orders),
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            "acted": list(cutoff.ids),
            "top": [
                {"rank": rank, "id": row, "score": value, "given": given[row], "suggested": suggestions[row]}
                for rank, (row, value) in enumerate(deciding.top(SHOWN), 1)
            ],
        },
    )


def _found(run: Run, orders: dict[str, detect.Scores]) -> dict[str, Any]:
    """Return how many mislabelled rows each score has found after so many checks, up to three checks for each."""
    curves = {method: detect.found_curve(scores, run.data) for method, scores in orders.items()}
    wrong = len(detect.wrong_rows(run.data))
    checked = np.linspace(0, min(len(run.data), 3 * wrong), FOUND_POINTS).round().astype(int)
    return {
        "checked": checked.tolist(),
        "mislabelled": wrong,
        "curves": {method: curve[checked].tolist() for method, curve in curves.items()},
    }


def decide_stage(run: Run) -> None:
    """Turn the recipe's own decisions, or the rows found, into a file; a person may edit it before the repair."""
    if run.stated is not None:
        run.stated.save(run.folder / "decisions.csv")
        return
    found = run.read("detection.json", "detect")
    acted = found["acted"]
    if run.recipe.repair.action == "remove":
        changes = Changes(removed=tuple(acted))
    else:
        scores = detect.read_column(run.folder / f"scores-{found['method']}.csv", "suggested")
        changes = Changes(relabelled={row: int(scores[row]) for row in acted})
    changes.save(run.folder / "decisions.csv")


def repair_stage(run: Run) -> None:
    """Edit the original by the decisions, and write the edited checkpoint."""
    changes = Changes.load(run.folder / "decisions.csv")
    model, record = run.original
    section = run.recipe.repair
    method = section.method or "auto"
    if method == "auto" or method == "newton" or method == "unrolled" or method == "compressed" or method == "descent":
        edit = apply_changes(
            model,
            run.data,
            changes,
            record=record,
            budget=section.budget,
            method=method,
            damping=section.damping,
            layers=section.layers,
        )
    else:
        edit = edit_units(run, changes, method=method)
    write_edit(run, drop_outputs(edit) if section.drop_output else edit)


def edit_units(run: Run, changes: Changes, *, method: EditMethod, **given: Any) -> Edit:
    """Make a restricted edit on Kronecker factors; an option that is not given (None) is the recipe's."""
    section, (model, record) = run.recipe.repair, run.original
    named = {"select": section.select, "ratio": section.ratio} if method in ("gif", "frozen", "projected") else {}
    options: dict[str, Any] = {
        **named,
        "steps": section.steps or 1,
        "damping": section.damping,
        "layers": section.layers,
    }
    options |= {name: value for name, value in given.items() if value is not None}
    return restricted_edit(model, run.data, changes, method=method, path="kfac", record=record, **options)


def write_edit(run: Run, edit: Edit) -> None:
    """Write ``edited.safetensors``, which carries every number of the edit; results of an older edit go first.

    The older checkpoint stays until the new one takes its place.
    """
    tables = [path.name for path in run.folder.glob("rows-*.csv")]
    about = ("verdict.json", AUDIT_FILE, EVIDENCE_FILE, "report.json", "report.html", "edited-cut.safetensors")
    run.take_away(*about, *tables)
    if not _has(run, "decisions.csv") or Changes.load(run.folder / "decisions.csv") != edit.changes:
        edit.changes.save(run.folder / "decisions.csv")
    save_checkpoint(
        run.folder / "edited.safetensors",
        edit.comparable,
        parent=run.folder / "original.safetensors",
        edit=edit,
        record=edit.record,
        recipe=(run.recipe.name, run.recipe.text),
    )
    if edit.cut is not None:
        write_cut(run, edit.model, edit.cut)


def write_cut(run: Run, model: nn.Module, cut: OutputCut) -> None:
    """Write ``edited-cut.safetensors``, the edited model without the outputs of its removed classes."""
    options = run.recipe.model.options
    fewer = {**options, "classes": len(cut.labels)}
    save_checkpoint(
        run.folder / "edited-cut.safetensors",
        model,
        parent=run.folder / "edited.safetensors",
        spec={"name": run.recipe.model.name, "options": fewer} if "classes" in options else None,
        recipe=(run.recipe.name, run.recipe.text),
        extra={"labels": {str(label): output for label, output in cut.labels.items()}},
    )


def verify_stage(
    run: Run,
    references: int | Sequence[str] | None = None,
    *,
    groups: str | None = None,
    processes: Processes = 1,
    tell: Callable[[Price], None] | None = None,
) -> Verdict:
    """Train references (or take the files given), measure distances beside rivals at equal cost, and decide.

    Without a reference nothing can be decided, and evidence is written instead; it takes two changed rows.
    """
    section, edit = run.recipe.verify, run.edit()
    rivals = rivals_beside(run, edit)
    verdict = verify(
        edit,
        test=run.test,
        references=section.references if references is None else references,
        rivals={name: rival.model for name, rival in rivals.items()},
        tolerance=section.tolerance,
        seed=section.verdict_seed,
        groups=groups,
        folder=run.folder / "references",
        processes=processes,
        tell=tell,
    )
    run.take_away("verdict.json", "report.json", "report.html")
    run.write("rivals.json", {"cost_epochs": {name: rival.cost for name, rival in rivals.items()}})
    for group, rows in verdict.rows.items():
        rows.save(run.folder / f"rows-{group}.csv")
    if not verdict.table and len(edit.changes.ids) > 1:
        gather_evidence(run)
    write_atomically(run.folder / "verdict.json", verdict.to_json().encode())
    return verdict


def audit_stage(run: Run) -> None:
    """Audit the edit's rows with as many shadow models as the recipe says."""
    audit_run(run, run.recipe.verify.shadows)


def report_stage(run: Run) -> None:
    """Gather every figure in ``report.json`` and show it in ``report.html``."""
    edit = run.edit() if _has(run, "edited.safetensors") else None
    report = assemble_report(run.folder, run.recipe, run.data, run.test, *run.original, edit)
    run.write("report.json", report)
    shown, appearance = run.data.only(listed_rows(report)), Appearance.of(run)
    images, texts = appearance.pictures(shown), {} if appearance.pictured else appearance.texts(shown)
    write_atomically(run.folder / "report.html", render_report({"format": FORMAT, **report}, images, texts).encode())


def _has(run: Run, name: str) -> bool:
    return (run.folder / name).exists()


_STAGES: dict[str, tuple[Callable[[Run], Any], str]] = {
    "train": (train_stage, "original.safetensors"),
    "detect": (detect_stage, "detection.json"),
    "decide": (decide_stage, "decisions.csv"),
    "repair": (repair_stage, "edited.safetensors"),
    "verify": (verify_stage, "verdict.json"),
    "audit": (audit_stage, AUDIT_FILE),
    "report": (report_stage, "report.html"),
}

# The steps of a training follow each other, and a page has no sums over rows.
_BY_ONE_RANK = ("train", "report")


def check_has_stages(recipe: Recipe) -> None:
    """Refuse the recipe of a certified head, which is run as a whole.

    Raises:
        InputError: it is one.
    """
    if recipe.certified is not None:
        raise InputError(
            f"recipe {recipe.name!r} trains a certified head, which has no stages to detect or verify; run it with "
            "`unlearn recipe run`"
        )


def stages_of(run: Run) -> dict[str, bool]:
    """Return the stages that a run of this recipe has, in their order, and whether each is finished in its folder.

    A certified head, and a rehearsal of requests behind the training, are stages of their own, each taken up where it
    was left. Which stages come after the decisions is known when there are some; here they are taken to ask for a
    change.
    """
    if run.recipe.certified is not None:
        return {"certified": _has(run, ACCOUNT_FILE)}
    finished = {stage: _has(run, marker) for stage, (_, marker) in _STAGES.items()}
    if run.recipe.requests.rehearsal is not None:
        return {"train": finished["train"], "rehearsal": False}
    if not run.recipe.verify.shadows:
        del finished["audit"]
    if run.recipe.repair.states_changes:
        del finished["detect"]
    return finished


def run_stages(run: Run, *, until: str = "report", tell: Callable[[str, float | None], None] | None = None) -> None:
    """Run the stages in order up to ``until``; one that is finished is skipped.

    Without rows to act on (nothing was found) the run goes from the decisions to the report. Nothing is detected where
    the recipe itself says what to change.

    Args:
        run: the run folder.
        until: last stage.
        tell: called with the stage and its seconds, None for a stage that was finished before.

    Raises:
        InputError: the recipe is one of a certified head.
    """
    check_has_stages(run.recipe)
    for stage, (function, marker) in _STAGES.items():
        seconds: float | None = None
        if not _has(run, marker):
            if stage == "audit" and not run.recipe.verify.shadows:
                continue
            if stage in ("repair", "verify", "audit") and not Changes.load(run.folder / "decisions.csv").asked:
                continue
            if stage == "detect" and run.stated is not None:
                continue
            begun = time.perf_counter()
            with torch.random.fork_rng(devices=[]):
                if stage in _BY_ONE_RANK:
                    on_first_rank(functools.partial(function, run))
                else:
                    function(run)
            seconds = time.perf_counter() - begun
            timings = read_json(run.folder / "timings.json") if _has(run, "timings.json") else {}
            write_atomically(run.folder / "timings.json", json.dumps({**timings, stage: round(seconds, 3)}).encode())
        if stage == "repair":
            run.check_decisions()
        if tell is not None:
            tell(stage, seconds)
        if stage == until:
            break
