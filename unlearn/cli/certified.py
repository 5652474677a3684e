"""What the commands print of certified removals."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

import click

from unlearn.cli.shared import print_json, print_table, print_wrapped

if TYPE_CHECKING:
    from unlearn.repair import Removal

BOUNDS = ("worst_case", "basic", "lipschitz", "by_row", "direct")


def print_certified_run(facts: dict[str, Any], as_json: bool) -> None:
    """Print a whole run: the head, the requests by size, the refusal, the account."""
    if as_json:
        print_json(facts)
        return
    trained, served = facts["trained"], facts["requests"]
    print_wrapped(
        f"trained on {trained['rows']} rows; test accuracy {trained['test_accuracy']:.4f}; residual budget "
        f"{trained['budget']:.4g} for epsilon {trained['epsilon']:g}, delta {trained['delta']:g}"
    )
    sizes = sorted({request["rows"] for request in served})
    rows = []
    for size in sizes:
        of_size = [request["bounds"] for request in served if request["rows"] == size]
        spent = median(request["residual"] for request in served if request["rows"] == size)
        rows.append([size, len(of_size), spent, *(median(bounds[name] for bounds in of_size) for name in BOUNDS)])
    if rows:
        click.echo()
        names = [name.replace("_", " ") for name in BOUNDS]
        print_table(
            "requests by size: median spent, and bounds on the first step", ["rows", "served", "spent", *names], rows
        )
    if facts["refusal"] is None:
        print_wrapped(f"all {len(served)} requests were served")
    else:
        print_wrapped(f"refused after {len(served)} requests: {facts['refusal']}")
    click.echo()
    _print_account(facts["now"])


def print_certified_removal(removal: Removal, facts: dict[str, Any], as_json: bool) -> None:
    """Print one removal and the account after it."""
    if as_json:
        print_json({**removal.to_dict(), "now": facts["now"]})
        return
    print_wrapped(
        f"removed {len(removal.ids)} rows: residual at most {removal.residual:.3g} (through norms: "
        f"{removal.bounds.lipschitz:.3g}; basic: {removal.bounds.basic:.3g})"
    )
    _print_account(facts["now"])


def _print_account(now: dict[str, Any]) -> None:
    print_wrapped(
        f"{now['removed']} rows removed, {now['rows']} left; test accuracy {now['test_accuracy']:.4f}; spent "
        f"{now['spent']:.4g} of {now['budget']:.4g}, left {now['left']:.3g}; epsilon spent {now['epsilon_spent']:.3g} "
        f"of {now['epsilon']:g}; weights within {now['weight_distance']:.3g} of those retrained with the same noise"
    )
    print_wrapped(now["statement"])
