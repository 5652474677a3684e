"""How evidence is printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from unlearn.cli.shared import cell, print_table, print_wrapped


def print_evidence(facts: Mapping[str, Any]) -> None:
    """Print evidence: beside held-out rows, the change foretold, what it reads."""
    if facts["against_held_out"]:
        print_table(
            "changed rows beside held-out rows of their kind (medians; auc 0.5: alike)",
            ["", "changed", "held-out", "auc", "bounds", "p"],
            [
                [
                    f"{row['quantity']}, {row['model']}",
                    row["changed"],
                    row["held_out"],
                    round(row["auc"], 2),
                    f"{row['lower']:.2f} to {row['upper']:.2f}",
                    f"{row['p']:.1g}",
                ]
                for row in facts["against_held_out"]
            ],
        )
    print_table(
        "change of logits, foretold by the curvature and actual (root mean squares)",
        ["rows", "foretold", "actual", "cosine", "slope"],
        [[row["group"], row["predicted"], row["actual"], row["cosine"], row["slope"]] for row in facts["prediction"]],
    )
    for note in facts["notes"]:
        print_wrapped(f"note: {note}")
    print_wrapped(f"evidence, never a verdict: {facts['reading'].upper()}. {facts['reason']}")
    click.echo(f"cost: {cell(facts['cost_epochs'])} training epochs; nothing was retrained for it")
