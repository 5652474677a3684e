import base64
import io

import numpy as np
import pytest
from PIL import Image

from unlearn.errors import InputError
from unlearn.report import picture


def read(uri):
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7)])
def test_grey_round_trip(shape):
    levels = np.random.default_rng(0).integers(0, 256, shape)
    np.testing.assert_array_equal(read(picture(levels / 255)), levels.reshape(5, 7))


def test_colour_round_trip():
    levels = np.random.default_rng(1).integers(0, 256, (3, 5, 7))
    np.testing.assert_array_equal(read(picture((levels / 255).astype(np.float32))), np.moveaxis(levels, 0, -1))


def test_values_within_0_and_1_keep_their_brightness():
    np.testing.assert_array_equal(read(picture(np.array([[0.2, 0.4]]))), [[51, 102]])


@pytest.mark.parametrize("values", [[[-1.0, 0.0, 1.0]], [[10, 15, 20]], [[0.0, 0.75, 1.5]]])
def test_others_are_stretched_over_their_range(values):
    np.testing.assert_array_equal(read(picture(np.array(values))), [[0, 128, 255]])


def test_a_flat_array_is_black():
    np.testing.assert_array_equal(read(picture(np.full((2, 2), 7.0))), np.zeros((2, 2)))


@pytest.mark.parametrize("shape", [(4,), (2, 4, 4), (4, 4, 3), (1, 3, 4, 4), (0, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match=r"give \(H, W\), \(1, H, W\) or \(3, H, W\)"):
        picture(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(InputError, match="NaN or infinite"):
        picture(np.array([[0.0, value]]))


def test_text_is_refused():
    with pytest.raises(InputError, match="give numbers"):
        picture(np.array([["a", "b"]]))
