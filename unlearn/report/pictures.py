"""Rows as pictures: arrays become PNG data URIs, so that the page needs no other file."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unlearn.errors import InputError


def picture(array: npt.NDArray[Any]) -> str:
    """Return an array as a PNG data URI.

    Values within [0, 1] keep their brightness (0 is black, 1 is white); any others are stretched from the array's
    smallest to its largest.

    Args:
        array: (H, W), (1, H, W) grey or (3, H, W) red, green, blue.

    Raises:
        InputError: another shape, or values that are not finite numbers.

    >>> picture(np.zeros((2, 2)))[:30]
    'data:image/png;base64,iVBORw0K'
    """
    values = np.asarray(array)
    pixels = values[None] if values.ndim == 2 else values
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not pixels.size:
        raise InputError(f"a picture has shape {values.shape}; give (H, W), (1, H, W) or (3, H, W)")
    if pixels.dtype.kind not in "fiub":
        raise InputError(f"a picture has values of type {pixels.dtype}; give numbers")
    pixels = pixels.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise InputError("a picture has NaN or infinite values; the row it shows is damaged")
    levels = np.rint(_unit(pixels) * 255).astype(np.uint8)
    image = Image.fromarray(levels[0]) if len(levels) == 1 else Image.fromarray(np.moveaxis(levels, 0, -1).copy())
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _unit(pixels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    low, high = pixels.min(), pixels.max()
    if low >= 0 and high <= 1:
        return pixels
    return (pixels - low) / (high - low) if high > low else np.zeros_like(pixels)
