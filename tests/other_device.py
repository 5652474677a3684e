"""Another device that is none: tensors that say they are elsewhere, hold values, and refuse to meet one of the CPU.

PyTorch's fake tensors have no values, so nothing that looks at one (a step length, a cut-off) can run under them. These
hold a tensor of the CPU each. As on a GPU, an operation on tensors of both devices is refused unless the other one is a
single number, a factory puts its tensor where it is told, and there is no way to NumPy but by the CPU. The device calls
itself ``meta``, since ``cuda`` asks for a driver.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

THERE = torch.device("meta")
CPU = torch.device("cpu")
MOVES = ("_to_copy", "copy_", "_copy_from", "index_put_", "index_put", "index", "_index_put_impl_")
"""Operations that may take tensors of both devices: copies, and indices."""


class Elsewhere(Tensor):
    """A tensor that says it is on the device."""

    held: Tensor
    is_meta = False  # which would say that there are no values

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        found = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=THERE,
            requires_grad=False,
        )
        found.held = held
        return found

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class OtherDevice(TorchDispatchMode):
    """Within it factories may put tensors on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = [value for value in flat if isinstance(value, Elsewhere)]
    strangers = [value for value in flat if not isinstance(value, Elsewhere) and value.dim() > 0]
    name = func.overloadpacket.__name__
    if there and strangers and name not in MOVES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found another and cpu in {name}")
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    kwargs = {**kwargs, "device": CPU} if asked is not None else kwargs
    kwargs.pop("pin_memory", None)
    if name == "_efficientzerotensor":
        func = torch.ops.aten.zeros.default  # a zero without values would stay one
    found = func(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs))
    goes_there = bool(there) if asked is None else asked.type == "meta"
    if name in ("copy_", "index_put_", "_index_put_impl_"):
        return args[0]
    if goes_there and name.endswith("_") and not name.endswith("__") and isinstance(args[0], Elsewhere):
        return args[0]
    if not goes_there:
        return found
    out = kwargs.get("out")
    return tree_map(wrapped, found) if out is None else out


def unwrapped(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def wrapped(value: Any) -> Any:
    return Elsewhere(value) if isinstance(value, Tensor) and not isinstance(value, Elsewhere) else value


def moved(model: nn.Module) -> nn.Module:
    """Put a model there, in place."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Elsewhere(parameter.detach()), parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = Elsewhere(buffer)
    return model
