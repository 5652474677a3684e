"""Progress bars."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import rich.console

from unlearn import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    out = Terminal()
    monkeypatch.setattr(
        progress, "Console", lambda stderr: rich.console.Console(file=out, force_terminal=True, width=100)
    )
    return out


def test_nothing_is_printed_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]):
    assert list(progress.track(range(3), "training")) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_a_bar_counts_on_standard_error_of_a_terminal(terminal: Terminal, capfd: pytest.CaptureFixture[str]):
    assert list(progress.track(range(3), "training")) == [0, 1, 2]
    assert "training" in terminal.getvalue()
    assert capfd.readouterr().out == ""  # --json output must stay clean


def test_items_without_a_length_pass_on_a_terminal_too(terminal: Terminal):
    # rejects len() of a generator, which fails on terminals only
    assert list(progress.track((i for i in range(3)), "streaming")) == [0, 1, 2]


def fails_after_one() -> Iterator[int]:
    yield 0
    raise ZeroDivisionError


def test_bars_nest_and_the_outer_goes_on_after_an_error_inside(terminal: Terminal):
    # rejects a second live display, which rich refuses
    seen = []
    for i in progress.track([0, 1], "outer"):
        inner = progress.track(fails_after_one(), "inner", total=2)
        seen.append((i, next(iter(inner))))
        with pytest.raises(ZeroDivisionError):
            next(iter(inner))
    assert seen == [(0, 0), (1, 0)]
    assert progress._ACTIVE.get() is None
