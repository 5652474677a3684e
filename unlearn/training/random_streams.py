"""torch's random streams, of the CPU and of a device that has its own: kept, seeded and looked at."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def streams_kept(device: torch.device) -> AbstractContextManager[None]:
    """Leave the streams as they are found.

    >>> import torch
    >>> before = random_streams(torch.device("cpu"))
    >>> with streams_kept(torch.device("cpu")):
    ...     seed_streams(torch.device("cpu"), 7)
    >>> torch.equal(before[0], random_streams(torch.device("cpu"))[0])
    True
    """
    if _accelerator(device) is None:
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


def seed_streams(device: torch.device, seed: int) -> None:
    """Begin both anew."""
    torch.default_generator.manual_seed(seed)
    accelerator = _accelerator(device)
    if accelerator is not None:
        with accelerator.device(device):
            accelerator.manual_seed(seed)


def random_streams(device: torch.device) -> list[Tensor]:
    """Return where they are."""
    accelerator = _accelerator(device)
    return [torch.get_rng_state(), *([] if accelerator is None else [accelerator.get_rng_state(device)])]


def _accelerator(device: torch.device) -> Any:
    """Return torch's module of a device with random numbers of its own; None where the CPU's are used."""
    found = getattr(torch, device.type, None)
    return found if hasattr(found, "manual_seed") and hasattr(found, "device") else None
