"""``unlearn request``: the commands that change which model is released."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from unlearn.cli.request_options import (
    by_option,
    keys_option,
    model_name,
    open_desk,
    reason_option,
    spelled_out,
    wait_option,
)
from unlearn.cli.shared import json_option, print_json, print_wrapped, run_argument

if TYPE_CHECKING:
    from unlearn.requests import State
    from unlearn.requests.purge import Holding


@click.command()
@run_argument
@click.option("--verify-now", is_flag=True, help="Verify provisional releases before they are due.")
@click.option("--retrain", is_flag=True, help="Train anew without all that was deleted, whether or not requests wait.")
@wait_option
@click.option("--device", help="Where to compute, as torch names it; the CPU if not given.")
@by_option
@keys_option
@json_option
def process(run_folder: str, verify_now: bool, retrain: bool, wait: float, as_json: bool, **options: Any) -> None:
    """Answer all waiting requests: edit, verify, release or hold, certify.

    It may be stopped at any moment and started again. Exits with 3 when a batch
    is held for `approve` or `refuse`.

    \b
    Example: unlearn request process runs/digits
    """
    from unlearn.requests import process as process_requests

    with open_desk(run_folder, **options) as desk:
        before = desk.state().count
        state = process_requests(desk, wait=wait, verify_now=verify_now, retrain=retrain)
        events = desk.ledger.events(before)
        worked = sorted({event.body["batch"] for event in events if "batch" in event.body})
        near = {k: state.batches[k].edited.get("near_duplicates") for k in worked}
    if as_json:
        print_json({"events": [event.to_dict() for event in events], "held": state.held is not None})
    for number in () if as_json else worked:
        _print_batch(state, number, near[number])
    if not worked and not as_json:
        click.echo("nothing waits")
    if state.held is not None:
        click.get_current_context().exit(3)


def _word(name: str, what: str) -> Any:
    """Return the command that approves or refuses."""

    @run_argument
    @click.argument("number", metavar="REQUEST")
    @reason_option
    @wait_option
    @by_option
    @keys_option
    def command(run_folder: str, number: str, reason: str, wait: float, **options: Any) -> None:
        from unlearn import requests

        act = requests.approve if name == "approve" else requests.refuse
        with open_desk(run_folder, **options) as desk:
            state = act(desk, requests.request_number(number), reason=reason, wait=wait)
        click.echo(f"{state.request(requests.request_number(number)).name}: {what}")
        click.echo(f"released model: {model_name(state.current)}")

    return command


approve = click.command(
    name="approve",
    help="""Release a held batch, whatever its verdict.

    All requests of the batch are released with it.

    \b
    Example: unlearn request approve runs/digits R-0003 --reason "seen"
    """,
)(_word("approve", "approved"))
refuse = click.command(
    name="refuse",
    help="""Do not release a held batch; its requests wait for a retrain.

    \b
    Example: unlearn request refuse runs/digits R-0003 --reason "undecided"
    """,
)(_word("refuse", "its edit is refused; the next `process` answers it by a retrain"))


@click.command()
@run_argument
@click.argument("batch", type=click.IntRange(min=0))
@click.option("--knows-deleted", is_flag=True, help="Say that the earlier model knows rows deleted since.")
@reason_option
@wait_option
@by_option
@keys_option
def rollback(run_folder: str, batch: int, knows_deleted: bool, reason: str, wait: float, **options: Any) -> None:
    """Release the model of an earlier BATCH again; 0 is the original.

    The requests that it does not answer wait again.

    \b
    Example: unlearn request rollback runs/digits 2 --reason "outage"
    """
    from unlearn.requests import rollback as roll_back

    with open_desk(run_folder, **options) as desk:
        state = roll_back(desk, batch, reason=reason, knows_deleted=knows_deleted, wait=wait)
    click.echo(f"released model: {model_name(state.current)}; {len(state.queue)} requests wait again")


@click.command()
@run_argument
@click.option("--yes", is_flag=True, help="Remove what is listed.")
@click.option("--destroy-key", is_flag=True, help="With --yes: destroy the row key; the ledger takes no more requests.")
@wait_option
@by_option
@keys_option
@json_option
def purge(run_folder: str, yes: bool, destroy_key: bool, wait: float, as_json: bool, **options: Any) -> None:
    """List what in the run still holds deleted rows, and with --yes remove it.

    Snapshots, curvature, scores, reports with images, references, and
    checkpoints past the recipe's retention; and what lies out of reach.

    \b
    Example: unlearn request purge runs/digits
             unlearn request purge runs/digits --yes
    """
    from unlearn.errors import InputError
    from unlearn.requests import plan_purge
    from unlearn.requests import purge as purge_run

    if destroy_key and not yes:
        raise InputError("--destroy-key destroys the row key for good; give --yes with it")
    with open_desk(run_folder, **options) as desk:
        plan = purge_run(desk, destroy_key=destroy_key, wait=wait) if yes else plan_purge(desk)
    if as_json:
        print_json({"removed": yes, **asdict(plan)})
        return
    _print_holdings("removed" if yes else "would be removed", plan.removes)
    _print_holdings("kept until its retention ends", plan.keeps)
    for name in plan.unknown:
        print_wrapped(f"not written by this tool, look yourself: {spelled_out(name)}")
    click.echo("out of reach:")
    for line in plan.out_of_reach:
        click.echo(click.wrap_text(line, width=80, initial_indent="  ", subsequent_indent="  "))
    if destroy_key:
        click.echo("the row key is destroyed")


def _print_holdings(title: str, items: Sequence[Holding]) -> None:
    click.echo(f"{title}: {len(items) or 'nothing'}")
    for item in items:
        click.echo(f"  {spelled_out(item.path)}")
        click.echo(f"    {item.what}")


def _print_batch(state: State, number: int, near: dict[str, Any] | None) -> None:
    batch = state.batches[number]
    verdict = f"; {batch.verdicts[-1]['kind']}: {batch.outcome}" if batch.verdicts else ""
    cost = batch.edited.get("answer", {}).get("cost", {}).get("total")
    price = "" if cost is None else f", {cost:.2f} training epochs"
    click.echo(f"batch {number}: {batch.method}{price}{verdict}; {batch.stage}")
    for name in batch.requests:
        click.echo(f"  {state.requests[name].name}: {state.requests[name].status}")
    if batch.verify_by is not None:
        click.echo(f"  provisional, full verification due {batch.verify_by}")
    if batch.stage == "held":
        click.echo("  it waits for `unlearn request approve` or `refuse`")
    if near and near["rows_left"]:
        print_wrapped(
            f"  {near['rows_left']} rows that are left look much like a removed one (cosine at least "
            f"{near['similarity']:g}); nobody asked for them"
        )
