"""Numbers and names as a reader sees them: three significant digits, never NaN, no underscores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from jinja2 import Undefined

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NAMES = {
    "accuracy": "accuracy",
    "phi_error": "phi error",
    "kl": "KL",
    "agreement": "agreement",
    "jensen_shannon": "Jensen-Shannon",
    "cka": "CKA",
    "phi": "mean phi",
    "calibration": "calibration error",
    "change_cosine": "cosine of the logit change",
    "auroc": "AUROC",
    "suggestions_right": "share of right suggestions",
    "changed_phi": "phi of the changed rows at the old label",
    "changed_loss": "loss of the changed rows at the old label",
    "kept_loss": "loss of the kept rows",
    "kept_accuracy": "accuracy of the kept rows",
    "sgd": "SGD",
    "lr": "learning rate",
    "factors": "fitting the preconditioner",
    "edit": "the edit: gradients, products, evaluations",
    "solve": "the edit: gradients, products, evaluations",
    "replay": "replaying recorded steps",
    "total": "all of it",
}


def number(value: object, trim: bool = False) -> str:
    """Return a number with three significant digits; whole numbers in full; what is missing as a dash.

    Args:
        value: a number, a truth value, or None; text is returned as it is.
        trim: leave out trailing zeros, for settings rather than measurements.

    >>> number(0.030012), number(1234.5), number(535818), number(None), number(float("nan")), number(2.0, trim=True)
    ('0.0300', '1,230', '535,818', '–', '–', '2')
    >>> number(-1.5e-7), number(float("inf")), number(True)
    ('−1.50 × 10⁻⁷', '∞', 'yes')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, Undefined):
        return MISSING
    if isinstance(value, Integral):
        return f"{int(value):,}".replace("-", MINUS)
    if not isinstance(value, Real):
        return str(value)
    x = float(value)
    if math.isnan(x):
        return MISSING
    if math.isinf(x):
        return "∞" if x > 0 else MINUS + "∞"
    return _three_digits(x, trim).replace("-", MINUS)


def _three_digits(x: float, trim: bool) -> str:
    digits, exponent = f"{x:.2e}".split("e")
    power = int(exponent)
    if x == 0:
        return "0"
    if -4 <= power < 6:
        text = f"{float(f'{x:.2e}'):,.{max(2 - power, 0)}f}"
        return text.rstrip("0").rstrip(".") if trim and "." in text else text
    if trim:
        digits = digits.rstrip("0").rstrip(".")
    return f"{digits} {TIMES} 10{str(power).translate(_SUPERSCRIPTS)}"


def finite(value: object) -> float | None:
    """Return a number as a float, and None for anything that can not be drawn.

    >>> finite(2), finite(float("inf")), finite(None), finite("2"), finite(True)
    (2.0, None, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    x = float(value)
    return x if math.isfinite(x) else None


def words(name: object) -> str:
    """Return the name of a key as words.

    >>> words("average_precision"), words("kl"), words("step_norm")
    ('average precision', 'KL', 'step norm')
    """
    text = "" if isinstance(name, Undefined) or name is None else str(name)
    return _NAMES.get(text, text.replace("_", " "))


def plain(value: Any) -> str:
    """Return any value of a report on one line.

    >>> plain({"width": 512, "sizes": [3, 0.5]}), plain([]), plain(None)
    ('width 512; sizes 3, 0.5', 'none', '–')
    """
    if isinstance(value, Mapping):
        return "; ".join(f"{words(key)} {plain(part)}" for key, part in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(part) for part in value) or "none"
    return number(value, trim=True)
