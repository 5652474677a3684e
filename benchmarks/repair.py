"""Repairs and rivals by cost, with the bars: ``python -m benchmarks.repair RECIPE [--rows N] [--facts FILE]``.

The figures are those of ``unlearn benchmark repair``; ``--facts`` prints from a repair.json that it wrote. A bar holds
our edit at a budget against the whole frontier of a rival: the best value of any setting whose cost is at most the
least of 0.5, 1, 2, 3, 5 epochs that is not below the edit's own cost (10 % slack), known only with the retrain at hand.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.setting import Bars, threads
from unlearn.pipeline.frontier import SHOWN, SLACK, benchmark_repair
from unlearn.recipe import load_recipe

WITH_SNAPSHOTS = ("fine-tune", "compressed retrain", "replay")
FINAL_WEIGHTS = ("fine-tune", "compressed retrain")
BARRED = ("KL", "phi error / spread")


def tables(facts: Mapping[str, Any]) -> str:
    """Return every table of the facts as Markdown."""
    lines = ["\n### Our edits\n", *_head("cost, own + shared", "how")]
    for row in [facts["unedited"], *facts["ours"]]:
        cost = f"{row['cost']:.2f} + {row['whole_cost'] - row['cost']:.2f}"
        name = ", ".join(word for word in (row["method"], row["settings"][0]) if word)
        lines.append(_line(name, row, cost, row["how"]))
    for level in facts["levels"]:
        for kind, title in (("chosen", "settings chosen on the other seeds"), ("oracle", "an oracle's best of each")):
            if level[kind]:
                lines += [f"\n### At most {level['cost']:g} epochs: {title}\n", *_head("cost", "setting of each seed")]
            for row in level[kind]:
                cost = "" if row["cost"] is None else f"{row['cost']:.2f}"
                lines.append(_line(row["method"], row, cost, "; ".join(dict.fromkeys(row["settings"]))))
    lines += [f"\n{name}: {count} runs diverged and count as nothing." for name, count in facts["failed"].items()]
    return "\n".join(lines)


def bars(facts: Mapping[str, Any]) -> Bars:
    """Return each of our edits against the frontiers of its rivals."""
    found = Bars()
    for row in facts["ours"]:
        level = next((level for level in facts["levels"] if row["cost"] <= SLACK * level["cost"]), None)
        alone = row["method"] != "ours"
        if level is None:
            found.lines.append(
                f"| {row['method']}, {row['settings'][0]} | costs {row['cost']:.2f} | | dearer than all |"
            )
            continue
        for rival in level["oracle"]:
            if rival["method"] in (FINAL_WEIGHTS if alone else WITH_SNAPSHOTS):
                for name in BARRED:
                    what = f"{row['method']}, {row['settings'][0]} (cost {row['cost']:.2f}): {name} below"
                    what += f" {rival['method']} of at most {level['cost']:g}"
                    found.hold(what, row[name]["mean"], rival[name]["mean"])
    return found


def _head(*last: str) -> list[str]:
    columns = ["", *SHOWN, *last]
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]


def _line(name: str, row: Mapping[str, Any], *last: str) -> str:
    cells = [f"{row[measure]['mean']:.3g} ({row[measure]['worst']:.3g})" for measure in SHOWN]
    return "| " + " | ".join([name, *cells, *last]) + " |"


def main(words: list[str] | None = None) -> None:
    """Print tables and bars."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repair")
    parser.add_argument("recipe")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--facts", type=Path)
    asked = parser.parse_args(words)
    if asked.facts is not None:
        facts = json.loads(asked.facts.read_text())
    else:
        with tempfile.TemporaryDirectory() as folder:
            facts = benchmark_repair(load_recipe(asked.recipe), folder, rows=asked.rows)
    rows = f" --rows {facts['changed'][0]}" if facts["which"].startswith("known") else ""
    floor = sum(f["floor"] for f in facts["floors"]) / len(facts["floors"])
    what = f"{facts['action']} {facts['changed']} of {facts['rows']} rows, {facts['which']}"
    print(f"# python -m benchmarks.repair {facts['recipe']}{rows}\n\n{threads()}; seeds {facts['seeds']}, mean (worst)")
    print(f"\n{what}; KL between retrains {floor:.3g}.")
    print(tables(facts))
    print(bars(facts))


if __name__ == "__main__":
    main()
