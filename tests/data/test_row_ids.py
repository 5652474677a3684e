"""Row numbers as ids behave as the tuple of their texts, in every way that rows use them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unlearn.data import Rows
from unlearn.data.row_ids import RowNumbers, text_order
from unlearn.errors import InputError, RowNotFoundError

N = 120  # texts of one, two and three digits, whose order is not that of the numbers


def both() -> tuple[Rows, Rows]:
    """The same rows with numbers, and with strings, as ids."""
    x, y = torch.randn(N, 3, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 3
    return Rows.from_tensors(x, y), Rows.from_tensors(x, y, ids=list(map(str, range(N))))


def test_numbers_and_strings_are_the_same_rows():
    """Rejects a fingerprint in the order of the numbers, and views that number their rows anew."""
    numbers, strings = both()
    assert isinstance(numbers.ids, RowNumbers)
    assert isinstance(strings.ids, tuple)
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    views = [lambda rows: rows, lambda rows: rows.at(shuffled), lambda rows: rows.at(shuffled[:40]).without(["7"])]
    for view in views:
        a, b = view(numbers), view(strings)
        assert a.ids == b.ids
        assert b.ids == a.ids
        assert (hash(a.ids), list(a.ids), a.ids[-1]) == (hash(b.ids), list(b.ids), b.ids[-1])
        assert a.fingerprint == b.fingerprint
        assert a.digests == b.digests
        wanted = [a.ids[5], a.ids[0], a.ids[30]]
        assert torch.equal(a.positions(wanted), b.positions(wanted))
        assert a.positions(wanted).tolist() == [5, 0, 30]
        assert text_order(a.ids).tolist() == text_order(b.ids).tolist()
        assert np.array(a.ids).tolist() == list(b.ids)


@pytest.mark.parametrize("row", ["007", "+7", "7.0", "", "-1", "120", "\u0667", " 7", "x"])
def test_what_is_no_row_number_is_in_no_rows(row: str):
    """Rejects int(), which takes signs, blanks, leading zeros and other digits."""
    numbers, strings = both()
    assert row not in numbers
    assert row not in strings
    for rows in (numbers, strings):
        with pytest.raises(RowNotFoundError, match="1 of 2 ids not in data"):
            rows.positions(["7", row])
    with pytest.raises(InputError, match="named twice"):
        numbers.positions(["7", "7"])


def test_numbers_need_no_string_for_each():
    assert Rows.from_tensors(torch.zeros(5, 1), torch.zeros(5).long()).ids._numbers.nbytes == 40  # type: ignore[attr-defined]
