"""Purging: what under the run folder still holds deleted rows' content or gradients, and its removal.

The rule. What was made while the rows were in training goes: snapshots, row orders, trajectories, curvature, scores,
sketches, explanations, reports with images, retrained references, an edit of the pipeline, and checkpoints that know
deleted rows once they are older than the recipe's ``retention_days`` (until then a rollback needs them). The released
model's own snapshots stay: an edit leaves replayed ones that never saw the rows (:mod:`unlearn.training.successor`), a
retrain its own; later edits start from these. Where there are none, later edits start from the released weights. So do
curvature factors that were fitted on the rows as they are now (:mod:`unlearn.requests.factors`); later edits fit anew
where these went.
Ledger, heads, certificates, verdicts and the released checkpoint stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from unlearn.errors import InputError
from unlearn.requests.desk import Desk
from unlearn.requests.factors import factors_knowing_deleted
from unlearn.requests.named_files import batch_folder, model_path
from unlearn.requests.process import at_work
from unlearn.requests.removal import finish_key, finish_purge
from unlearn.requests.state import ORIGINAL, State

# names or patterns in the run folder, and what they are
HOLDING = {
    "snapshots": "snapshots and row order of the training",
    "trajectory.safetensors": "margins of every row",
    "curvature": "curvature fitted on the rows",
    "references": "models trained on the rows",
    "scores-*.csv": "scores of every row",
    "detection.json": "rows found, by id",
    "decisions*.csv": "decisions, by id",
    "flagged.json": "rows shown for review, by id",
    "evidence.json": "evidence on rows, by id",
    "audit.json": "a membership audit of rows, by id",
    "verdict.json": "the verdict on an edit that knows the rows",
    "rows-*.csv": "changed rows beside retrains, by id",
    "head.safetensors": "a certified head, which knows the rows",
    "certified.json": "the account of certified removals, by id",
    "sketches*": "gradients of every row, sketched",
    "features*": "features of every row",
    "explanation*": "influential rows",
    "explain*": "influential rows",
    "report.html": "a report with images",
    "report.json": "a report with ids",
    "edited*.safetensors": "an edit that knows the rows",
    "*.rolled-back*.safetensors": "an edit that knows the rows",
    "review*": "what a person decided, by id",
    "*.part": "a file whose writing was cut off",
}
KEPT = {"recipe.toml", "original.safetensors", "requests", "timings.json", "rivals.json"}
OUT_OF_REACH = (
    "the source data set itself: delete the rows there too",
    "backups, copies and logs of the run folder, and copies of released models",
    "old blocks of the disk: removed files may be recovered until they are overwritten",
)


@dataclass(frozen=True)
class Holding:
    """Something that still holds deleted rows.

    Attributes:
        path: relative to the run folder.
        what: in words.
    """

    path: str
    what: str


@dataclass(frozen=True)
class PurgePlan:
    """What a purge removes.

    Attributes:
        removes: files and folders.
        keeps: checkpoints that know deleted rows and are still within retention.
        unknown: names in the run folder that this tool did not write; look at them yourself.
        out_of_reach: what no purge of this folder can remove.
    """

    removes: tuple[Holding, ...]
    keeps: tuple[Holding, ...]
    unknown: tuple[str, ...]
    out_of_reach: tuple[str, ...] = OUT_OF_REACH


def plan_purge(desk: Desk) -> PurgePlan:
    """List what a purge would remove; nothing is changed."""
    state = desk.state()
    if not any(state.batches[k].removed or state.batches[k].relabelled for k in state.stack):
        return PurgePlan((), (), ())
    removes = [*_in_run(desk.run.folder), *_in_batches(desk.run.folder, state)]
    keeps: list[Holding] = []
    for item, since in _checkpoints(desk, state):
        old = since is None or desk.clock() >= since + timedelta(days=desk.run.recipe.requests.retention_days)
        (removes if old else keeps).append(item)
    unknown = sorted(
        path.name
        for path in desk.run.folder.iterdir()
        if path.name not in KEPT and not any(path.match(pattern) for pattern in HOLDING)
    )
    return PurgePlan(tuple(removes), tuple(keeps), tuple(unknown))


def purge(desk: Desk, *, destroy_key: bool = False, wait: float = 0.0) -> PurgePlan:
    """Remove what :func:`plan_purge` lists, between two events; return the plan.

    Args:
        desk: the desk.
        destroy_key: also destroy the row key. The ledger then names rows that nobody can match any more, and takes no
            further requests.
        wait: seconds to wait for another process.

    Raises:
        InputError: the key is to be destroyed, and deleted rows are still in the source data (without the key nothing
            would keep them out of the next training), or a batch is held.
        FolderError: something can not be removed.
        LockedError: another process works.
    """
    with at_work(desk, wait, row_key=False):
        state = desk.state()
        if state.held is not None:
            raise InputError(f"batch {state.held.number} is held; approve or refuse it first")
        if destroy_key and state.key is not None:
            left = [code for code in state.deleted() if code in desk.id_of]
            if left:
                raise InputError(
                    f"{len(left)} deleted rows are still in the source data; delete them there first: without the row "
                    "key nothing would keep them out of the next training"
                )
            if state.queue:
                raise InputError(f"{len(state.queue)} requests wait; answer them before the row key is destroyed")
            due = [k for k in state.stack if state.batches[k].verify_by is not None]
            if due:
                raise InputError(
                    f"batch {due[0]} is released provisionally; verify it first: `unlearn request process --verify-now`"
                )
        plan = plan_purge(desk)
        if plan.removes:
            desk.record("purging", {"paths": [item.path for item in plan.removes]})
            desk.fault("purging")
            finish_purge(desk)
        if destroy_key and state.key is not None:
            desk.record("key", {"key": None})
            desk.fault("key given up")
            finish_key(desk)
    return plan


def _in_run(run: Path) -> Iterator[Holding]:
    for pattern, what in HOLDING.items():
        for path in sorted(run.glob(pattern)):
            yield Holding(path.relative_to(run).as_posix(), what)


def _in_batches(run: Path, state: State) -> Iterator[Holding]:
    """Yield what lies beside the checkpoints of batches; the released model's own snapshots never saw deleted rows."""
    for batch in state.batches.values():
        folder = batch_folder(run, batch.number)
        released = batch.number == state.current
        for pattern in ("references", *(() if released else ("snapshots", "trajectory.safetensors"))):
            if (folder / pattern).exists():
                yield Holding((folder / pattern).relative_to(run).as_posix(), HOLDING[pattern])
    for folder in factors_knowing_deleted(run, state):
        yield Holding(folder.relative_to(run).as_posix(), HOLDING["curvature"])


def _checkpoints(desk: Desk, state: State) -> Iterator[tuple[Holding, datetime | None]]:
    """Yield every checkpoint but the released one, and since when it is not released (None: it never was)."""
    run = desk.run.folder
    times = [
        (event.body["batch"], datetime.fromisoformat(event.time.replace("Z", "+00:00")))
        for event in desk.ledger.events()
        if event.kind == "released" and state.batches[event.body["batch"]].method != "nothing"
    ]
    for number in (ORIGINAL, *state.batches):
        path = model_path(run, number)
        if number == state.current or not path.exists():
            continue
        was = number == ORIGINAL or any(k == number for k, _ in times)
        later = [time for k, time in times if k > number]
        name = "the original" if number == ORIGINAL else f"the model of batch {number}"
        item = Holding(path.relative_to(run).as_posix(), f"{name}, which knows deleted rows")
        yield item, min(later) if was and later else None
