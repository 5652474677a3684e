"""Changes of single bytes: does the audit find and name each?"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from benchmarks.requests.stories import STORIES, Clock, own_copy, tell, trained_run
from benchmarks.setting import Bars
from unlearn.errors import UnlearnError
from unlearn.requests import Desk, audit, audit_passes, make_keys
from unlearn.requests.audit import ledger_flaw
from unlearn.requests.desk import nothing
from unlearn.requests.events import Event
from unlearn.requests.heads import read_head
from unlearn.requests.named_files import named_files

SMALL = 16_384


def finished_run(place: Path, story: str) -> Path:
    """Return a run on which a story was told."""
    clock, (changed, steps) = Clock(), STORIES[story]
    folder = own_copy(trained_run(place / "trained"), place / "run", make_keys(place / "keys"), changed)
    tell(folder, clock, steps, nothing)
    return folder


def changed_rows(row: tuple[object, ...]) -> Iterator[tuple[object, ...]]:
    """Yield the row with each single byte of each field changed."""
    for at, value in enumerate(row):
        text = "" if value is None else str(value)
        others = [text[:k] + ("1" if text[k] == "0" else "0") + text[k + 1 :] for k in range(len(text))] or ["1"]
        for new in others:
            yield (*row[:at], int(new) if isinstance(value, int) or value is None else new, *row[at + 1 :])


def missed_in_ledger(events: list[tuple[object, ...]], registered: list[tuple[object, ...]]) -> tuple[int, int]:
    """Change every byte of every field of every row; return how many were changed and how many went unnoticed."""
    tried = missed = 0
    for rows, which in ((events, 0), (registered, 1)):
        for at, row in enumerate(rows):
            for new in changed_rows(row):
                both = [list(events), list(registered)]
                both[which][at] = new
                tried += 1
                flaw = ledger_flaw([Event(*one) for one in both[0]], both[1])  # type: ignore[arg-type]
                missed += flaw is None
    return tried, missed


def missed_in_file(path: Path, positions: Iterable[int], check: Callable[[], object], name: str) -> int:
    """Change bytes of a file one at a time; return how many changes the check does not find and name."""
    missed = 0
    with open(path, "r+b") as file:
        data = file.read()
        for at in positions:
            _put(file, at, data[at] ^ 1)
            try:
                check()
                missed += 1
            except UnlearnError as error:
                missed += name not in str(error)
            _put(file, at, data[at])
    return missed


def _put(file: BinaryIO, at: int, byte: int) -> None:
    file.seek(at)
    file.write(bytes([byte]))
    file.flush()


def missed_in_run(folder: Path, most: int, small: int = SMALL, seed: int = 0) -> dict[str, tuple[int, int, int]]:
    """Change single bytes of everything that a run's ledger names: all of small files, some of large ones.

    Returns:
        By kind of thing how many there are, how many bytes were changed, and how many changes went unnoticed or
        unnamed.
    """
    with Desk.open(folder, who="auditor") as desk:
        state = desk.state()
        events = [tuple(vars(event)[name] for name in Event.__dataclass_fields__) for event in desk.ledger.events()]
        registered: list[tuple[object, ...]] = list(desk.ledger.requests())
    found = {"rows of the ledger, every byte": (len(events) + len(registered), *missed_in_ledger(events, registered))}
    files: list[tuple[str, Path, Callable[[], object], str]] = [
        (item.what.partition(" of ")[0].partition(" fitted ")[0], item.path, item.check, item.what)
        for item in named_files(folder, state)
    ]
    for path in sorted((folder / "requests" / "heads").glob("*.json")):
        files.append(("the heads", path, partial(read_head, path), str(path)))
    draw = random.Random(seed)
    for what, path, check, name in files:
        size = path.stat().st_size
        whole = size <= small
        positions = range(size) if whole else [draw.randrange(size) for _ in range(most)]
        kind = f"{what} ({path.suffix}), {'every byte' if whole else 'random bytes'}"
        count, tried, missed = found.get(kind, (0, 0, 0))
        found[kind] = count + 1, tried + len(positions), missed + missed_in_file(path, positions, check, name)
    return found


def tamper(story: str = "held, refused, retrained, held, approved", most: int = 2000) -> None:
    """Print the table."""
    place = Path(tempfile.mkdtemp(prefix="unlearn-tamper-"))
    folder = finished_run(place, story)
    found, bars = missed_in_run(folder, most), Bars()
    print(
        "\n### Single bytes changed\n\n| what | files or rows | bytes changed | not found or not named |\n"
        "|---|---|---|---|"
    )
    for kind, (count, tried, missed) in found.items():
        print(f"| {kind} | {count} | {tried} | {missed} |")
    total = sum(missed for _, _, missed in found.values())
    bars.hold("changes of single bytes not found or not named", float(total), 0.0)
    bars.hold("audit of the restored run passes", float(audit_passes(audit(folder))), 1.0, at_least=True)
    print(bars)
    shutil.rmtree(place)
