"""What a model is called with: one tensor, a tuple of tensors (positional arguments), or a mapping (keyword arguments).

First dimensions are rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unlearn.errors import InputError
from unlearn.precision import HALF, at_least_float32, passes

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Return the inputs with a function applied to each tensor.

    >>> import torch
    >>> map_tensors(lambda x: x + 1, {"ids": torch.tensor([1])})
    {'ids': tensor([2])}
    """
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: function(part) for name, part in inputs.items()}
    return tuple(function(part) for part in inputs)


def named_tensors(inputs: Inputs) -> dict[str, Tensor]:
    """Return the tensors by name: their key, their number in a tuple, nothing for a tensor alone.

    >>> import torch
    >>> list(named_tensors((torch.zeros(1), torch.ones(1))))
    ['0', '1']
    """
    if isinstance(inputs, Tensor):
        return {"": inputs}
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return {str(k): part for k, part in enumerate(inputs)}


def one_tensor(inputs: Inputs, purpose: str) -> Tensor:
    """Return the inputs where they are one tensor.

    Args:
        inputs: the inputs.
        purpose: what needs one tensor, for the message.

    Raises:
        InputError: they are several.

    >>> import torch
    >>> one_tensor(torch.ones(1), "a picture")
    tensor([1.])
    """
    if not isinstance(inputs, Tensor):
        raise InputError(f"{purpose} needs rows of one tensor; these have {', '.join(named_tensors(inputs))}")
    return inputs


def row_count(inputs: Inputs) -> int:
    """Return the number of rows.

    >>> import torch
    >>> row_count({"ids": torch.zeros(3, 2)})
    3
    """
    return len(next(iter(named_tensors(inputs).values())))


def shapes_of(inputs: Inputs) -> str:
    """Return the shapes, for messages.

    >>> import torch
    >>> shapes_of(torch.zeros(2, 3)), shapes_of((torch.zeros(1), torch.zeros(2)))
    ('(2, 3)', "{'0': (1,), '1': (2,)}")
    """
    shapes = {name: tuple(part.shape) for name, part in named_tensors(inputs).items()}
    return str(shapes.get("", shapes))


def call_model(model: nn.Module, inputs: Inputs, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return the model's outputs, float32 at least, at other weights where these are given.

    Outputs that are no tensor must have ``logits`` (as those of Hugging Face models have).

    Raises:
        InputError: outputs of another kind, or what :func:`unlearn.precision.passes` refuses.

    >>> import torch
    >>> call_model(nn.Identity(), torch.ones(1))
    tensor([1.])
    """
    arguments: tuple[Tensor, ...] = ()
    keywords: dict[str, Tensor] = {}
    if isinstance(inputs, Mapping):
        keywords = dict(inputs)
    else:
        arguments = (inputs,) if isinstance(inputs, Tensor) else inputs
    device = next(iter(named_tensors(inputs).values())).device
    with passes(model, device):
        try:
            if weights is None:
                returned = model(*arguments, **keywords)
            else:
                returned = functional_call(model, dict(weights), arguments, keywords)
        except RuntimeError as error:
            _check_types(model, inputs, error)
            raise
    outputs = outputs_tensor(returned)
    if outputs is None:
        raise InputError(
            f"{type(model).__name__} returns neither a tensor nor something with logits; wrap it in a module that "
            "returns one tensor, first dimension rows"
        )
    return at_least_float32(outputs)


def outputs_tensor(returned: object) -> Tensor | None:
    """Return the tensor that a model returned, or the ``logits`` in what it returned; None where there is neither.

    >>> import torch
    >>> outputs_tensor({"loss": torch.ones(1), "logits": torch.zeros(1)})
    tensor([0.])
    """
    if isinstance(returned, Tensor):
        return returned
    found = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    return found if isinstance(found, Tensor) else None


def _check_types(model: nn.Module, inputs: Inputs, error: RuntimeError) -> None:
    """Explain a forward pass that failed where the model's weights are half precision and its inputs are not."""
    rows = {part.dtype for part in named_tensors(inputs).values() if part.is_floating_point()}
    half = {parameter.dtype for parameter in model.parameters()}.intersection(HALF) - rows
    if rows and half and not isinstance(error, torch.OutOfMemoryError):
        raise InputError(
            f"the model's weights are {half.pop()}, inputs {rows.pop()}, and its forward pass fails ({error}); give "
            "rows in the type of the weights, or use unlearn.half_precision with it"
        ) from error
