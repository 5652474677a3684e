"""What the commands of requests share: options, and how they print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from unlearn.cli.shared import print_wrapped

if TYPE_CHECKING:
    from unlearn.checkpoint import Check
    from unlearn.requests import Desk

keys_option = click.option(
    "--keys", envvar="UNLEARN_KEYS", type=click.Path(), help="Key folder; from UNLEARN_KEYS if not given."
)
by_option = click.option("--by", "who", help="Who does this; your login name if not given.")
reason_option = click.option("--reason", default="", help="Why; kept as a code only.")
wait_option = click.option(
    "--wait", type=click.FloatRange(min=0), default=0, help="Seconds to wait for another process."
)


def open_desk(run_folder: str, **options: Any) -> Desk:
    """Open the requests of a run."""
    from unlearn.requests import Desk

    return Desk.open(run_folder, **options)


def spelled_out(text: str) -> str:
    """Return a text with everything that does not print spelled out."""
    from unlearn.requests import shown

    return shown(text, 600)


def model_name(batch: int) -> str:
    """Return what the model of a batch is called."""
    return "the original" if batch == 0 else f"batch {batch}"


def print_checks(checks: Sequence[Check]) -> None:
    """Print checks, one a line."""
    words = {True: "holds", False: "DOES NOT HOLD", None: "-"}
    for check in checks:
        print_wrapped(f"{check.name:9} {words[check.ok]}: {spelled_out(check.detail)}")
