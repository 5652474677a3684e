"""Progress bars on standard error, where it is a terminal; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
_ACTIVE: ContextVar[Progress | None] = ContextVar("active_progress", default=None)
_HIDDEN: ContextVar[bool] = ContextVar("hidden_progress", default=False)


def hide_bars() -> None:
    """Show no bars from here on: for worker processes, whose bars would overwrite those of their parent."""
    _HIDDEN.set(True)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, with a bar that goes away when they are done; bars may be nested.

    >>> list(track([1, 2], "counting"))
    [1, 2]
    """
    console = Console(stderr=True)
    if _HIDDEN.get() or not console.is_terminal:
        yield from items
        return
    outer = _ACTIVE.get()
    progress = outer or Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    if outer is None:
        progress.start()
        token = _ACTIVE.set(progress)
    length = len(items) if total is None and isinstance(items, Sized) else total
    task = progress.add_task(description, total=length)
    try:
        for item in items:
            yield item
            del item  # not to be held beside the next one
            progress.advance(task)
    finally:
        progress.remove_task(task)
        if outer is None:
            progress.stop()
            _ACTIVE.reset(token)
