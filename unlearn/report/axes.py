"""Scales and ticks of charts.

A chart is 380 units wide, which is a phone's width, so that its text can be read there and is large on a desk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH = 380


@dataclass(frozen=True)
class Tick:
    """A number beside an axis."""

    at: float
    text: str


def linear(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return the map of [low, high] to [start, end].

    >>> linear(0, 2, 10, 30)(1)
    20.0
    """
    return lambda x: start + (x - low) / (high - low) * (end - start)


def logarithmic(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return the map of [low, high] to [start, end] by the logarithm."""
    line = linear(math.log(low), math.log(high), start, end)
    return lambda x: line(math.log(x))


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return about ``most`` round numbers within a range.

    >>> ticks(0, 1, 5)
    [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if (high - low) / step <= most)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return at most 7 round numbers within a range of positive numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(ticks) <= 7:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 7)]


def rounded(x: float) -> float:
    """Return a place to a tenth of a unit."""
    return round(x, 1)


def apart(places: Sequence[float], least: float) -> list[float]:
    """Return places moved down until each is ``least`` below the one above it, so that labels do not overlap.

    >>> apart([10.0, 2.0, 11.0], 5.0)
    [10.0, 2.0, 15.0]
    """
    moved = list(places)
    above = float("-inf")
    for k in sorted(range(len(moved)), key=lambda k: moved[k]):
        moved[k] = above = max(moved[k], above + least)
    return moved
