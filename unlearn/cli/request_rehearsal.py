"""How a rehearsal of requests is run and printed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from unlearn.cli.request_options import print_checks, spelled_out
from unlearn.cli.shared import print_json, print_table, print_wrapped

if TYPE_CHECKING:
    from unlearn.pipeline import Run


def run_rehearsal(run: Run, as_json: bool) -> int:
    """Play the letters of a recipe, print what happened, and return the exit code: 1 if the audit says no."""
    from unlearn.requests import audit_passes, rehearsal_keys, rehearse

    keys = rehearsal_keys(os.environ.get("UNLEARN_KEYS"))

    def tell(day: int, what: str) -> None:
        if not as_json:
            print_wrapped(f"day {day:2}  {what}")

    done = rehearse(run, keys, tell=tell)
    holds = audit_passes(list(done.checks))
    if as_json:
        log = [{"day": day, "what": what} for day, what in done.log]
        print_json({"keys": str(keys.folder), "log": log, "audit": [vars(check) for check in done.checks]})
        return 0 if holds else 1
    click.echo()
    requests = list(done.state.requests.values())
    rows = [[r.name, r.action, len(r.rows), r.received, r.due, r.status, r.batch, r.times] for r in requests]
    columns = ["request", "action", "rows", "received", "due", "status", "batch", "times"]
    print_table(f"{len(requests)} requests, {done.state.count} events", columns, rows)
    print_checks(done.checks)
    click.echo("The audit passes." if holds else "The audit says no.")
    print_wrapped(f"keys of this rehearsal: {spelled_out(str(keys.folder))}")
    return 0 if holds else 1
