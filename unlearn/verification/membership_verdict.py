"""What a membership audit says, and by which rule.

These attacks decide: ``lira`` and ``lira-offline`` (the model remembers), ``u-lira`` where models learned and
unlearned, and ``less-confident`` (the model forgot too much).

- **fail** if, on all rows or on the most memorised ones, the lower bound of an attack's true positive rate lies above
  the upper bound of its false positive rate (Clopper-Pearson, 95 %), or if single rows are flagged: two-sided p-values
  among models that never saw the row, with at most 5 % false discoveries (Benjamini-Hochberg).
- **pass** if on all rows the upper bounds are at most the tolerance, and ``lira`` finds models that did learn the rows:
  their true positive rate has its lower bound above the tolerance. Who could not find a memory can not say that there
  is none.
- **undecided** otherwise.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMAT = 1
TOLERANCE = 0.2
EXIT_CODES = {"pass": 0, "fail": 1, "undecided": 3}
DECIDING = ("lira", "u-lira", "lira-offline", "less-confident")


@dataclass(frozen=True)
class MembershipAudit:
    """What :func:`unlearn.membership_audit` found.

    Attributes:
        outcome: ``pass``, ``fail`` or ``undecided``.
        reason: one sentence.
        table: a row for each group (all, memorised), attack and kind of models with the keys ``group``, ``attack``,
            ``models`` (audited, learned, unlearned), ``auc``, ``tpr``, ``lower``, ``upper``, ``fpr``, ``fpr_upper``,
            ``rows``, ``never``. ``learned`` shows the attack's power, ``unlearned`` the method's other models.
        rows: for each row ``id``, ``label``, ``memorised``, ``phi``, ``never_mean``, ``never_std``, ``learned_mean``,
            ``learned_std``, ``p`` (two-sided, of :func:`unlearn.verification.likelihood_ratio.calibrated_p`), ``flag``
            (empty, ``still remembered`` or ``over-forgotten``), ``lira``, ``u_lira``, ``loss``, ``gradient_norm``,
            ``epsilon``.
        epsilon: by kind (learned, unlearned) the summary of the challenge's epsilon against models that never saw the
            rows: ``median``, ``mean``, ``largest``, ``at_cap``, ``quality``, ``models``, ``cap``, ``delta``,
            ``by_chance``.
        models: shadow models of each kind.
        fpr: false positive rate asked for.
        tolerance: largest true positive rate that passes.
        notes: what a reader should know.
        beside: the same attacks on other models, for each ``model`` (its name), ``outcome``, ``remembered`` and
            ``over_forgotten`` (numbers of flagged rows) and the audited lines of its ``table``.
    """

    outcome: str
    reason: str
    table: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    epsilon: dict[str, dict[str, Any]]
    models: dict[str, int]
    fpr: float
    tolerance: float
    notes: tuple[str, ...] = ()
    beside: tuple[dict[str, Any], ...] = ()

    @property
    def exit_code(self) -> int:
        """0 for pass, 1 for fail, 3 for undecided."""
        return EXIT_CODES[self.outcome]

    def flagged(self, flag: str) -> list[str]:
        """Return ids of the rows with this flag, ``still remembered`` or ``over-forgotten``, the farthest first."""
        return [row["id"] for row in sorted(self.rows, key=lambda row: row["p"]) if row["flag"] == flag]

    def summary(self) -> dict[str, Any]:
        """Return the outcome and the numbers of flagged rows."""
        return {
            "outcome": self.outcome,
            "remembered": len(self.flagged("still remembered")),
            "over_forgotten": len(self.flagged("over-forgotten")),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as a dictionary of plain values."""
        return {
            "format": FORMAT,
            **self.summary(),
            "reason": self.reason,
            "fpr": self.fpr,
            "tolerance": self.tolerance,
            "models": dict(self.models),
            "table": [dict(row) for row in self.table],
            "epsilon": {kind: dict(summary) for kind, summary in self.epsilon.items()},
            "rows": [dict(row) for row in self.rows],
            "notes": list(self.notes),
            "beside": [dict(one) for one in self.beside],
        }

    def to_json(self) -> str:
        """Return the audit as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        return "\n".join(textwrap.wrap(f"{self.outcome}: {self.reason}", 80))


def judge(
    table: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    epsilon: dict[str, dict[str, Any]],
    *,
    fpr: float,
    tolerance: float,
    models: dict[str, int],
) -> MembershipAudit:
    """Return the audit with its outcome, by the rule of this module."""
    outcome, reason = _decide(table, rows, tolerance)
    return MembershipAudit(outcome, reason, table, rows, epsilon, models, fpr, tolerance, _notes(table, models, fpr))


def _decide(table: list[dict[str, Any]], rows: list[dict[str, Any]], tolerance: float) -> tuple[str, str]:
    audited = [line for line in table if line["models"] == "audited" and line["attack"] in DECIDING]
    flags = Counter(row["flag"] for row in rows if row["flag"])
    found = [line for line in audited if line["lower"] > line["fpr_upper"]]
    if found:
        worst = max(found, key=lambda line: (line["group"] == "all", line["lower"]))
        said = {"less-confident": "over-forgotten"}.get(worst["attack"], "still remembered")
        return "fail", f"rows are {said}: {_rate(worst)}{_flagged(flags)}"
    if flags:
        return "fail", f"single rows stand out from models that never saw them{_flagged(flags)}"
    decisive = [line for line in audited if line["group"] == "all"]
    power = next(
        line for line in table if (line["group"], line["attack"], line["models"]) == ("all", "lira", "learned")
    )
    if power["lower"] <= tolerance:
        return "undecided", (
            f"the attack finds only {power['tpr']:.0%} of rows in models that did learn them "
            f"({power['lower']:.0%} to {power['upper']:.0%}), so finding none here says little"
        )
    wide = [line for line in decisive if line["upper"] > tolerance]
    if wide:
        worst = max(wide, key=lambda line: line["upper"])
        return "undecided", f"too few rows to say more: {_rate(worst)}, and the tolerance is {tolerance:.0%}"
    worst = max(decisive, key=lambda line: line["upper"])
    return "pass", (
        f"no attack tells the rows from unseen ones: {_rate(worst)}, within the tolerance {tolerance:.0%}; in models "
        f"that learned them lira finds {power['tpr']:.0%}"
    )


def _rate(line: Mapping[str, Any]) -> str:
    group = "" if line["group"] == "all" else "the most memorised "
    return (
        f"{line['attack']} finds {line['tpr']:.0%} of {group}{line['rows']} rows ({line['lower']:.0%} to "
        f"{line['upper']:.0%}) at {line['fpr']:.1%} false positives"
    )


def _flagged(flags: Mapping[str, int]) -> str:
    return "".join(f"; {count} flagged {flag}" for flag, count in sorted(flags.items()))


def _notes(table: list[dict[str, Any]], models: dict[str, int], fpr: float) -> tuple[str, ...]:
    notes = []
    never = table[0]["never"]
    if fpr * never < 1:
        notes.append(
            f"{never} scores of unseen rows can not show a false positive rate of {fpr:g}: the threshold lies above "
            "all of them; more shadow models or rows would"
        )
    if not models["unlearned"]:
        notes.append("no models learned and unlearned, so there is no U-LiRA and no epsilon of the method")
    return tuple(notes)
