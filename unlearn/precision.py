"""Half precision: forward and backward passes in bfloat16 or float16; weights, sums and factors in float32 at least."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.errors import InputError

__all__ = ["half_precision"]

HALF = (torch.bfloat16, torch.float16)
_passes: ContextVar[torch.dtype | None] = ContextVar("unlearn-passes", default=None)


@contextmanager
def half_precision(dtype: torch.dtype) -> Iterator[None]:
    """Run the forward and backward passes of fits, scores and edits within the block in half precision.

    The model is run under ``torch.autocast`` of this type. What is made of the passes is float32 at least: outputs and
    losses, sums over rows, factors, their decompositions, solves, and the weights of an edit. The type is in
    ``Curvature.options`` and in the options of scores under ``precision``, and in the notes of an edit.

    bfloat16 has the range of float32 and eight bits. float16 has eleven bits and ends at 65504: each row's
    gradient is scaled by a power of two before its backward pass, values that overflow are an error, and edits and
    exact Gauss-Newton products, whose sums over rows have no scale that suits all, are refused. Training, optima,
    audits and verdicts are refused in either type; an edit replays recorded steps in the type of the weights.

    Args:
        dtype: ``torch.bfloat16`` or ``torch.float16``.

    Raises:
        InputError: another type.

    >>> from unlearn.curvature import fit_curvature
    >>> model, data = nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1]))
    >>> with half_precision(torch.bfloat16):
    ...     curvature = fit_curvature(model, data)
    >>> curvature.options["precision"], curvature.blocks[""].eigenvalues.dtype
    ('torch.bfloat16', torch.float32)
    """
    if dtype not in HALF:
        raise InputError(f"half precision is asked for in {dtype}; give torch.bfloat16 or torch.float16")
    with _passes_in(dtype):
        yield


def precision_of_weights() -> AbstractContextManager[None]:
    """Run passes within the block in the type of the weights, as recorded steps were."""
    return _passes_in(None)


@contextmanager
def _passes_in(dtype: torch.dtype | None) -> Iterator[None]:
    token = _passes.set(dtype)
    try:
        yield
    finally:
        _passes.reset(token)


def type_of_passes() -> torch.dtype | None:
    """Return the type that passes are run in; None for that of the weights."""
    return _passes.get()


def precision_name() -> str | None:
    """Return the name of the type that passes are run in; None for that of the weights."""
    dtype = _passes.get()
    return None if dtype is None else str(dtype)


def precision_option() -> dict[str, str]:
    """Return what options of scores say of the passes: nothing where they are in the type of the weights.

    >>> with half_precision(torch.bfloat16):
    ...     precision_option()
    {'precision': 'torch.bfloat16'}
    """
    name = precision_name()
    return {} if name is None else {"precision": name}


def refuse_half(what: str, *, only: torch.dtype | None = None) -> None:
    """Refuse half precision where it can not be meant.

    Args:
        what: what is refused, with its verb, for the message.
        only: the type that is refused; both if None.

    Raises:
        InputError: what to do instead.
    """
    dtype = _passes.get()
    if dtype is not None and only in (None, dtype):
        instead = "leave unlearn.half_precision" if only is None else "take torch.bfloat16, or leave half_precision"
        raise InputError(f"{what} not run in {dtype}; {instead} for it")


@contextmanager
def passes(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run the model's forward pass within the block in the type of :func:`half_precision`, and its parts uncompiled.

    Casts of weights are not kept between their uses, so that a weight's gradients add up in its own type. What
    ``torch.compile`` made is run as it was written: within compiled code no use of a parameter can be seen.

    Raises:
        InputError: ``torch.autocast`` is on around it, or the device has none.
    """
    kind, dtype = device.type, _passes.get()
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        raise InputError(
            "torch.autocast is on, which would round sums, factors and solves too; leave it, and use "
            f"unlearn.half_precision({torch.get_autocast_dtype(kind)}) for the passes alone"
        )
    with _uncompiled(model):
        if dtype is None:
            yield
            return
        if not torch.amp.is_autocast_available(kind):
            raise InputError(f"torch has no autocast for the device {kind!r}; leave unlearn.half_precision")
        with torch.autocast(kind, dtype, cache_enabled=False):
            yield


def _uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Return the context; without torch's compiler, which takes seconds to load, nothing can be compiled.

    Each change of the stance takes three references to None away in torch 2.6 and 2.7. Python ends a process that has
    none left, before 3.12; there it is changed only for a model that has compiled modules.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    if sys.version_info < (3, 12) and not any(map(_is_compiled, model.modules())):
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def at_least_float32(x: Tensor) -> Tensor:
    """Return a tensor of half precision in float32, any other as it is.

    >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype, at_least_float32(torch.ones(1).double()).dtype
    (torch.float32, torch.float64)
    """
    return x.float() if x.dtype in HALF else x


def widened(model: nn.Module) -> nn.Module:
    """Return a copy of a model with weights of half precision in float32; a model that has none itself.

    Inputs of half precision are cast on their way in. It stands for the model where vectors of float32 meet its
    weights; its outputs are those of the model but for the model's own rounding.

    >>> model = nn.Linear(2, 1).bfloat16()
    >>> widened(model)(torch.ones(1, 2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    if not any(tensor.dtype in HALF for tensor in (*model.parameters(), *model.buffers())):
        return model
    wide = copy.deepcopy(model)
    wide._apply(at_least_float32)  # type: ignore[no-untyped-call]
    wide.register_forward_pre_hook(_widen_inputs, with_kwargs=True)
    return wide


def _widen_inputs(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    def wide(value: Any) -> Any:
        return at_least_float32(value) if isinstance(value, Tensor) else value

    return tuple(map(wide, arguments)), {name: wide(value) for name, value in keywords.items()}


def power_of_two(size: Tensor) -> Tensor:
    """Return powers of two that bring sizes to between 1/2 and 1; 1 where a size is 0.

    Scaling by them is exact. float16 has nothing between 0 and 6e-8, where gradients of sure rows are.

    >>> power_of_two(torch.tensor([3.0, 2e-9, 0.0])).tolist()
    [0.25, 268435456.0, 1.0]
    """
    exponent = torch.frexp(size.float()).exponent.clamp(-100, 100)
    return torch.ldexp(torch.ones_like(size), -exponent)


def check_overflow(values: Tensor, what: str) -> Tensor:
    """Return values of a backward pass in float16.

    Raises:
        InputError: some are not finite.
    """
    if not torch.isfinite(values).all():
        raise InputError(f"{what} pass 65504, the largest float16; use torch.bfloat16, or leave half precision")
    return values
