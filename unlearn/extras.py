"""Packages that not everyone needs: imported where they are used, with the words to install them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from unlearn.errors import MissingExtraError


def extra_module(name: str, extra: str, what: str) -> Any:
    """Return a module of an optional dependency.

    Args:
        name: of the module, with its package.
        extra: of ``unlearn`` that installs it.
        what: it is needed for, such as "data 'hub' is read by datasets".

    Raises:
        MissingExtraError: it is not installed.

    >>> extra_module("no_such_package.part", "demo", "this needs no_such_package")
    Traceback (most recent call last):
    unlearn.errors.MissingExtraError: this needs no_such_package, which is not installed: pip install 'unlearn[demo]'
    """
    try:
        import_module(name.partition(".")[0])
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"{what}, which is not installed: pip install 'unlearn[{extra}]'") from error
