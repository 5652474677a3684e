"""Images become tensors, the same ones each time: mode, resize, centre crop, scale. No augmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unlearn.errors import InputError, some
from unlearn.source_options import PictureOptions


@dataclass(frozen=True)
class PictureFormat:
    """What an image becomes.

    Attributes:
        size: height and width; the shorter side is resized to it (bilinear), the middle is kept. None: as it is.
        channels: 1 (grey) or 3 (colour).
        mean: taken off each channel after scaling to [0, 1]; empty for none.
        std: divides each channel after that; empty for none.
    """

    size: int | None
    channels: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def of(cls, options: PictureOptions, size: int | None, channels: int) -> PictureFormat:
        """Return the format that options state, with these defaults.

        Raises:
            InputError: as many means as there are channels are needed, or none.
        """
        chosen = options.channels or channels
        if len(options.mean) not in (0, chosen):
            raise InputError(
                f"mean and std have {len(options.mean)} numbers for images of {chosen} channels; give one for each"
            )
        return cls(options.size or size, chosen, options.mean, options.std)

    def pixels(self, image: Any) -> Tensor:
        """Return the image's bytes, uint8 of shape (channels, height, width).

        >>> PictureFormat(4, 3).pixels(Image.new("L", (8, 10), 7)).shape
        torch.Size([3, 4, 4])
        """
        image = image.convert("L" if self.channels == 1 else "RGB")
        if self.size is not None and image.size != (self.size, self.size):
            width, height = image.size
            scale = self.size / min(width, height)
            wide, high = max(self.size, round(width * scale)), max(self.size, round(height * scale))
            left, top = (wide - self.size) // 2, (high - self.size) // 2
            image = image.resize((wide, high), Image.Resampling.BILINEAR)
            image = image.crop((left, top, left + self.size, top + self.size))
        array = np.array(image, dtype=np.uint8)
        return torch.from_numpy(array.reshape(image.height, image.width, self.channels)).permute(2, 0, 1).contiguous()

    def scaled(self, pixels: Tensor) -> Tensor:
        """Return bytes of shape (rows, channels, height, width) as float32: in [0, 1], or standardised if stated.

        >>> PictureFormat(None, 1, (0.5,), (0.5,)).scaled(torch.tensor([[[[0, 255]]]])).tolist()
        [[[[-1.0, 1.0]]]]
        """
        values = pixels.float() / 255
        if not self.mean:
            return values
        mean, std = (torch.tensor(x, dtype=torch.float32)[:, None, None] for x in (self.mean, self.std))
        return (values - mean) / std


class StoredPictures:
    """Images held in memory as bytes, of shape (rows, channels, height, width); a quarter of what floats take."""

    def __init__(self, pixels: Tensor, form: PictureFormat) -> None:
        self.pixels = pixels
        self.form = form

    def inputs(self, positions: Tensor) -> Tensor:
        """Return the images at these positions, float32."""
        return self.form.scaled(self.pixels[positions])


class ReadPictures:
    """Images read and decoded each time they are asked for.

    Args:
        read: returns the PIL image of a row.
        ids: ids of the rows, for messages.
        form: what they become.
    """

    def __init__(self, read: Callable[[int], Any], ids: Sequence[str], form: PictureFormat) -> None:
        self.read = read
        self.ids = ids
        self.form = form

    def inputs(self, positions: Tensor) -> Tensor:
        """Return the images at these positions, float32.

        Raises:
            InputError: an image can not be read, or is of another size than those beside it.
        """
        rows = positions.tolist()
        found = [self._pixels(row) for row in rows]
        for row, pixels in zip(rows, found, strict=True):
            if pixels.shape != found[0].shape:
                raise InputError(
                    f"the image of row {self.ids[row]!r} is {_size(pixels)}, that of row {self.ids[rows[0]]!r} "
                    f"{_size(found[0])}; state a size that all are brought to"
                )
        return self.form.scaled(torch.stack(found))

    def _pixels(self, row: int) -> Tensor:
        try:
            return self.form.pixels(self.read(row))
        except (OSError, AttributeError, SyntaxError) as error:
            raise InputError(f"the image of row {self.ids[row]!r} can not be read: {error}") from error


def open_picture(path: Path) -> Image.Image:
    """Return the decoded image of a file; the file is closed."""
    with Image.open(path) as image:
        copied: Image.Image = image.copy()
    return copied


def check_files(paths: Sequence[Path], name: str) -> None:
    """Refuse images that are not there.

    Raises:
        InputError: how many, and which.
    """
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} image files of {name} are missing: {some(missing)}; restore them or leave "
            "their rows out"
        )


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[2]} x {pixels.shape[1]}"
