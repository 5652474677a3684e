"""Stories told to a desk, step by step; each step can be taken again after the process was killed in it."""

from __future__ import annotations

import os
import shutil
import signal
import traceback
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from unlearn.atomic import write_atomically
from unlearn.pipeline import Run, run_stages
from unlearn.recipe import parse_recipe
from unlearn.requests import Desk, Keys, approve, process, purge, refuse, rollback, submit
from unlearn.requests.process import at_work

Step = Callable[[Desk], object]

RECIPE = """
name = "requests-tiny"
description = "A tiny run for tests and measurements of requests."
data.source = "digits"
model = { name = "mlp", options = { inputs = 64, classes = 10, widths = [16] } }
train = { epochs = 3, batch_size = 64 }
verify = { references = 2 }
repair = { budget = 1.0 }
requests = { release = "verified", drift_limit = 0.5 }
"""


class Clock:
    """A clock that only moves when told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now

    def pass_days(self, days: int) -> None:
        """Move it."""
        self.now += timedelta(days=days)


def trained_run(folder: Path, recipe: str = RECIPE) -> Path:
    """Train a run in a new folder."""
    run = Run.create(folder, parse_recipe(recipe))
    run_stages(run, until="train")
    return run.folder


def own_copy(trained: Path, folder: Path, keys: Keys, changed: dict[str, str]) -> Path:
    """Copy a trained run, with a changed recipe and a copy of the keys beside it."""
    shutil.copytree(trained, folder)
    shutil.copytree(keys.folder, keys_of(folder))
    write_recipe(folder, changed)
    return folder


def keys_of(folder: Path) -> Path:
    """Return the key folder of a run made by :func:`own_copy`."""
    return folder.with_name(folder.name + "-keys")


def remains(folder: Path) -> dict[str, object]:
    """Return every event and every file that a process leaves, and the names of the keys."""
    with Desk.open(folder, who="dpo") as desk:
        found: dict[str, object] = {"events": desk.ledger.events(), "requests": desk.ledger.requests()}
    found["keys"] = sorted(path.name for path in keys_of(folder).iterdir())
    skipped = ("ledger.sqlite", "lock", "progress", "killed")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(skipped):
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def asks(number: int, **options: object) -> Step:
    """Submit request ``number``, if it is not there."""

    def step(desk: Desk) -> None:
        if number > len(desk.state().requests):
            done = submit(desk, **options)  # type: ignore[arg-type]
            assert done.request.number == number

    return step


def on_held(word: Callable[..., object]) -> Step:
    """Approve or refuse what is held; where that was begun already, finish it."""

    def step(desk: Desk) -> None:
        state = desk.state()
        held = [request for request in state.requests.values() if request.status == "held"]
        if held and state.batches[held[0].batch or 0].stage in ("held", "closed"):
            word(desk, held[0].number, reason="seen by the officer")
        else:
            process_open(desk)

    return step


def back_to(batch: int) -> Step:
    """Roll back to a batch; where that was begun already, finish it."""

    def step(desk: Desk) -> None:
        if desk.state().current != batch:
            rollback(desk, batch, reason="outage", knows_deleted=True)
        else:
            process_open(desk)

    return step


def purge_with_key(desk: Desk) -> None:
    """Purge, and destroy the row key, after the deleted rows were taken out of the source data."""
    vars(desk.run)["data"] = desk.run.data.without([row for row in ids(0, 6)["ids"] if row in desk.run.data])
    purge(desk, destroy_key=True)


def process_open(desk: Desk) -> None:
    """Finish what is unfinished, and begin nothing."""
    with at_work(desk):
        pass


def ids(start: int, stop: int) -> dict[str, list[str]]:
    """Numbers of rows of the digits; four in five are in training, the others are not held."""
    return {"ids": [f"digits-{k:04d}" for k in range(start, stop)]}


# what the recipe says, and the steps; tolerances far off the usual force outcomes
STORIES: dict[str, tuple[dict[str, str], list[Step]]] = {
    "held, refused, retrained, held, approved": (
        {"references = 2": "references = 0"},
        [
            asks(1, **ids(0, 4)),
            asks(2, ids=["nobody"]),
            process,
            on_held(refuse),
            process,
            asks(3, **ids(6, 9), reason="moved away"),
            asks(4, **ids(20, 22), action="relabel", label=1),
            process,
            on_held(approve),
            asks(5, **ids(0, 2)),
            process,
        ],
    ),
    "verified, drift, rollback, purge, key": (
        {"references = 2": "references = 3, tolerance = 1000.0", "drift_limit = 0.5": "drift_limit = 1e-9"},
        [
            asks(1, **ids(0, 6)),
            process,
            back_to(0),
            process,
            purge,
            purge_with_key,
        ],
    ),
    "provisional, confirmed": (
        {"references = 2": "references = 3, tolerance = 1000.0", '"verified"': '"evidence", membership = 3'},
        [
            asks(1, **ids(0, 4)),
            process,
            on_held(approve),
            lambda desk: process(desk, verify_now=True),
        ],
    ),
    "provisional, failed": (
        {"references = 2": "references = 3, tolerance = 1e-6", '"verified"': '"evidence"'},
        [
            asks(1, **ids(0, 40)),
            process,
            lambda desk: process(desk, verify_now=True),
        ],
    ),
}


def write_recipe(folder: Path, changed: dict[str, str]) -> None:
    """Change what the recipe of a run says."""
    path = folder / "recipe.toml"
    text = path.read_text()
    for old, new in changed.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def tell(folder: Path, clock: Callable[[], object], steps: list[Step], fault: Callable[[str], None]) -> None:
    """Take the steps, from the one in which an earlier teller was killed."""
    progress = folder / "progress"
    done = int(progress.read_text()) if progress.exists() else 0
    for number, step in enumerate(steps[done:], done + 1):
        with Desk.open(folder, keys=keys_of(folder), who="dpo", clock=clock, fault=fault, create=True) as desk:  # type: ignore[arg-type]
            step(desk)
        write_atomically(progress, str(number).encode())


def forked(work: Callable[[], object]) -> int:
    """Begin it in a forked process; return the process."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def in_child(work: Callable[[], object]) -> int:
    """Do it in a forked process; return its exit status, negative for a signal."""
    _, status = os.waitpid(forked(work), 0)
    return os.waitstatus_to_exitcode(status)


def kill_self() -> None:
    """Die as by a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)
