"""Exact products with the Gauss-Newton matrix, and exact loss gradients, streamed over rows.

G = (1/n) sum_b J_b^T H_b J_b with J_b the Jacobian of row b's outputs and H_b the Hessian of its loss in outputs, the
output Fisher (arXiv 1412.1193, section 6): one Jacobian-vector and one vector-Jacobian product for each batch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp

from unlearn.curvature.digest import check_ranks
from unlearn.curvature.vectors import Vector, add_scaled_, zeros_like
from unlearn.data import DEFAULT_BATCH, Rows, as_rows, within_memory
from unlearn.data.within_memory import is_out_of_memory
from unlearn.errors import InputError, did_you_mean, some
from unlearn.inputs import Inputs, call_model
from unlearn.modes import evaluation, plain_attention
from unlearn.precision import at_least_float32, check_overflow, power_of_two, refuse_half, type_of_passes, widened
from unlearn.predict import rows_within
from unlearn.ranks import sum_over_ranks
from unlearn.tasks import Task, get_task

ROW_PRODUCT_COST = 4

# The first forward-mode derivative loads this module of torch, which warns of torch's own use of torch.jit.script.
with warnings.catch_warnings(), contextlib.suppress(ImportError):
    warnings.simplefilter("ignore", FutureWarning)
    importlib.import_module("torch._decomp.decompositions_for_jvp")


class GaussNewton:
    """The Gauss-Newton matrix of the mean loss over rows, at the weights the model had when this was made.

    Weights of half precision are taken in float32, and so are its products. ``copied=False`` reads the model's own
    weights, which must stay as they are while it is used.

    Attributes:
        parameters: names of the parameters it acts on.
        cost: what its products cost so far: 4 for each row of each product (forward 1; JVP 2 and VJP 2 share it). Of
            rows with many outputs 5: there the VJP has a forward pass of its own, as the graph of both at once takes
            many times the memory.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Rows,
        task: Task,
        parameters: Iterable[str] | None,
        batch_size: int = DEFAULT_BATCH,
        *,
        copied: bool = True,
    ) -> None:
        refuse_half("exact Gauss-Newton products are", only=torch.float16)
        check_ranks(model, rows)
        self._model = model = widened(model)
        self._rows = rows
        self._task = task
        self._batch_size = batch_size
        self._apart = rows_within(model, rows, batch_size) < batch_size
        self._state = {name: value.detach().clone() if copied else value.detach() for name, value in _state(model)}
        self.parameters = _names(model, parameters)
        self.cost = 0

    def matvec(self, vector: Vector) -> Vector:
        """Return G v.

        Raises:
            InputError: keys or shapes of the vector are not those of the parameters, or passes are in float16.
        """
        refuse_half("exact Gauss-Newton products are", only=torch.float16)
        weights = {name: self._state[name] for name in self.parameters}
        _check_vector(vector, weights)
        fixed = {name: value for name, value in self._state.items() if name not in weights}
        tangent = {name: vector[name].to(weights[name].dtype) for name in weights}
        total = zeros_like(weights)

        def product(_: Tensor, inputs: Inputs, labels: Tensor) -> Vector:
            def outputs(chosen: Vector) -> Tensor:
                return call_model(self._model, inputs, {**fixed, **chosen})

            def push(chosen: Vector) -> tuple[Tensor, Tensor]:
                return jvp(outputs, (chosen,), (tangent,))  # type: ignore[return-value]

            if self._apart:
                with torch.no_grad():
                    values, tangents = push(weights)
                cotangent = self._task.fisher_product(values, labels, tangents)
                del values, tangents
                with torch.enable_grad():
                    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
                    _add_pulled(total, leaves, outputs(leaves), cotangent)
                return {}
            values, pull, tangents = vjp(push, weights, has_aux=True)  # type: ignore[misc]
            (found,) = pull(self._task.fisher_product(values, labels, tangents))
            return found  # type: ignore[no-any-return]

        size, whole = self._batch_size, False
        while not whole:
            try:
                for part in _over_batches(self._model, self._rows, size, product, "Gauss-Newton product"):
                    if part:
                        add_scaled_(total, 1.0, part)
                    del part
                whole = True
            except _HalfAddedError as error:
                size = error.smaller(self._rows)
                for added in total.values():
                    added.zero_()
        sum_over_ranks(*total.values())
        self.cost += (ROW_PRODUCT_COST + self._apart) * len(self._rows)
        return {name: total[name].div_(len(self._rows)) for name in vector}


def gauss_newton(
    model: nn.Module,
    data: Any,
    *,
    task: str | Task = "classification",
    parameters: Iterable[str] | None = None,
    batch_size: int = DEFAULT_BATCH,
) -> GaussNewton:
    """Return the exact Gauss-Newton operator of the mean loss over the rows.

    Args:
        model: any module; left as found, run in evaluation mode.
        data: the rows; labels are not used. See :func:`unlearn.data.as_rows`.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        parameters: names of the parameters it acts on; by default all that are trained.
        batch_size: rows at a time.

    Raises:
        InputError: an unknown parameter name.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> G = gauss_newton(model, (x, torch.zeros(2)), task="regression")
    >>> G.matvec({"weight": torch.tensor([[1.0, 1.0]])})["weight"]  # x^T x / 2
    tensor([[0.5000, 2.0000]])
    """
    return GaussNewton(model, as_rows(data), get_task(task), parameters, batch_size)


def loss_gradient(
    model: nn.Module,
    data: Any,
    *,
    task: str | Task = "classification",
    parameters: Iterable[str] | None = None,
    batch_size: int = DEFAULT_BATCH,
) -> Vector:
    """Return the gradient of the *sum* of the rows' losses, float32 at least; ``.grad`` is left as found.

    Args:
        model: any module; run in evaluation mode.
        data: the rows. See :func:`unlearn.data.as_rows`.
        task: ``classification``, ``regression`` or a :class:`unlearn.tasks.Task`.
        parameters: names of the parameters; by default all that are trained.
        batch_size: rows at a time.

    Raises:
        InputError: an unknown parameter name, or a gradient that overflows float16.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.ones_(model.weight)
    >>> loss_gradient(model, (torch.tensor([[1.0], [2.0]]), torch.zeros(2)), task="regression")
    {'weight': tensor([[5.]])}
    """
    rows, loss = as_rows(data), get_task(task)
    check_ranks(model, rows)
    names = _names(model, parameters)
    state = dict(_state(model))
    weights = {name: state[name].detach().requires_grad_() for name in names}
    total = zeros_like({name: at_least_float32(state[name].detach()) for name in names})
    narrow = torch.float16 in (type_of_passes(), *(weight.dtype for weight in weights.values()))

    def gradient(_: Tensor, inputs: Inputs, labels: Tensor) -> Vector:
        with torch.enable_grad():
            outputs = call_model(model, inputs, weights)
            loss.check(outputs.detach(), labels)
            value = loss.loss(outputs, labels).sum()
            if narrow:  # the largest output gradient of the batch becomes about 1
                scale = power_of_two(loss.output_gradient(outputs.detach(), labels).abs().max())
                value = value * scale
        found = torch.autograd.grad(value, list(weights.values()), materialize_grads=True)
        if narrow:
            found = tuple(check_overflow(part, "loss gradients").float() / scale for part in found)
        return dict(zip(names, found, strict=True))

    for part in _over_batches(model, rows, batch_size, gradient, "loss gradient"):
        add_scaled_(total, 1.0, part)
        del part
    sum_over_ranks(*total.values())
    return total


class _HalfAddedError(Exception):
    """Memory ran out in the backward pass of so many rows, when some of its product had been added to the total."""

    def __init__(self, rows: int, error: RuntimeError) -> None:
        super().__init__(str(error))
        self._rows = rows

    def smaller(self, rows: Rows) -> int:
        """Return the batch size to begin anew with."""
        if self._rows == 1:
            raise InputError(f"memory runs out with a single row of {rows.name}: {self}") from self
        size = self._rows // 2
        warnings.warn(
            f"memory ran out with batches of {self._rows} rows of {rows.name}, so a product began anew with {size}",
            stacklevel=3,
        )
        return size


def _add_pulled(total: Vector, leaves: Vector, outputs: Tensor, cotangent: Tensor) -> None:
    """Add J^T c to a total as the backward pass comes to each parameter, so that it is never held beside the total."""
    added = 0

    def add(name: str, gradient: Tensor) -> Tensor:
        nonlocal added
        total[name].add_(gradient)
        added += 1
        return gradient.new_zeros(()).expand_as(gradient)

    for name, leaf in leaves.items():
        leaf.register_hook(functools.partial(add, name))  # type: ignore[no-untyped-call]
    try:
        torch.autograd.grad(outputs, list(leaves.values()), cotangent, allow_unused=True)
    except RuntimeError as error:
        if added and is_out_of_memory(error):
            raise _HalfAddedError(len(outputs), error) from error
        raise


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _names(model: nn.Module, parameters: Iterable[str] | None) -> list[str]:
    known = dict(model.named_parameters())
    if parameters is None:
        return [name for name, parameter in known.items() if parameter.requires_grad]
    names = list(parameters)
    for name in names:
        if name not in known:
            raise InputError(f"the model has no parameter {name!r}; {did_you_mean(name, known)}")
    return names


def _check_vector(vector: Vector, weights: Vector) -> None:
    wrong = sorted(vector.keys() ^ weights.keys())
    if wrong:
        raise InputError(f"vector and operator differ in the parameters {some(map(repr, wrong))}; give the same keys")
    for name, weight in weights.items():
        if vector[name].shape != weight.shape:
            shapes = tuple(vector[name].shape), tuple(weight.shape)
            raise InputError(f"{name!r} of the vector has shape {shapes[0]}; the parameter has shape {shapes[1]}")


def _over_batches(
    model: nn.Module,
    rows: Rows,
    batch_size: int,
    work: Callable[[Tensor, Inputs, Tensor], Vector],
    description: str,
) -> Iterator[Vector]:
    with evaluation(model), plain_attention():
        device = next(model.parameters()).device
        size = rows_within(model, rows, batch_size)
        yield from within_memory(rows, size, device, work, description, shared=True)
