"""Exports for other programs: the requests as CSV, the events as JSON lines."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from unlearn.atomic import write_atomically
from unlearn.requests.desk import Desk
from unlearn.requests.shown import spreadsheet_cell

COLUMNS = ("request", "action", "rows", "not_held", "received", "due", "status", "overdue", "batch", "came_in", "by")


def export_requests(desk: Desk, path: str | Path) -> int:
    """Write a CSV with one line for each request; text that would start a formula is quoted. Return the number.

    Raises:
        FolderError: the file can not be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    by = {event.request: event.who for event in desk.ledger.events() if event.kind == "submitted"}
    found = desk.state().requests.values()
    for item in found:
        cells = (item.name, item.action, len(item.rows), len(item.not_held), item.received, item.due, item.status)
        more = ("yes" if item.overdue(desk.today) else "no", item.batch or "", item.times, by[item.number])
        writer.writerow([spreadsheet_cell(str(cell)) for cell in (*cells, *more)])
    write_atomically(path, text.getvalue().encode())
    return len(found)


def export_events(desk: Desk, path: str | Path) -> int:
    """Write every event as one line of JSON (ASCII only); return their number.

    Raises:
        FolderError: the file can not be written.
    """
    events = desk.ledger.events()
    write_atomically(path, "".join(json.dumps(event.to_dict()) + "\n" for event in events).encode())
    return len(events)
