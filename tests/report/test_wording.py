import numpy as np
import pytest

from unlearn.report.wording import number, plain


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, "0.500"),
        (0.9996, "1.00"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1234.5, "1,230"),
        (999999.0, "1.00 \N{MULTIPLICATION SIGN} 10⁶"),
        (0.00012345, "0.000123"),
        (0.00001, "1.00 \N{MULTIPLICATION SIGN} 10⁻⁵"),
        (-0.25, "\N{MINUS SIGN}0.250"),
        (0.0, "0"),
        (-0.0, "0"),
        (1234567, "1,234,567"),
        (-3, "\N{MINUS SIGN}3"),
        (np.float32(0.25), "0.250"),
        (np.int64(1000), "1,000"),
        (float("-inf"), "\N{MINUS SIGN}∞"),
        (np.nan, "\N{EN DASH}"),
        (False, "no"),
        ("7", "7"),
    ],
)
def test_number(value, expected):
    assert number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(3.0, "3"), (0.1, "0.1"), (100.0, "100"), (1e-7, "1 \N{MULTIPLICATION SIGN} 10⁻⁷")]
)
def test_settings_have_no_trailing_zeros(value, expected):
    assert number(value, trim=True) == expected


def test_plain_reads_nested_values():
    assert plain({"a_b": [1, {"c": True}], "none": None, "empty": {}}) == "a b 1, c yes; none \N{EN DASH}; empty none"
