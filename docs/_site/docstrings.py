"""Docstrings as the site shows them: doctests as code, Sphinx roles as plain names."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
_DOCTEST = re.compile(r"(?:^>>>.*\n?(?:^(?!\s*$).+\n?)*\n?)+", re.M)


class Plain(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)


def plain(text: str) -> str:
    """Return a docstring with its doctests fenced and its roles as code.

    >>> plain("Like :func:`unlearn.data.as_rows`.")
    'Like `as_rows`.'
    """
    text = _ROLE.sub(r"`\1`", text)
    return _DOCTEST.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n\n", text).rstrip()
