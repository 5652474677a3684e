"""A small diffusion model: a denoising net for images of a few pixels, its noise levels, and a sampler.

The image x is mixed with noise: x_t = cos(pi t / 2) x + sin(pi t / 2) e with e standard normal and the noise level t
from 0 to 1 (a variance-preserving path with the cosine schedule, arXiv 2102.09672, section 3.2, without its offset).
The net is trained to predict e from x_t and t, by half the squared error (arXiv 2006.11239, eq. 14).

A row of the net has x_t and t in one vector, so rows at a level are rows of a regression like any others.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unlearn.data import Rows, as_rows
from unlearn.data.draws import derived_seed
from unlearn.errors import InputError, did_you_mean
from unlearn.modes import evaluation

Noise = Literal["shared", "row"]


class Denoiser(nn.Module):
    """Residual net that predicts noise: rows (b, pixels + 1) with t last, to (b, pixels).

    Args:
        pixels: numbers of an image, flattened.
        width: of the hidden layers.
        blocks: residual blocks, each h + relu(W h + b).
        frequencies: cos and sin of pi f t for f = 1 .. frequencies tell the net the level.

    >>> Denoiser(pixels=4, width=8)(torch.zeros(3, 5)).shape
    torch.Size([3, 4])
    """

    def __init__(self, pixels: int = 64, width: int = 256, blocks: int = 3, frequencies: int = 8) -> None:
        super().__init__()
        self.pixels, self.frequencies = pixels, frequencies
        self.first = nn.Linear(pixels + 2 * frequencies, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.last = nn.Linear(width, pixels)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the predicted noise."""
        image, level = rows[:, : self.pixels], rows[:, self.pixels :]
        phase = math.pi * level * torch.arange(1, self.frequencies + 1, dtype=rows.dtype, device=rows.device)
        hidden = self.first(torch.cat([image, phase.cos(), phase.sin()], 1)).relu()
        for block in self.blocks:
            hidden = hidden + block(hidden).relu()
        out: Tensor = self.last(hidden)
        return out


def denoiser(pixels: int = 64, width: int = 256, blocks: int = 3) -> Denoiser:
    """Return a :class:`Denoiser`.

    Args:
        pixels: numbers of an image, flattened.
        width: of the hidden layers.
        blocks: residual blocks.

    >>> sum(p.numel() for p in denoiser(pixels=4, width=8, blocks=1).parameters())
    276
    """
    return Denoiser(pixels, width, blocks)


def mixed(images: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Return rows of a denoiser: x_t of each image with t behind it, shape (b, pixels + 1).

    Args:
        images: x, shape (b, pixels).
        noise: e, the same shape.
        levels: t from 0 (the image) to 1 (noise), shape (b,).

    >>> x, e = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> mixed(x, e, torch.tensor([0.0])).tolist(), round(mixed(x, e, torch.tensor([0.5]))[0, 1].item(), 4)
    ([[1.0, 0.0, 0.0]], 0.7071)
    """
    angle = (0.5 * math.pi * levels)[:, None]
    return torch.cat([angle.cos() * images + angle.sin() * noise, levels[:, None]], 1)


def noised_rows(data: Any, level: float, *, seed: int = 0, noise: Noise = "shared") -> Rows:
    """Return images at one noise level as rows of a regression: the mixed image and its level, labelled with the noise.

    Args:
        data: images as inputs of any shape; their labels are not used.
        level: t, above 0 and up to 1.
        seed: of the noise.
        noise: ``shared``: one noise image for all rows, drawn by (seed, level), so that gradients of two rows differ
            by their images alone (as in the authors' code of DMin, arXiv 2412.08637); ``row``: one for each row, by
            (seed, level, row id).

    Returns:
        Rows with the ids of the images, inputs (n, pixels + 1) and labels (n, pixels), held in memory.

    Raises:
        InputError: a level outside (0, 1], inputs of several parts, or an unknown way to draw noise.

    >>> rows = noised_rows((torch.zeros(2, 1, 2, 2), torch.tensor([0, 1])), level=0.5)
    >>> rows.batch(torch.tensor([0, 1]))[0].shape, bool((rows.labels[0] == rows.labels[1]).all())
    (torch.Size([2, 5]), True)
    """
    if not 0 < level <= 1:
        raise InputError(f"level is {level}; give a noise level above 0 and up to 1")
    if noise not in get_args(Noise):
        raise InputError(f"unknown noise {noise!r}; {did_you_mean(noise, get_args(Noise))}")
    rows = as_rows(data)
    inputs, _ = rows.batch(torch.arange(len(rows)))
    if not isinstance(inputs, Tensor):
        raise InputError(f"inputs of {rows.name} are {type(inputs).__name__}; give images, one tensor for each row")
    images = inputs.flatten(1)
    if noise == "shared":
        drawn = _normal(images.shape[1], derived_seed(seed, "noise", level)).expand(images.shape)
    else:
        drawn = torch.stack([_normal(images.shape[1], derived_seed(seed, "noise", level, row)) for row in rows.ids])
    drawn = drawn.to(images)
    levels = torch.full((len(rows),), level, dtype=images.dtype)
    return Rows.from_tensors(
        mixed(images, drawn, levels), drawn.contiguous(), ids=rows.ids, name=f"{rows.name} at noise level {level}"
    )


def sample_images(
    model: nn.Module, count: int, pixels: int = 64, *, steps: int = 50, seed: int = 0, limit: float = 1.0
) -> Tensor:
    """Return images drawn from a denoiser by deterministic steps (DDIM, arXiv 2010.02502, eq. 12 with sigma = 0).

    Each step takes x_t apart into the predicted image and noise and mixes them again at the next lower level; levels
    go from 1 - 1/(2 steps) to 0 in equal steps, since at 1 the image can not be told from x_t. The predicted image is
    clipped to the range of the data (as in the code of arXiv 2006.11239), without which errors at high levels, divided
    by cos(pi t / 2), leave it by far.

    Args:
        model: left as found; run in evaluation mode.
        count: how many.
        pixels: of an image.
        steps: at least 1.
        seed: of the starting noise.
        limit: pixels of the data lie in [-limit, limit].

    Returns:
        Shape (count, pixels), within the limit.

    Raises:
        InputError: fewer than 1 image or step.

    >>> sample_images(Denoiser(pixels=4, width=8), 2, 4, steps=3).shape
    torch.Size([2, 4])
    """
    for name, value in (("count", count), ("steps", steps)):
        if value < 1:
            raise InputError(f"{name} is {value}; give at least 1")
    parameter = next(model.parameters())
    state = torch.randn(count, pixels, generator=torch.Generator().manual_seed(seed)).to(parameter)
    times = torch.linspace(1 - 0.5 / steps, 0, steps + 1).tolist()
    with evaluation(model), torch.no_grad():
        for now, after in itertools.pairwise(times):
            levels = torch.full((count,), now, dtype=state.dtype, device=state.device)
            noise = model(torch.cat([state, levels[:, None]], 1))
            sine, cosine = math.sin(0.5 * math.pi * now), math.cos(0.5 * math.pi * now)
            image = ((state - sine * noise) / cosine).clamp(-limit, limit)
            noise = (state - cosine * image) / sine
            state = mixed(image, noise, torch.full_like(levels, after))[:, :pixels]
    return state.clamp(-limit, limit)


def _normal(numbers: int, seed: int) -> Tensor:
    return torch.randn(numbers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
