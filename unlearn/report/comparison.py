"""The table of models: which stands nearest to the retrain, on every group of rows and by every measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from unlearn.report.wording import finite, number

RETRAINS = ("coupled", "independent")
_ALIASES = {"phi error": "phi_error", "cosine of the logit change": "change_cosine"}
_LARGER_IS_NEARER = {
    "accuracy": None,
    "phi_error": False,
    "kl": False,
    "agreement": True,
    "change_cosine": True,
    "jensen_shannon": False,
    "cka": True,
    "loss": None,
    "phi": None,
    "calibration": None,
}
MAIN = tuple(_LARGER_IS_NEARER)[:5]


@dataclass(frozen=True)
class Cell:
    """One model by one measure.

    Attributes:
        value: as measured; None if it was not.
        ratio: value over the floor.
        nearest: whether no model that was not retrained is nearer to the retrain.
    """

    value: Any = None
    ratio: Any = None
    nearest: bool = False


@dataclass(frozen=True)
class GroupTable:
    """All models on one group of rows.

    Attributes:
        group: changed, kept, test or a user's own.
        measures: keys of the columns.
        models: (name, cells) of each model that was not retrained, cells in the order of the columns.
        retrains: (name, cells) of the retrains; only accuracy has values there.
        floors: the same measures between independent retrains.
        reference: which retrain the distances are to.
        nearest: (model, number of measures by which it is nearest), the most often nearest first.
    """

    group: Any
    measures: list[str]
    models: list[tuple[Any, list[Cell]]]
    retrains: list[tuple[Any, list[Cell]]]
    floors: list[Any]
    reference: Any
    nearest: list[tuple[Any, int]]

    @property
    def main(self) -> list[int]:
        """Columns of the measures that the verdict's reader looks at first."""
        return [k for k, measure in enumerate(self.measures) if measure in MAIN]

    @property
    def further(self) -> list[int]:
        """The other columns."""
        return [k for k, measure in enumerate(self.measures) if measure not in MAIN]


def group_tables(rows: Iterable[Mapping[str, Any]]) -> list[GroupTable]:
    """Arrange rows of :func:`unlearn.verification.measure` as one table for each group.

    Nearest is the smallest distance, the largest agreement, cosine or CKA, and of what a model has by itself (accuracy,
    loss, mean phi, calibration error) the value nearest to that of the coupled retrain (without one, to the mean of the
    independent ones). What reads the same is equally near. Measures of
    unknown direction have no nearest.

    >>> row = {"group": "test", "measure": "kl", "model": "edited", "value": 0.04, "floor": 0.03}
    >>> (table,) = group_tables([row, {**row, "model": "fine-tuned", "value": 0.01}])
    >>> [(model, cell.nearest) for model, (cell,) in table.models], table.floors, table.nearest
    ([('edited', False), ('fine-tuned', True)], [0.03], [('fine-tuned', 1)])
    """
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row.get("group"), []).append(row)
    return [_table(group, members) for group, members in groups.items()]


def _table(group: Any, rows: list[Mapping[str, Any]]) -> GroupTable:
    cells = {(row.get("model"), _measure(row)): Cell(row.get("value"), row.get("ratio")) for row in rows}
    floors: dict[Any, Any] = {}
    for row in rows:
        if row.get("floor") is not None:
            floors.setdefault(_measure(row), row["floor"])
    found = _once(measure for _, measure in cells)
    measures = [m for m in _LARGER_IS_NEARER if m in found] + [m for m in found if m not in _LARGER_IS_NEARER]
    models = _once(model for model, _ in cells)
    contenders = [m for m in ("unedited", "edited") if m in models]
    contenders += [m for m in models if m not in (*RETRAINS, "unedited", "edited")]
    wins = dict.fromkeys(contenders, 0)
    for measure in measures:
        for model in _nearest(measure, contenders, cells):
            cells[model, measure] = replace(cells[model, measure], nearest=True)
            wins[model] += 1

    def line(model: Any) -> tuple[Any, list[Cell]]:
        return model, [cells.get((model, measure), Cell()) for measure in measures]

    references = [row["reference"] for row in rows if row.get("reference") in RETRAINS]
    return GroupTable(
        group,
        measures,
        models=[line(model) for model in contenders],
        retrains=[line(model) for model in RETRAINS if model in models],
        floors=[floors.get(measure) for measure in measures],
        reference=references[0] if references else None,
        nearest=sorted(((m, count) for m, count in wins.items() if count), key=lambda pair: -pair[1]),
    )


def _nearest(measure: Any, contenders: list[Any], cells: Mapping[tuple[Any, Any], Cell]) -> list[Any]:
    values = {m: finite(cells.get((m, measure), Cell()).value) for m in contenders}
    known = {m: value for m, value in values.items() if value is not None}
    if measure in _LARGER_IS_NEARER and _LARGER_IS_NEARER[measure] is None:
        targets = (finite(cells.get((model, measure), Cell()).value) for model in RETRAINS)
        target = next((value for value in targets if value is not None), None)
        if target is None:
            return []
        known = {m: round(abs(value - target), 9) for m, value in known.items()}
    elif measure not in _LARGER_IS_NEARER:
        return []
    elif _LARGER_IS_NEARER[measure]:
        known = {m: -value for m, value in known.items()}
    best = min(known.values(), default=0.0)
    return [m for m, value in known.items() if number(value) == number(best)]


def _measure(row: Mapping[str, Any]) -> Any:
    return _ALIASES.get(row.get("measure", ""), row.get("measure"))


def _once(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))
