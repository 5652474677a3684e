"""Where a forward pass uses parameters: function calls, found by intercepting torch functions.

What matters for a parameter's gradient is what the forward pass does with it, not the class of the module that holds
it: a weight that two modules share, that a module applies twice or that a user's own module hands to ``F.linear`` is
seen all the same. A use that is not one of these calls is noted as another use, so that none goes unnoticed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from unlearn.errors import InputError
from unlearn.precision import at_least_float32

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CALLS: dict[Callable[..., Any], tuple[str, tuple[str, ...]]] = {
    F.linear: ("Linear", ("input", "weight", "bias")),
    torch.addmm: ("Linear", ("bias", "input", "weight")),
    F.conv1d: ("Conv1d", _CONV),
    F.conv2d: ("Conv2d", _CONV),
    F.embedding: (
        "Embedding",
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    ),
    F.layer_norm: ("LayerNorm", ("input", "normalized_shape", "weight", "bias", "eps")),
    F.rms_norm: ("RMSNorm", ("input", "normalized_shape", "weight", "eps")),
    F.group_norm: ("GroupNorm", ("input", "num_groups", "weight", "bias", "eps")),
    F.batch_norm: (
        "BatchNorm",
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
}
_ROLES = ("weight", "bias")
_RESHAPES = (Tensor.view, Tensor.reshape, Tensor.flatten, torch.reshape, torch.flatten)
_ATTENTION = inspect.signature(F.multi_head_attention_forward)


@dataclass(frozen=True)
class Call:
    """One call of a function that a kind of layer is known by.

    Attributes:
        kind: ``Linear``, ``Conv1d``, ``Conv2d``, ``Embedding``, ``LayerNorm``, ``RMSNorm``, ``GroupNorm`` or
            ``BatchNorm``.
        weight: name of the parameter that is its weight; None where it has none, or one that is not watched.
        bias: the same of its bias.
        arguments: its arguments by name, tensors detached.
        edge: where a backward pass meets its output; None once the graph is let go.
        shape: shape of its output, and of gradients there; where the call itself was given rows and positions in one
            dimension (as by ``x.view(-1, i)``), with each in its own.
        transposed: whether the weight is (inputs, outputs), as that of GPT-2's ``Conv1D``.
    """

    kind: str
    weight: str | None
    bias: str | None
    arguments: dict[str, Any]
    edge: GradientEdge | None
    shape: torch.Size
    transposed: bool = False

    @property
    def input(self) -> Tensor:
        """What it was applied to, detached."""
        found: Tensor = self.arguments["input"]
        return found

    def normalized(self) -> Tensor:
        """Return what a normalisation multiplies its weight with, float32 at least."""
        function = next(function for function, (kind, _) in _CALLS.items() if kind == self.kind)
        alone = {name: value for name, value in self.arguments.items() if name not in _ROLES}
        wide = {name: at_least_float32(x) if isinstance(x, Tensor) else x for name, x in alone.items()}
        found: Tensor = function(**wide)
        return found


class CallRecorder(TorchFunctionMode):
    """Records, while it is entered, the calls that use parameters of a model, in their order.

    Attributes:
        calls: the calls of known kinds.
        others: names of parameters that something else was done with, in a way that gradients pass through.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    >>> with CallRecorder(model.named_parameters()) as recorder:
    ...     _ = model(torch.zeros(1, 2)) * model[0].bias
    >>> [(call.kind, call.weight) for call in recorder.calls], recorder.others
    ([('Linear', '0.weight'), ('LayerNorm', '1.weight')], {'0.bias'})
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.others: set[str] = set()
        self._names = {id(parameter): name for name, parameter in parameters}
        self._flattened: dict[int, tuple[Tensor, torch.Size]] = {}  # the tensor is held so that its id stays its own

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, and note what it did with parameters."""
        kwargs = kwargs or {}
        if function is F.multi_head_attention_forward:
            return self._attention(_ATTENTION.bind(*args, **kwargs).arguments)
        if function in _CALLS and not {"beta", "alpha", "out"} & kwargs.keys():
            kind, names = _CALLS[function]
            arguments = dict(zip(names, args, strict=False)) | kwargs
            return self._call(function, kind, arguments, function is torch.addmm)
        result = function(*args, **kwargs)
        if function in _RESHAPES:
            self._note_reshape(args[0], result)
        self._note_others((args, kwargs), result)
        return result

    def _call(
        self, function: Callable[..., Any], kind: str, arguments: dict[str, Any], transposed: bool = False
    ) -> Tensor:
        if kind == "BatchNorm" and arguments.get("training"):
            raise InputError(
                "a batch norm without running statistics makes each row's output depend on the rows beside it, so rows "
                "have no gradients of their own; give it running statistics (track_running_stats=True)"
            )
        output: Tensor = function(*arguments.values()) if transposed else function(**arguments)
        weight, bias = (self._names.get(id(arguments.get(role))) for role in _ROLES)
        plain = not (arguments.get("max_norm") or arguments.get("scale_grad_by_freq"))
        alone = {key: value for key, value in arguments.items() if key not in _ROLES}
        self._note_others(alone if plain else arguments, output)
        if output.requires_grad and (weight or bias) and plain:
            kept = {key: value.detach() if isinstance(value, Tensor) else value for key, value in arguments.items()}
            edge, shape = get_gradient_edge(output), output.shape
            _, leading = self._flattened.get(id(arguments["input"]), (None, None))
            if kind == "Linear" and leading is not None:
                kept["input"] = kept["input"].reshape(*leading, -1)
                shape = torch.Size([*leading, shape[-1]])
            self.calls.append(Call(kind, weight, bias, kept, edge, shape, transposed))
        return output

    def _note_reshape(self, source: Tensor, result: Tensor) -> None:
        """Keep which dimensions were made one in front of the last, which stayed; rows can still be told apart."""
        if result.ndim == 2 and source.ndim > 2 and result.shape[-1] == source.shape[-1]:
            self._flattened[id(result)] = result, source.shape[:-1]

    def _attention(self, given: dict[str, Any]) -> Any:
        """Take the projections out of an attention as calls of their own; with unit projections it does the rest.

        A product with the unit matrix is exact, so the outputs are those of the attention as it stands.
        """

        def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return self._call(F.linear, "Linear", {"input": x, "weight": weight, "bias": bias})

        query, key, value = given["query"], given["key"], given["value"]
        bias = given.get("in_proj_bias")
        if given.get("use_separate_proj_weight"):
            weights = [given[f"{name}_proj_weight"] for name in "qkv"]
            parts = [linear(x, weight) for x, weight in zip((query, key, value), weights, strict=True)]
            if bias is not None:
                self._note_others([bias], parts[0])
                parts = [part + share for part, share in zip(parts, bias.chunk(3), strict=True)]
        else:
            different = {id(x): x for x in (query, key, value)}
            projected = {which: linear(x, given["in_proj_weight"], bias) for which, x in different.items()}
            parts = [projected[id(x)].chunk(3, -1)[k] for k, x in enumerate((query, key, value))]
        unit = torch.eye(parts[0].shape[-1], dtype=parts[0].dtype, device=parts[0].device)
        rest = given | dict(zip(("query", "key", "value"), parts, strict=True))
        rest |= {f"{name}_proj_weight": unit for name in "qkv"}
        rest |= {"in_proj_weight": None, "in_proj_bias": None, "use_separate_proj_weight": True}
        rest |= {"out_proj_weight": unit, "out_proj_bias": None}
        attended, weights_of = F.multi_head_attention_forward(**rest)
        self._note_others([given.get("bias_k"), given.get("bias_v")], attended)
        return linear(attended, given["out_proj_weight"], given["out_proj_bias"]), weights_of

    def _note_others(self, arguments: Any, result: Any) -> None:
        found = {self._names[id(tensor)] for tensor in _tensors(arguments) if id(tensor) in self._names}
        if found and any(tensor.requires_grad for tensor in _tensors(result)):
            self.others |= found


def _tensors(value: Any) -> Iterable[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
