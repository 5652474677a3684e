"""``unlearn request``: deletion requests, from a letter to a certificate."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from unlearn.cli.request_options import by_option, keys_option, model_name, open_desk, print_checks, reason_option
from unlearn.cli.shared import json_option, print_json, print_table, print_wrapped, run_argument

if TYPE_CHECKING:
    from unlearn.requests import Request


@click.group()
def request() -> None:
    """Take deletion requests, answer them, and keep a record for auditors.

    \b
    Example:
        unlearn request keygen ~/unlearn-keys
        export UNLEARN_KEYS=~/unlearn-keys
        unlearn request submit runs/digits --id digits-0007
        unlearn request process runs/digits
        unlearn request audit runs/digits
    """


@request.command()
@click.argument("folder", type=click.Path())
def keygen(folder: str) -> None:
    """Make a key folder: a row key, a signing key, and its public key.

    Keep it outside the run and outside any repository, and keep a copy. The row
    key turns names into codes; the signing key signs heads and certificates.

    \b
    Example: unlearn request keygen ~/unlearn-keys
    """
    from unlearn.requests import make_keys, shown

    keys = make_keys(folder)
    click.echo(f"keys (mode 0600): {shown(str(keys.folder), 400)}")
    click.echo(f"row key {keys.fingerprint}; public key:")
    click.echo(keys.public)


@request.command()
@run_argument
@click.option("--id", "ids", multiple=True, help="A row id; may be given again.")
@click.option("--subject", "subjects", multiple=True, metavar="COLUMN=VALUE", help="All rows of a subject.")
@click.option("--hash", "hashes", multiple=True, help="Content hash of a row.")
@click.option("--file", type=click.Path(), help="CSV with id, subject or hash (and label), or one id a line.")
@click.option("--subjects", "subject_file", type=click.Path(), help="CSV with id and a subject column.")
@click.option("--action", default="remove", help="remove (the default) or relabel.")
@click.option("--label", type=float, help="The new label, for relabel.")
@reason_option
@click.option("--received", metavar="DATE", help="When the letter came; today if not given.")
@click.option("--due", metavar="DATE", help="When it must be answered; 30 days later if not given.")
@by_option
@keys_option
@json_option
def submit(run_folder: str, who: str | None, keys: str | None, as_json: bool, **options: Any) -> None:
    """Write a request down.

    The same request twice is one request. What is not in the training data is
    noted as not held. Names are kept as codes (HMAC) only.

    \b
    Example: unlearn request submit runs/digits --subject customer=8841 \\
               --subjects customers.csv --reason "letter of 1 March"
    """
    from unlearn.requests import submit as submit_request

    label = options.pop("label")
    label = int(label) if label is not None and label.is_integer() else label
    options["reason"] = options["reason"] or None
    with open_desk(run_folder, keys=keys, who=who, create=True) as desk:
        done = submit_request(desk, label=label, **options)
    if as_json:
        print_json({"request": done.request.name, "new": done.new, **_facts(done.request, desk.today)})
        return
    click.echo(f"{done.request.name}: {'written down' if done.new else 'this request is there already'}")
    _print_request(done.request, desk.today)


@request.command(name="list")
@run_argument
@click.option("--open", "only_open", is_flag=True, help="Only what is not answered.")
@json_option
def list_(run_folder: str, only_open: bool, as_json: bool) -> None:
    """List requests with their dates; overdue ones are marked.

    \b
    Example: unlearn request list runs/digits --open
    """
    with open_desk(run_folder) as desk:
        found, today = list(desk.state().requests.values()), desk.today
    if only_open:
        found = [item for item in found if item.status not in ("released", "not held", "cancelled")]
    if as_json:
        print_json({"requests": [{"request": item.name, **_facts(item, today)} for item in found]})
        return
    rows = [
        [item.name, item.action, len(item.rows), len(item.not_held), item.received, item.due, _status(item, today)]
        for item in found
    ]
    columns = ["request", "action", "rows", "absent", "received", "due", "status"]
    print_table(f"{len(found)} requests", columns, rows)


@request.command()
@run_argument
@click.argument("number", metavar="REQUEST")
@json_option
def show(run_folder: str, number: str, as_json: bool) -> None:
    """Show a request and its events.

    \b
    Example: unlearn request show runs/digits R-0001
    """
    from unlearn.requests import request_number, shown

    with open_desk(run_folder) as desk:
        item = desk.state().request(request_number(number))
        events = [
            event
            for event in desk.ledger.events()
            if event.request == item.number
            or item.number in event.body.get("requests", ())
            or (item.batch is not None and event.request is None and event.body.get("batch") == item.batch)
        ]
    if as_json:
        print_json({"request": item.name, **_facts(item, desk.today), "events": [e.to_dict() for e in events]})
        return
    click.echo(item.name)
    _print_request(item, desk.today)
    rows = [[event.number, event.time, shown(event.who, 18), event.kind, event.hash[:12]] for event in events]
    print_table("events", ["event", "time (UTC)", "who", "what", "hash"], rows)


@request.command()
@run_argument
@json_option
def status(run_folder: str, as_json: bool) -> None:
    """Say where everything stands: requests, released model, ledger.

    \b
    Example: unlearn request status runs/digits
    """
    with open_desk(run_folder) as desk:
        state, today = desk.state(), desk.today
    counts = Counter(item.status for item in state.requests.values())
    overdue = [item.name for item in state.requests.values() if item.overdue(today)]
    facts = {
        "requests": dict(counts),
        "overdue": overdue,
        "released_batch": state.current,
        "waits_for_a_person": None if state.held is None else state.held.number,
        "unfinished_batch": None if state.unfinished is None else state.unfinished.number,
        "drift": state.drift(),
        "events": state.count,
        "head": state.head,
    }
    if as_json:
        print_json(facts)
        return
    listing = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
    print_wrapped(f"requests: {listing}")
    if overdue:
        print_wrapped(f"overdue: {', '.join(overdue[:20])}{' ...' if len(overdue) > 20 else ''}")
    click.echo(f"released model: {model_name(state.current)}")
    if state.held is not None:
        click.echo(f"batch {state.held.number} waits for `approve` or `refuse`")
    if state.unfinished is not None:
        click.echo(f"batch {state.unfinished.number} is not finished: `process` goes on with it")
    click.echo(f"drift since the last training: {state.drift():.3g} nats")
    click.echo(f"ledger: {state.count} events, head {state.head[:16]}...")


@request.command()
@run_argument
@click.argument("number", metavar="REQUEST")
@reason_option
@by_option
@keys_option
def cancel(run_folder: str, number: str, reason: str, who: str | None, keys: str | None) -> None:
    """Close a waiting request: withdrawn, or not granted.

    \b
    Example: unlearn request cancel runs/digits R-0003 --reason "withdrawn"
    """
    from unlearn.requests import cancel as cancel_request
    from unlearn.requests import request_number

    with open_desk(run_folder, keys=keys, who=who) as desk:
        item = cancel_request(desk, request_number(number), reason=reason)
    click.echo(f"{item.name}: cancelled")


@request.command()
@run_argument
@click.option("--head", type=click.Path(), help="A head that was kept elsewhere.")
@click.option("--public-key", type=click.Path(), help="The signing.pub that must have signed.")
@json_option
def audit(run_folder: str, head: str | None, public_key: str | None, as_json: bool) -> None:
    """Check ledger, heads, checkpoints and certificates; needs no key.

    Exits with 1 when something does not hold, and names it. Without --head, a
    ledger that was cut off or wholly rewritten can not be found out.

    \b
    Example: unlearn request audit runs/digits --head kept/head-000042.json
    """
    from unlearn.requests import audit as audit_run
    from unlearn.requests import audit_passes, read_public_key

    checks = audit_run(run_folder, head=head, public_key=None if public_key is None else read_public_key(public_key))
    holds = audit_passes(checks)
    if as_json:
        print_json({"holds": holds, "checks": [vars(check) for check in checks]})
    else:
        print_checks(checks)
        click.echo("Nothing speaks against it." if holds else "The audit says no.")
    click.get_current_context().exit(0 if holds else 1)


@request.command()
@run_argument
@click.option("--head", type=click.Path(), help="Write the signed head of the ledger to this file.")
@click.option("--csv", "table", type=click.Path(), help="Write the requests to this CSV.")
@click.option("--events", type=click.Path(), help="Write all events to this file, one JSON a line.")
@keys_option
def export(run_folder: str, head: str | None, table: str | None, events: str | None, keys: str | None) -> None:
    """Write the signed head, the requests, or all events to a file.

    Keep heads where nobody who can write to the run can write. Exports hold
    codes, dates and operators' names.

    \b
    Example: unlearn request export runs/digits --head kept/head.json
    """
    from unlearn.errors import InputError
    from unlearn.requests import export_events, export_head, export_requests, shown

    if not (head or table or events):
        raise InputError("nothing to export is named; give --head, --csv or --events with a file")
    with open_desk(run_folder, keys=keys) as desk:
        if head:
            click.echo(f"head: {shown(str(export_head(desk, head)), 400)}")
            if desk.keys is None or desk.keys.signing is None:
                click.echo("it is not signed: give --keys with a signing key", err=True)
        if table:
            click.echo(f"requests: {export_requests(desk, table)} written")
        if events:
            click.echo(f"events: {export_events(desk, events)} written")


def _status(item: Request, today: str) -> str:
    return item.status + (" OVERDUE" if item.overdue(today) else "")


def _facts(item: Request, today: str) -> dict[str, Any]:
    return {
        "action": item.action,
        "rows": [{"row": code, "label": label} for code, label in item.rows.items()],
        "not_held": [{"kind": kind, "code": code} for kind, code in item.not_held],
        "received": item.received,
        "due": item.due,
        "overdue": item.overdue(today),
        "status": item.status,
        "batch": item.batch,
        "times": item.times,
    }


def _print_request(item: Request, today: str) -> None:
    print_wrapped(
        f"{item.action} of {len(item.rows)} rows, {len(item.not_held)} named but not held; received {item.received}, "
        f"due {item.due}; {_status(item, today)}" + (f"; came in {item.times} times" if item.times > 1 else "")
    )
