"""Kills at random moments: is what is left after a restart what an undisturbed run leaves?"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.requests.stories import STORIES, Clock, forked, in_child, own_copy, remains, tell, trained_run
from benchmarks.setting import Bars
from unlearn.requests import audit, audit_passes, make_keys
from unlearn.requests.desk import nothing


def random_kills(count: int = 200, seed: int = 0) -> dict[str, Counter[str]]:
    """Tell stories, each killed once or twice at random moments and started again; count what came out, by story."""
    place = Path(tempfile.mkdtemp(prefix="unlearn-faults-"))
    keys, clock, draw = make_keys(place / "keys"), Clock(), random.Random(seed)
    trained = trained_run(place / "trained")
    expected, seconds = {}, {}
    for k, (name, (changed, steps)) in enumerate(STORIES.items()):
        calm = own_copy(trained, place / f"calm-{k}", keys, changed)
        begun = time.monotonic()
        in_child(partial(tell, calm, clock, steps, nothing))
        seconds[name] = time.monotonic() - begun
        expected[name] = remains(calm)
    found = {name: Counter[str]() for name in STORIES}
    for k in range(count):
        name = list(STORIES)[k % len(STORIES)]
        changed, steps = STORIES[name]
        folder = own_copy(trained, place / f"run-{k}", keys, changed)
        told = partial(tell, folder, clock, steps, nothing)
        for _ in range(1 + k % 2):
            found[name]["kills" if _killed(told, draw, seconds[name]) else "ended before the kill"] += 1
        status = in_child(told)
        found[name]["runs"] += 1
        found[name]["restart failed"] += status != 0
        found[name]["audit says no"] += not audit_passes(audit(folder))
        left = remains(folder)
        found[name]["other events"] += left["events"] != expected[name]["events"]
        found[name]["other files"] += left != expected[name]
        shutil.rmtree(folder)
    shutil.rmtree(place)
    return found


def _killed(work: Callable[[], object], draw: random.Random, seconds: float) -> bool:
    """Do it in a child and kill it after a random time; whether it was still alive then."""
    child = forked(work)
    time.sleep(draw.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def faults(count: int = 200) -> None:
    """Print the table."""
    found = random_kills(count)
    wrong = ("restart failed", "audit says no", "other events", "other files")
    columns = ("runs", "kills", "ended before the kill", *wrong)
    print(f"\n### {count} runs killed with SIGKILL at random moments, and started again\n")
    print(f"| story | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, row in found.items():
        print(f"| {name} | {' | '.join(str(row[column]) for column in columns)} |")
    bars = Bars()
    bars.hold(
        "kills that hit a living process", sum(row["kills"] for row in found.values()), 0.5 * count, at_least=True
    )
    for name in wrong:
        bars.hold(f"runs with: {name}", float(sum(row[name] for row in found.values())), 0.0)
    print(bars)
