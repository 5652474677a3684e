"""Typed errors. Each subclasses a built-in, so that callers need not import this module to catch them.

A message says what came, what is allowed and what to do next, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnlearnError(Exception):
    """Base of every error that bad input can cause; the command line turns it into exit code 2."""


class InputError(UnlearnError, ValueError):
    """An argument or a value in the data is not usable."""


class RowNotFoundError(UnlearnError, LookupError):
    """A row id is not in the data."""


class UnsupportedLayerError(UnlearnError, TypeError):
    """A layer or parameter has no curvature approximation and was not skipped."""


class StaleCurvatureError(UnlearnError, ValueError):
    """Curvature factors belong to other weights, data or options."""


class RecordError(UnlearnError, ValueError):
    """A training record, or a snapshot it names, is missing or does not fit."""


class CheckpointError(UnlearnError, ValueError):
    """A checkpoint is damaged, altered, or does not fit the model."""


class RecipeError(UnlearnError, ValueError):
    """A recipe is unknown or has a wrong key or value."""


class FolderError(UnlearnError, OSError):
    """A folder or file can not be written, or holds something else."""


class LedgerError(UnlearnError, ValueError):
    """A ledger, a certificate or a key is damaged, altered, or does not fit what is asked of it."""


class LockedError(UnlearnError, TimeoutError):
    """Another process works on the requests of this run."""


class ConvergenceError(UnlearnError, ArithmeticError):
    """An iterative solver ended without the answer it was asked for."""


class WorkerError(UnlearnError, RuntimeError):
    """A worker process ended before its work was done."""


class UncertifiedError(UnlearnError, ValueError):
    """A certificate was asked for where no bound exists."""


class BudgetSpentError(UnlearnError, ArithmeticError):
    """A certified removal would spend more than is left; retrain."""


class MissingExtraError(UnlearnError, ImportError):
    """An optional dependency is not installed."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the tail of an error message: the nearest known word and the list of all.

    >>> did_you_mean("mnst5k", ["digits", "mnist5k"])
    "did you mean 'mnist5k'? (known: digits, mnist5k)"
    >>> did_you_mean("zzz", ["digits"])
    'known: digits'
    """
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    listing = "known: " + ", ".join(names)
    return f"did you mean {near[0]!r}? ({listing})" if near else listing


def some(items: Iterable[object], most: int = 5) -> str:
    """Return the first few items of a list for an error message.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    words = [str(item) for item in items]
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")


def one_line(message: object, longest: int = 2000) -> str:
    r"""Return a message as one line of bounded length in which nothing moves a cursor or turns the reading direction.

    >>> one_line("no file 'a\x1b[2J'\n  here"), one_line("x" * 100, 5)
    ("no file 'a\\x1b[2J' here", 'xxxx…')
    """
    text = " ".join(str(message)[: 4 * longest].split())
    spelled = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return spelled if len(spelled) <= longest else spelled[: longest - 1] + "…"
