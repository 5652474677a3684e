"""Reduced case of ``python -m benchmarks.scale rows``: memory does not grow with the rows, but for ids and labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scale import MEMORY_BAR, QUICK_SIZES, WORK, exponent, measure


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures resident memory in /proc")
@pytest.mark.parametrize("what", WORK)
def test_ten_times_the_rows_take_little_more_memory(what: str) -> None:
    """A tenth of the rows of the full case and a tenth of its bar; rejects inputs or gradients that are kept."""
    few, many = (measure(what, count)["peak"] for count in (QUICK_SIZES[0], QUICK_SIZES[-1]))
    assert many - few <= MEMORY_BAR / 10


def test_the_exponent_is_that_of_the_power() -> None:
    assert exponent((10, 20, 80), [3.0, 12.0, 192.0]) == pytest.approx(2.0)
