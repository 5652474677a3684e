"""The verdict: is an edited model as near to retrained models as they are to each other? (math.md, section 5).

On one group of rows r = distance(edited, references) / distance(reference, reference), where a distance is the root
mean square of differences of phi over rows and references (or pairs of references). References are independent
retrains; the coupled retrain shares the original's seed and would flatter the edit. An independent retrain has r = 1;
a model at the references' mean has r = 0.71. The upper 95 % bound of r must be within the tolerance on every group.

Bounds. Rows and references are resampled apart, and log r has the variance of both:
log r -+ t sqrt(s_references^2 + s_rows^2), where s_references is the delete-one jackknife over references (leaving one
out of both distances at once), s_rows the standard deviation over bootstrap draws of the rows, and t the 95 % quantile
of Student's t with K - 1 degrees of freedom for K references. A percentile bootstrap over both was tried and is not
used: a draw that picks one reference K times has no floor (one draw in nine for K = 3), and without those its bounds
are too narrow. Two references have one difference and no jackknife: s_references is then that of a single squared
normal number, which decides only extreme cases.

Level, by simulation (``python -m benchmarks.verdict_level``; ``tests/verification/test_verdict.py`` runs it in reduced
form), with K = 3, 5, 8, normal and heavy-tailed noise, a part of its variance moving all rows of a retrain together. At
r = tolerance at most 6.8 % of verdicts on one group were false passes (at 20 rows with a bias drawn for each) and at
most 14 % false fails, where half of the noise is shared; of independent retrains at most 3.5 % failed.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from unlearn.errors import InputError

Floats: TypeAlias = npt.NDArray[np.float64]

TOLERANCE = 1.5
EXIT_CODES = {"pass": 0, "fail": 1, "undecided": 3}
FORMAT = 1

_KEYS = ("group", "r", "lower", "upper", "rows", "references", "unedited_r", "unedited_lower", "unedited_upper")
_MOST_REFERENCES = 100  # no one trains more, so no more are suggested


@dataclass(frozen=True)
class GroupPhi:
    """Phi of three kinds of models on the rows of one group.

    Attributes:
        edited: phi of the edited model, (n,).
        unedited: phi of the model before the edit, (n,).
        references: phi of K independent retrains, (K, n).
    """

    edited: npt.ArrayLike
    unedited: npt.ArrayLike
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
    """

    outcome: str
    reason: str
    tolerance: float
    table: list[dict[str, Any]]
    measures: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

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

    ratios = {name: _ratios(name, models, references, seed, draws) for name, (models, references) in phis.items()}
    table = []
    for name, (edited, unedited) in ratios.items():
        size = (phis[name][1].shape[1], counts[name])
        table.append(dict(zip(_KEYS, (name, *edited.row(), *size, *unedited.row()), strict=True)))
    outcome, reason = _judge({name: pair[0] for name, pair in ratios.items()}, tolerance)
    if outcome == "pass" and all(pair[1].upper <= tolerance for pair in ratios.values()):
        reason += "; no measurable trace: the edit was not needed to pass"
    return Verdict(outcome, reason, tolerance, table)


@dataclass(frozen=True)
class _Ratio:
    r: float
    references: int
    s_references: float
    s_rows: float

    def width(self, references: int) -> float:
        """Half the width of log r's bounds, were there so many references."""
        shrunk = self.s_references * math.sqrt(self.references / references)
        return _t95(references - 1) * math.hypot(shrunk, self.s_rows)

    @property
    def lower(self) -> float:
        return 0.0 if self.references == 1 else self.r * math.exp(-self.width(self.references))

    @property
    def upper(self) -> float:
        width = math.inf if self.references == 1 else self.width(self.references)
        return self.r * math.exp(width) if width < 500 else math.inf

    def row(self) -> tuple[float | None, float | None, float | None]:
        if self.references == 1:
            return None, None, None
        return self.r, self.lower, self.upper if math.isfinite(self.upper) else None

    def more_references(self, tolerance: float) -> int | None:
        """How many more references would put the tolerance outside the bounds, if any number would."""
        gap = abs(math.log(self.r / tolerance)) if self.r > 0 else math.inf
        for references in range(self.references + 1, _MOST_REFERENCES + 1):
            if self.width(references) < gap:
                return references - self.references
        return None


def _judge(ratios: Mapping[str, _Ratio], tolerance: float) -> tuple[str, str]:
    first = next(iter(ratios.values()))
    if first.references == 1:
        return "undecided", "one reference has no spread; give at least three independent retrains"
    above = {name: ratio for name, ratio in ratios.items() if ratio.lower > tolerance}
    if above:
        least = max(ratio.lower for ratio in above.values())
        return "fail", f"r is at least {_round(least)} on {_names(above)} rows, above the tolerance {tolerance:g}"
    wide = {name: ratio for name, ratio in ratios.items() if not ratio.upper <= tolerance}
    if not wide:
        most = max(ratio.upper for ratio in ratios.values())
        return "pass", f"r is at most {_round(most)} on {_names(ratios)} rows, within the tolerance {tolerance:g}"
    reason = f"the bounds of r on {_names(wide)} rows are on both sides of the tolerance {tolerance:g}; "
    if first.references == 2:
        return "undecided", reason + "two references have one difference, so its spread is unknown: give at least three"
    return "undecided", reason + _advice(wide, tolerance)


def _advice(wide: Mapping[str, _Ratio], tolerance: float) -> str:
    failing = [ratio.more_references(tolerance) for ratio in wide.values() if ratio.r > tolerance]
    passing = [ratio.more_references(tolerance) for ratio in wide.values() if ratio.r <= tolerance]
    known = [count for count in failing if count is not None]
    if known:
        more = min(known)  # one group is enough to fail
    elif failing or None in passing:
        return "more references alone would not decide: r is too near the tolerance or the rows are too few"
    else:
        more = max(count for count in passing if count is not None)  # every group must pass
    return f"about {more} more reference{'s' if more > 1 else ''} would decide"


def _ratios(name: str, models: Floats, references: Floats, seed: int, draws: int) -> list[_Ratio]:
    # k l references, m models (edited, unedited), i rows
    count = len(references)
    to_models = (models[:, None] - references) ** 2  # m k i
    between = np.stack([((references - one) ** 2).mean(1) for one in references])  # k l
    if count == 1:
        return [_Ratio(math.nan, 1, math.inf, math.inf) for _ in models]
    same = np.argwhere(np.triu(between == 0, 1))
    if len(same):
        k, l = same[0]  # noqa: E741
        raise InputError(
            f"references {k} and {l} are the same on {name} rows; independent retrains need different seeds"
        )
    floor_rows = 2 * references.var(0, ddof=1)  # mean over pairs of squared differences
    distances = to_models.mean(2)  # m k
    others = [np.delete(np.arange(count), k) for k in range(count)]
    resampled = _row_means(np.vstack([to_models.mean(1), floor_rows]), np.random.default_rng(_key(seed, name)), draws)

    ratios = []
    for m in range(len(models)):
        r = math.sqrt(distances[m].mean() / floor_rows.mean())
        s_references = math.sqrt(0.5)  # of half the log of one squared normal number
        if count > 2:
            left_out = [distances[m, kept].mean() for kept in others]
            left_floor = [between[np.ix_(kept, kept)].sum() / ((count - 1) * (count - 2)) for kept in others]
            logs = 0.5 * np.log(np.divide(left_out, left_floor))
            s_references = math.sqrt((count - 1) * logs.var())
        with np.errstate(divide="ignore", invalid="ignore"):
            rows = 0.5 * np.log(resampled[:, m] / resampled[:, -1])
        s_rows = float(rows.std()) if np.isfinite(rows).all() else math.inf
        ratios.append(_Ratio(r, count, s_references, s_rows))
    return ratios


def _row_means(values: Floats, rng: np.random.Generator, draws: int) -> Floats:
    """Means of each series over rows drawn with replacement, (draws, series)."""
    n = values.shape[1]
    block = max(1, 2_000_000 // n)
    means = []
    for start in range(0, draws, block):
        size = min(block, draws - start)
        rows = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(rows.ravel(), minlength=size * n).reshape(size, n)
        means.append(counts @ values.T / n)
    return np.concatenate(means)


def _checked(name: str, group: GroupPhi) -> tuple[Floats, Floats]:
    try:
        edited, unedited, references = (
            np.asarray(part, dtype=np.float64) for part in (group.edited, group.unedited, group.references)
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
    return np.stack([edited, unedited]), references


def _key(seed: int, name: str) -> list[int]:
    return [seed, *name.encode()]


def _t95(freedom: int) -> float:
    return float(stats.t.ppf(0.95, freedom))


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
