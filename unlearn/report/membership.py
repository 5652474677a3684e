"""The membership audit as tables: which model gives its rows away, by which attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearn.report.wording import MISSING, finite

_KNOWN = {"learned": "learned the rows", "unlearned": "learned, unlearned"}


@dataclass(frozen=True)
class Found:
    """What attacks find of one model's rows.

    Attributes:
        model: its name.
        cells: true positive rate and its interval in percent, and AUC, for each attack; None where it was not made.
        outcome: of its audit.
        flags: rows flagged as still remembered and as over-forgotten.
        shadow: whether these are the shadow models, without outcome and flags.
    """

    model: Any
    cells: list[tuple[str, str, Any] | None]
    outcome: Any = None
    flags: tuple[Any, Any] = (None, None)
    shadow: bool = False


@dataclass(frozen=True)
class AttackTable:
    """All models on one group of rows.

    Attributes:
        group: all, or memorised.
        attacks: names of the columns.
        models: the edited model, those beside it, then shadow models whose past is known.
        false: false positive rate of each attack, in percent.
    """

    group: Any
    attacks: list[Any]
    models: list[Found]
    false: list[str]

    @property
    def whole(self) -> bool:
        """Whether these are all rows, to which outcome and flags belong."""
        return bool(self.group == "all")


def attack_tables(audit: Mapping[str, Any]) -> list[AttackTable]:
    """Arrange an audit as one table for each group of rows.

    >>> line = {"group": "all", "attack": "lira", "models": "audited", "tpr": 0.5, "lower": 0.4, "upper": 0.6}
    >>> (table,) = attack_tables({"outcome": "fail", "table": [{**line, "fpr": 0.01, "auc": 0.8}]})
    >>> table.models[0].model, table.models[0].cells, table.false
    ('edited', [('50 %', '40 to 60', 0.8)], ['1 %'])
    """
    lines = audit.get("table") or []
    beside = audit.get("beside") or []
    return [
        _table(group, [line for line in lines if line.get("group") == group], audit, beside)
        for group in dict.fromkeys(line.get("group") for line in lines)
    ]


def _table(group: Any, lines: list[Any], audit: Mapping[str, Any], beside: list[Any]) -> AttackTable:
    attacks = list(dict.fromkeys(line.get("attack") for line in lines))

    def cells(own: list[Any]) -> list[tuple[str, str, Any] | None]:
        by_attack = {line.get("attack"): line for line in own if line.get("group") == group}
        return [_cell(by_attack.get(attack)) for attack in attacks]

    def found(model: Any, own: list[Any], facts: Mapping[str, Any]) -> Found:
        return Found(model, cells(own), facts.get("outcome"), (facts.get("remembered"), facts.get("over_forgotten")))

    kinds = dict.fromkeys(line.get("models") for line in lines)
    by_kind = {kind: [line for line in lines if line.get("models") == kind] for kind in kinds}
    audited = by_kind.pop("audited", [])
    models = [found("edited", audited, audit)]
    models += [found(one.get("model"), one.get("table") or [], one) for one in beside]
    models += [Found(_KNOWN.get(kind, kind), cells(own), shadow=True) for kind, own in by_kind.items()]
    false = {line.get("attack"): line.get("fpr") for line in audited or lines}
    return AttackTable(group, attacks, models, [_percent(false.get(attack), " %") for attack in attacks])


def _cell(line: Mapping[str, Any] | None) -> tuple[str, str, Any] | None:
    if line is None:
        return None
    interval = f"{_percent(line.get('lower'))} to {_percent(line.get('upper'))}"
    return _percent(line.get("tpr"), " %"), interval, line.get("auc")


def _percent(share: object, unit: str = "") -> str:
    x = finite(share)
    return MISSING if x is None else f"{100 * x:.0f}{unit}"
