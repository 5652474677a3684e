"""Many processes at once: four submit, two process."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.requests.stories import Clock, forked, trained_run, write_recipe
from benchmarks.setting import Bars
from unlearn.errors import InputError, LockedError
from unlearn.requests import Desk, Keys, approve, audit, audit_passes, make_keys, process, submit


def _submit(folder: Path, keys: Keys, first: int, count: int) -> None:
    with Desk.open(folder, keys=keys, who=f"desk {first}", clock=Clock(), create=True) as desk:
        rows = desk.run.data.ids
        for k in range(first, first + count):
            submit(desk, ids=[rows[k]], reason=f"letter {k}")


def _process(folder: Path, keys: Keys, total: int) -> None:
    while True:
        with Desk.open(folder, keys=keys, who=f"worker {os.getpid()}", clock=Clock(), create=True) as desk:
            with contextlib.suppress(LockedError):
                held = process(desk, wait=0.5).held
                if held is not None:  # the other worker may have been faster
                    with contextlib.suppress(InputError):
                        approve(desk, held.requests[0], reason="a large batch", wait=0.5)
            state = desk.state()
            if len(state.requests) == total and not state.queue and state.unfinished is state.held is None:
                return
        time.sleep(0.2)


def crowd(submitters: int = 4, each: int = 250, workers: int = 2) -> dict[str, float]:
    """Submit one row a request from several processes while others process; return what is in the ledger.

    A batch that is held is approved: hundreds of rows at once are no small edit, and its membership audit says so.
    """
    place = Path(tempfile.mkdtemp(prefix="unlearn-crowd-"))
    keys, folder = make_keys(place / "keys"), trained_run(place / "run")
    write_recipe(
        folder, {"references = 2": "references = 3, tolerance = 1000.0", "drift_limit = 0.5": "drift_limit = 1e9"}
    )
    Desk.open(folder, keys=keys, who="dpo", clock=Clock(), create=True).ledger.close()
    total = submitters * each
    children = [forked(partial(_submit, folder, keys, k * each, each)) for k in range(submitters)]
    children += [forked(partial(_process, folder, keys, total)) for _ in range(workers)]
    failed = sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)
    with Desk.open(folder, who="auditor") as desk:
        state = desk.state()
        who = {event.who for event in desk.ledger.events() if event.kind == "batch opened"}
    found = {
        "processes that failed": float(failed),
        "requests in the ledger": float(len(state.requests)),
        "requests released": float(sum(request.status == "released" for request in state.requests.values())),
        "rows removed": float(len(state.deleted())),
        "batches": float(len(state.batches)),
        "workers that opened a batch": float(len(who)),
        "audit passes": float(audit_passes(audit(folder))),
    }
    shutil.rmtree(place)
    return found


def concurrency(each: int = 250) -> None:
    """Print the table."""
    found, bars = crowd(each=each), Bars()
    print(f"\n### 4 processes submit {each} requests each, 2 process\n\n| | |\n|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:g} |")
    total = 4.0 * each
    for name in ("requests in the ledger", "requests released", "rows removed"):
        bars.hold(name, found[name], total, at_least=True)
    bars.hold("processes that failed", found["processes that failed"], 0.0)
    bars.hold("audit passes", found["audit passes"], 1.0, at_least=True)
    print(bars)
