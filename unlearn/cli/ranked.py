"""A command as one of the ranks that torchrun started: one of them prints, and one says why the job ended."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

import click

from unlearn.ranks import ENDED, asked_for, only_one_process, ranks_agree, speaks, start_ranks, this_rank

RANKED = ("recipe", "train", "detect", "repair", "verify")


def join_ranks(arguments: Sequence[str]) -> None:
    """Join the other ranks where torchrun started several; all but the first are silent from here on.

    Raises:
        InputError: the command does not share its work out, or the ranks were started with other words.
    """
    if not asked_for():
        return
    signal.signal(signal.SIGTERM, _ended)
    start_ranks()
    if this_rank():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    ranks_agree("command line", "\0".join(arguments), "start all with the same words")
    if arguments and arguments[0] not in RANKED and not arguments[0].startswith("-"):
        only_one_process(f"`unlearn {arguments[0]}`")


def heard_once() -> Callable[[str], None]:
    """Return how to say why a command failed: only the first rank that fails is heard, for the others fail by it."""
    heard = sys.stderr

    def say(line: str) -> None:
        if asked_for():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it comes when the others end, and this rank ends already
        if speaks():
            click.echo(f"rank {this_rank()}: {line}" if this_rank() else line, file=heard)

    return say


def _ended(signum: int, frame: FrameType | None) -> None:
    """Torchrun ends the ranks that are left when one has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt(f"error: {ENDED}")
