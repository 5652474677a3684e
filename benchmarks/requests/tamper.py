"""Changes of single bytes: does the audit find and name each?"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.requests.stories import STORIES, Clock, own_copy, tell, trained_run
from benchmarks.setting import Bars
from unlearn.errors import UnlearnError
from unlearn.requests import Desk, audit, audit_passes, make_keys
from unlearn.requests.audit import ledger_flaw
from unlearn.requests.desk import nothing
from unlearn.requests.events import Event
from unlearn.requests.heads import read_head
from unlearn.requests.named_files import NamedFile, named_files

SMALL = 16_384


def finished_run(place: Path, story: str) -> tuple[Path, Clock]:
    """Return a run on which a story was told."""
    clock, (changed, steps) = Clock(), STORIES[story]
    folder = own_copy(trained_run(place / "trained"), place / "run", make_keys(place / "keys"), changed)
    tell(folder, clock, steps, nothing)
    return folder, clock


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


def missed_in_file(item: NamedFile, positions: list[int]) -> int:
    """Change bytes of a file one at a time; return how many changes its check does not find and name."""
    data, missed = item.path.read_bytes(), 0
    for at in positions:
        item.path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            item.check()
            missed += 1
        except UnlearnError as error:
            missed += item.what not in str(error)
    item.path.write_bytes(data)
    return missed


def tamper(story: str = "held, refused, retrained, held, approved", most: int = 2000) -> None:
    """Print the table."""
    place = Path(tempfile.mkdtemp(prefix="unlearn-tamper-"))
    folder, clock = finished_run(place, story)
    with Desk.open(folder, who="auditor", clock=clock) as desk:
        state = desk.state()
        events = [tuple(vars(event)[name] for name in Event.__dataclass_fields__) for event in desk.ledger.events()]
        registered: list[tuple[object, ...]] = list(desk.ledger.requests())
    draw, bars = random.Random(0), Bars()
    print(
        "\n### Single bytes changed\n\n| what | files or rows | bytes changed | not found or not named |\n"
        "|---|---|---|---|"
    )
    tried, missed = missed_in_ledger(events, registered)
    print(f"| rows of the ledger, every byte | {len(events) + len(registered)} | {tried} | {missed} |")
    total = missed
    kinds: dict[str, list[int]] = {}
    for item in named_files(folder, state):
        size = item.path.stat().st_size
        positions = list(range(size)) if size <= SMALL else [draw.randrange(size) for _ in range(most)]
        kind = f"{item.what.split(' of ')[0]} ({item.path.suffix}), {'every byte' if size <= SMALL else 'random bytes'}"
        row = kinds.setdefault(kind, [0, 0, 0])
        row[0], row[1], row[2] = row[0] + 1, row[1] + len(positions), row[2] + missed_in_file(item, positions)
    heads = sorted((folder / "requests" / "heads").glob("*.json"))
    for path in heads:
        data = path.read_bytes()
        row = kinds.setdefault("the heads (.json), every byte", [0, 0, 0])
        row[0], row[1] = row[0] + 1, row[1] + len(data)
        for at in range(len(data)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            try:
                facts = read_head(path)
                row[2] += facts == read_head(path)
            except UnlearnError as error:
                row[2] += str(path) not in str(error)
        path.write_bytes(data)
    for kind, row in kinds.items():
        print(f"| {kind} | {row[0]} | {row[1]} | {row[2]} |")
        total += row[2]
    bars.hold("changes of single bytes not found or not named", float(total), 0.0)
    bars.hold("audit of the restored run passes", float(audit_passes(audit(folder))), 1.0, at_least=True)
    print(bars)
    shutil.rmtree(place)
