"""The root command and its exit codes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import click

from unlearn.cli.audit import audit
from unlearn.cli.benchmark import benchmark
from unlearn.cli.checkpoint import checkpoint
from unlearn.cli.detect import detect
from unlearn.cli.explain import explain
from unlearn.cli.plan import plan
from unlearn.cli.ranked import heard_once, join_ranks
from unlearn.cli.recipe import recipe
from unlearn.cli.repair import repair
from unlearn.cli.request import request
from unlearn.cli.request_certificate import certificate
from unlearn.cli.request_work import approve, process, purge, refuse, rollback
from unlearn.cli.review import review
from unlearn.cli.train import train
from unlearn.cli.verify import verify
from unlearn.errors import UnlearnError, one_line
from unlearn.ranks import stop_ranks


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(package_name="unlearn")
def cli() -> None:
    """Find wrong training rows, edit them out of a trained model, verify the edit.

    \b
    The main job in one line:
        unlearn recipe run mnist5k-relabel
    and the same, stage by stage, after what it will cost:
        unlearn plan mnist5k-relabel
        unlearn train mnist5k-relabel --out runs/digits
        unlearn detect runs/digits
        unlearn review runs/digits
        unlearn repair apply runs/digits runs/digits/decisions.csv
        unlearn verify runs/digits

    Exit codes: 0 done, 1 a check said no, 2 bad input, 3 undecided, 4 internal
    error, 130 interrupted.
    """


for command in (recipe, plan, train, detect, explain, review, repair, verify, audit, checkpoint, request, benchmark):
    cli.add_command(command)

for command in (process, approve, refuse, rollback, purge, certificate):
    request.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; where torchrun started several ranks, as one of them."""
    say = heard_once()
    try:
        join_ranks(sys.argv[1:] if arguments is None else arguments)
        result = cli.main(args=arguments, prog_name="unlearn", standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        lines = shown.getvalue().splitlines()
        say("\n".join(line if line.isprintable() and len(line) < 200 else one_line(line, 200) for line in lines))
        code = 2
    except (click.Abort, KeyboardInterrupt) as error:
        say(str(error.__cause__ or error) or "interrupted")
        code = 130
    except UnlearnError as error:
        say(f"error: {one_line(error)}")
        code = 2
    except OSError as error:
        if error.filename is None:
            code = _internal(say)
        else:
            said = one_line(f"can not use {str(error.filename)[:200]!r}: {error.strerror}; check the path")
            say(f"error: {said}")
            code = 2
    except Exception:
        code = _internal(say)
    if code in (0, 1, 3):
        stop_ranks()
    sys.exit(code)


def _internal(say: Callable[[str], None]) -> int:
    """Print the error that is being handled, and return its exit code."""
    import traceback

    say(traceback.format_exc() + "internal error: please report the lines above")
    return 4
