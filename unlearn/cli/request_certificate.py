"""``unlearn request certificate``: show and verify."""

from __future__ import annotations

import click

from unlearn.cli.request_options import print_checks, spelled_out
from unlearn.cli.shared import json_option, print_json, print_wrapped


@click.group()
def certificate() -> None:
    """Show a certificate, or check one."""


@certificate.command(name="show")
@click.argument("file", type=click.Path())
@json_option
def show_certificate(file: str, as_json: bool) -> None:
    """Show what a certificate says.

    \b
    Example: unlearn request certificate show R-0001-000012.json
    """
    from unlearn.requests import read_certificate

    facts = read_certificate(file)
    if as_json:
        print_json(facts)
        return
    verdict, audited = facts["verdict"], facts["membership_audit"]
    lines = [
        ("request", f"{facts['request']}: {facts['answer']}, {facts['answered']}"),
        ("asked", f"{facts['asked']['action']} of {len(facts['rows'])} rows held, {len(facts['not_held'])} not held"),
        ("dates", f"received {facts['asked']['received']}, due {facts['asked']['due']}"),
        ("method", str(facts["method"].get("method", facts["method"]["kind"]))),
        ("before", f"sha256 {facts['model']['before']['sha256']}"),
        ("after", f"sha256 {facts['model']['after']['sha256']}"),
        ("verdict", "none" if verdict is None else f"{verdict['kind']}: {verdict['outcome']}. {verdict['reason']}"),
        ("bound", facts["bound"]),
        ("membership audit", ". ".join(filter(None, (audited["outcome"], audited["reason"])))),
        ("ledger", f"event {facts['ledger']['position']}, hash {facts['ledger']['hash']}"),
        ("signed", "no" if facts["signature"] is None else f"by public key {facts['public_key']}"),
        *(("not proved", line) for line in facts["does_not_prove"]),
    ]
    for name, text in lines:
        print_wrapped(f"{name}: {spelled_out(str(text))}")


@certificate.command(name="verify")
@click.argument("file", type=click.Path())
@click.option("--run", "run_folder", type=click.Path(), help="The run folder; found around FILE if not given.")
@click.option("--public-key", type=click.Path(), help="The signing.pub that must have signed.")
@json_option
def verify_certificate(file: str, run_folder: str | None, public_key: str | None, as_json: bool) -> None:
    """Check form, signature, chain, record and digests of a certificate.

    Exits with 1 and names the first thing that does not hold.

    \b
    Example: unlearn request certificate verify R-0001-000012.json \\
               --run runs/digits --public-key signing.pub
    """
    from unlearn.requests import read_public_key
    from unlearn.requests import verify_certificate as check

    known = None if public_key is None else read_public_key(public_key)
    checks = check(file, run=run_folder, public_key=known)
    wrong = next((item for item in checks if item.ok is False), None)
    if as_json:
        print_json({"holds": wrong is None, "checks": [vars(item) for item in checks]})
    else:
        print_checks(checks)
        print_wrapped("It holds." if wrong is None else f"It does not hold: {wrong.name}: {spelled_out(wrong.detail)}")
    click.get_current_context().exit(0 if wrong is None else 1)
