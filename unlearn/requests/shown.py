"""Free text as it is shown: nothing in it can move a cursor, turn the reading direction or start a formula."""

from __future__ import annotations

LONGEST = 60


def shown(text: str, longest: int = LONGEST) -> str:
    r"""Return a text with everything that does not print spelled out, cut to a length.

    Control characters, ANSI escapes, right-to-left marks and lone surrogates become ``\x1b``, ``\u202e`` and so on.

    >>> shown("dpo\x1b[31m"), shown("a\u202eb"), shown("x" * 100, 5)
    ('dpo\\x1b[31m', 'a\\u202eb', 'xxxx…')
    """
    spelled = "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text[: longest + 1]
    )
    return spelled if len(spelled) <= longest and len(text) <= longest else spelled[: longest - 1] + "…"


def spreadsheet_cell(text: str) -> str:
    """Return a text that a spreadsheet shows as text: one that would start a formula gets a quote in front.

    >>> spreadsheet_cell("=1+1"), spreadsheet_cell("dpo")
    ("'=1+1", 'dpo')
    """
    plain = shown(text, longest=max(LONGEST, len(text) * 10 + 1))
    return "'" + plain if plain[:1] in ("=", "+", "-", "@") else plain
