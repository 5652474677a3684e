"""The verdict: is an edited model as near to retrained models as they are to each other? (math.md, section 5).

On one group of rows r = distance(edited, references) / distance(reference, reference), where a distance is the root
mean square of differences of phi over rows and references (or pairs of references). References are independent
retrains; the coupled retrain shares the original's seed and would flatter the edit. An independent retrain has r = 1;
a model at the references' mean has r = 0.71. The upper 95 % bound of r must be within the tolerance on every group.

Its bounds are those of :mod:`unlearn.verification.ratio`.

Level: at r = tolerance at most one verdict in twenty should be a false pass. As far as a few hundred experiments can
tell, ``tests/verification/test_verdict.py`` holds it to that on simulated noise with K = 3, 5, 8 (a part of the
variance moving all rows of a retrain together), and ``tests/verification/test_level.py`` on retrained logistic
regressions.
``python -m benchmarks.verdict_level`` and ``python -m benchmarks.verdict_logistic`` show more, and the power. False
fails are more frequent where much of the noise is shared.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unlearn.errors import InputError
from unlearn.verification.ratio import Floats, Ratio, ratios_of
from unlearn.verification.row_table import RowTable

TOLERANCE = 1.5
EXIT_CODES = {"pass": 0, "fail": 1, "undecided": 3}
FORMAT = 1

_KEYS = ("group", "r", "lower", "upper", "rows", "references", "unedited_r", "unedited_lower", "unedited_upper")


@dataclass(frozen=True)
class GroupPhi:
    """Phi of three kinds of models on the rows of one group.

    Attributes:
        edited: phi of the edited model, (n,).
        unedited: phi of the model before the edit, (n,); None where there is none.
        references: phi of K independent retrains, (K, n).
    """

    edited: npt.ArrayLike
    unedited: npt.ArrayLike | None
    references: npt.ArrayLike


@dataclass(frozen=True)
class Verdict:
    """Outcome of :func:`decide`.

    Attributes:
        outcome: ``pass``, ``fail`` or ``undecided``.
        reason: one sentence.
        tolerance: what the upper bound of r was held against.
        table: a row for each group with the keys ``group``, ``r``, ``lower``, ``upper`` (one-sided 95 % bounds),
            ``rows``, ``references`` (their numbers), ``unedited_r``, ``unedited_lower``, ``unedited_upper``.
            What can not be measured is None.
        measures: rows of :func:`unlearn.verification.measure`, all models on all groups.
        notes: what a reader should know, such as why there is no coupled retrain.
        subgroups: rows of :func:`unlearn.verification.measure_subgroups`, in each group those made worse first.
        weights: rows of :func:`unlearn.verification.measure_weights`.
        cost: training epochs of the edit and of one retrain, and their ``ratio``; None where not known.
        remembered: rows that the edited model is surer of than retrains are, the surest of each group.
        more_references: how many more an undecided verdict asks for; None where no number is known to decide.
        rows: a :class:`unlearn.verification.RowTable` of each group, with every row; not part of the JSON.
    """

    outcome: str
    reason: str
    tolerance: float
    table: list[dict[str, Any]]
    measures: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    subgroups: tuple[dict[str, Any], ...] = ()
    weights: tuple[dict[str, Any], ...] = ()
    cost: Mapping[str, float | None] = field(default_factory=dict)
    remembered: tuple[dict[str, Any], ...] = ()
    more_references: int | None = None
    rows: Mapping[str, RowTable] = field(default_factory=dict, compare=False, repr=False)

    @property
    def exit_code(self) -> int:
        """0 for pass, 1 for fail, 3 for undecided."""
        return EXIT_CODES[self.outcome]

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as a dictionary of plain values."""
        return {
            "format": FORMAT,
            "outcome": self.outcome,
            "reason": self.reason,
            "tolerance": self.tolerance,
            "table": [dict(row) for row in self.table],
            "measures": [dict(row) for row in self.measures],
            "notes": list(self.notes),
            "subgroups": [dict(row) for row in self.subgroups],
            "weights": [dict(row) for row in self.weights],
            "cost": dict(self.cost),
            "remembered": [dict(row) for row in self.remembered],
            "more_references": self.more_references,
        }

    def to_json(self) -> str:
        """Return the verdict as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verdict:
        """Read what :meth:`to_dict` gave.

        Raises:
            InputError: another format, or something missing.
        """
        if data.get("format") != FORMAT:
            raise InputError(
                f"verdict has format {data.get('format')!r}; this version reads {FORMAT}: run `unlearn verify` again"
            )
        missing = [key for key in ("outcome", "reason", "tolerance", "table") if key not in data]
        if missing:
            raise InputError(f"verdict lacks {', '.join(missing)}; it was not written by this tool or is cut off")
        if data["outcome"] not in EXIT_CODES:
            raise InputError(f"verdict has outcome {data['outcome']!r}; known: {', '.join(EXIT_CODES)}")
        return cls(
            data["outcome"],
            data["reason"],
            data["tolerance"],
            [dict(row) for row in data["table"]],
            tuple(data.get("measures", ())),
            tuple(data.get("notes", ())),
            tuple(data.get("subgroups", ())),
            tuple(data.get("weights", ())),
            dict(data.get("cost", {})),
            tuple(data.get("remembered", ())),
            data.get("more_references"),
        )

    def __str__(self) -> str:
        lines = textwrap.wrap(f"{self.outcome}: {self.reason}", 80)
        titles = ("group", "r", "lower", "upper", "rows", "refs", "unedited", "lower", "upper")
        lines += ["", _line(*titles)]
        for row in self.table:
            numbers = [_number(row[key]) for key in ("r", "lower", "upper")]
            unedited = [_number(row[key]) for key in ("unedited_r", "unedited_lower", "unedited_upper")]
            lines.append(_line(row["group"], *numbers, str(row["rows"]), str(row["references"]), *unedited))
        return "\n".join(lines)


def decide(
    groups: Mapping[str, GroupPhi], *, tolerance: float = TOLERANCE, seed: int = 0, draws: int = 2000
) -> Verdict:
    """Hold an edited model against independent retrains.

    Pass if the upper 95 % bound of r is at most the tolerance on every group, fail if a lower 95 % bound exceeds it on
    any, else undecided. One reference has no spread and leaves the verdict undecided.

    Args:
        groups: phi by group name, usually changed, kept and test; the same references in each.
        tolerance: largest acceptable r.
        seed: of the draws of rows; the same seed gives the same bounds.
        draws: number of bootstrap draws of rows, at least 100.

    Raises:
        InputError: no groups, empty or mismatched arrays, values that are not finite, two references that are the
            same, or options out of range.

    >>> rng = np.random.default_rng(0)
    >>> edited, unedited, *references = rng.normal(size=(7, 500))
    >>> groups = {"changed": GroupPhi(edited, unedited + 4, references), "test": GroupPhi(edited, edited, references)}
    >>> verdict = decide(groups)
    >>> verdict.outcome, verdict.exit_code, round(verdict.table[0]["r"], 1), round(verdict.table[0]["unedited_r"], 1)
    ('pass', 0, 1.0, 2.9)
    """
    if not groups:
        raise InputError("no groups to judge; give at least one, such as {'test': GroupPhi(...)}")
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise InputError(f"tolerance is {tolerance}; give a number above 0 (the rule's own is {TOLERANCE})")
    if seed < 0 or draws < 100:
        raise InputError(f"seed is {seed}, draws {draws}; give a seed of 0 or more and at least 100 draws")
    phis = {name: _checked(name, group) for name, group in groups.items()}
    counts = {name: len(references) for name, (_, references) in phis.items()}
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"groups have different numbers of references ({listing}); use the same ones on each")

    ratios = {name: ratios_of(name, models, references, seed, draws) for name, (models, references) in phis.items()}
    table = []
    for name, (edited, *unedited) in ratios.items():
        size = (phis[name][1].shape[1], counts[name])
        before = unedited[0].row() if unedited else (None, None, None)
        table.append(dict(zip(_KEYS, (name, *edited.row(), *size, *before), strict=True)))
    outcome, reason, more = _judge({name: pair[0] for name, pair in ratios.items()}, tolerance)
    if outcome == "pass" and all(len(pair) > 1 and pair[1].upper <= tolerance for pair in ratios.values()):
        reason += "; no measurable trace: the edit was not needed to pass"
    return Verdict(outcome, reason, tolerance, table, more_references=more)


def _judge(ratios: Mapping[str, Ratio], tolerance: float) -> tuple[str, str, int | None]:
    first = next(iter(ratios.values()))
    if first.references == 1:
        return "undecided", "one reference has no spread; give at least three independent retrains", 2
    above = {name: ratio for name, ratio in ratios.items() if ratio.lower > tolerance}
    if above:
        least = max(ratio.lower for ratio in above.values())
        return "fail", f"r is at least {_round(least)} on {_names(above)} rows, above the tolerance {tolerance:g}", None
    wide = {name: ratio for name, ratio in ratios.items() if not ratio.upper <= tolerance}
    if not wide:
        most = max(ratio.upper for ratio in ratios.values())
        return "pass", f"r is at most {_round(most)} on {_names(ratios)} rows, within the tolerance {tolerance:g}", None
    reason = f"the bounds of r on {_names(wide)} rows are on both sides of the tolerance {tolerance:g}; "
    if first.references == 2:
        few = "two references have one difference, so its spread is unknown: give at least three"
        return "undecided", reason + few, 1
    more = _more_references(wide, tolerance)
    if more is None:
        reason += "more references alone would not decide: r is too near the tolerance or the rows are too few"
    else:
        reason += f"about {more} more reference{'s' if more > 1 else ''} would decide"
    return "undecided", reason, more


def _more_references(wide: Mapping[str, Ratio], tolerance: float) -> int | None:
    failing = [ratio.more_references(tolerance) for ratio in wide.values() if ratio.r > tolerance]
    passing = [ratio.more_references(tolerance) for ratio in wide.values() if ratio.r <= tolerance]
    known = [count for count in failing if count is not None]
    if known:
        return min(known)  # one group is enough to fail
    if failing or None in passing:
        return None
    return max(count for count in passing if count is not None)  # every group must pass


def _checked(name: str, group: GroupPhi) -> tuple[Floats, Floats]:
    try:
        edited, unedited, references = (
            np.asarray(part, dtype=np.float64)
            for part in (group.edited, group.edited if group.unedited is None else group.unedited, group.references)
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"group {name!r} is not three arrays of numbers: {error}") from error
    shapes = f"edited {edited.shape}, unedited {unedited.shape}, references {references.shape}"
    n = edited.shape[0] if edited.ndim == 1 else -1
    if unedited.shape != (n,) or references.ndim != 2 or references.shape[1] != n:
        raise InputError(f"group {name!r} has shapes {shapes}; give (n,), (n,) and (K, n)")
    if not references.size:
        raise InputError(f"group {name!r} has {n} rows and {len(references)} references; give at least one of each")
    if not all(np.isfinite(part).all() for part in (edited, unedited, references)):
        raise InputError(f"group {name!r} has NaN or infinite values; a model's outputs on these rows are damaged")
    return np.stack([edited] if group.unedited is None else [edited, unedited]), references


def _names(groups: Mapping[str, object]) -> str:
    *most, last = groups
    return f"{', '.join(most)} and {last}" if most else last


def _round(x: float) -> str:
    return f"{x:.4g}"


def _number(x: float | None) -> str:
    if x is None:
        return "-"
    return f"{x:.2f}" if x < 1000 else f"{x:.0e}"


def _line(name: str, *cells: str) -> str:
    widths = (7, 7, 7, 9, 5, 9, 7, 7)
    return f"{name[:12]:<12}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
