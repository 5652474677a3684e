"""The curvature of a model: one block for each covered layer, and the vectors it acts on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.curvature.block import Block
from unlearn.curvature.digest import weights_digest
from unlearn.curvature.layers import Layer
from unlearn.curvature.per_layer import Made, PerLayer
from unlearn.curvature.vectors import Vector
from unlearn.data import as_rows
from unlearn.errors import InputError, StaleCurvatureError, did_you_mean, some


def check_damping(damping: float) -> None:
    """Refuse a damping that is not a finite number of at least 0."""
    if not (math.isfinite(damping) and damping >= 0):
        raise InputError(f"damping is {damping}; give a finite number of at least 0")


@dataclass(frozen=True)
class Curvature:
    """A block-diagonal approximation of the Gauss-Newton matrix G of the mean loss over the fitted rows.

    Made by :func:`unlearn.curvature.fit_curvature` or :func:`unlearn.curvature.load_curvature`. Vectors are
    dictionaries with the keys and shapes of ``model.named_parameters()``: covered parameters must be there; uncovered
    ones may be, and come back as zeros.

    Attributes:
        blocks: block of each covered layer, by layer name; streamed, each is read from its file when it is asked for.
        uncovered: why a parameter is not covered (``frozen``, ``skipped`` or ``unused``), by parameter name.
        rows: how many rows it was fitted on.
        weights_digest: digest of the weights it belongs to.
        data_fingerprint: fingerprint of the rows it was fitted on.
        options: the options it was fitted with.
        passes: how many times the fit went over the rows; None where that was not written down.
    """

    blocks: Mapping[str, Block]
    uncovered: dict[str, str]
    rows: int
    weights_digest: str
    data_fingerprint: str
    options: dict[str, Any]
    passes: int | None = None

    @property
    def kind(self) -> str:
        """``ekfac``, ``kfac`` or ``diagonal``."""
        return str(self.options["kind"])

    @property
    def fisher(self) -> str:
        """``sampled`` or ``exact``."""
        return str(self.options["fisher"])

    @property
    def layers(self) -> list[Layer]:
        """The covered layers, in the order of the model."""
        if isinstance(self.blocks, PerLayer):
            return list(self.blocks.layers.values())
        return [block.layer for block in self.blocks.values()]

    def per_layer(self, make: Callable[[Block], Made]) -> Mapping[str, Made]:
        """Return what is made of each block, by layer name; streamed, made anew whenever it is asked for."""
        if isinstance(self.blocks, PerLayer):
            return PerLayer(self.layers, lambda layer: make(self.blocks[layer.name]))
        return {name: make(block) for name, block in self.blocks.items()}

    @property
    def covered(self) -> list[str]:
        """Names of the covered parameters."""
        return [name for layer in self.layers for name in layer.parameters]

    @property
    def mean_eigenvalue(self) -> float:
        """Mean of all eigenvalues: the trace of the approximation by its dimension."""
        total = sum(float(block.eigenvalues.sum(dtype=torch.float64)) for block in self.blocks.values())
        return total / sum(math.prod(layer.shape) for layer in self.layers)

    def matvec(self, vector: Vector) -> Vector:
        """Return G v in the approximation."""
        return self._apply(vector, lambda block, part: block.matvec(part))

    def solve(self, vector: Vector, *, damping: float) -> Vector:
        """Return (G + damping)^-1 v, exactly in the approximation.

        Args:
            vector: the right-hand side.
            damping: added to every eigenvalue; weight decay is not in G, so callers add it here.

        Raises:
            InputError: damping is negative or not finite, or 0 where an eigenvalue is 0; or the vector does not fit.
        """
        check_damping(damping)
        if damping == 0:
            self.check_invertible()
        return self._apply(vector, lambda block, part: block.solve(part, damping))

    def check_invertible(self) -> None:
        """Refuse to be inverted without damping where an eigenvalue is 0.

        Raises:
            InputError: the layers that are singular.
        """
        singular = [name for name, block in self.blocks.items() if not (block.eigenvalues > 0).all()]
        if singular:
            raise InputError(
                f"the curvature of layers {some(map(repr, singular))} has eigenvalues of 0, so it has no inverse; "
                f"give damping > 0 (the mean eigenvalue is {self.mean_eigenvalue:.3g})"
            )

    def check(self, model: nn.Module, data: Any = None) -> None:
        """Refuse a model with other weights, or data with other rows, than those it was fitted on.

        Raises:
            StaleCurvatureError: what differs.
        """
        digest = weights_digest(model)
        if digest != self.weights_digest:
            raise StaleCurvatureError(
                f"the curvature belongs to weights {self.weights_digest[:12]}, the model has {digest[:12]}; fit it on "
                "this model"
            )
        if data is not None:
            fingerprint = as_rows(data).fingerprint
            if fingerprint != self.data_fingerprint:
                raise StaleCurvatureError(
                    f"the curvature was fitted on data {self.data_fingerprint[:12]}, this data is {fingerprint[:12]}; "
                    "fit it on these rows"
                )

    def save(self, folder: str | Path) -> None:
        """Write the factors to a folder; see :func:`unlearn.curvature.load_curvature`.

        Raises:
            FolderError: the folder can not be written.
        """
        from unlearn.curvature.store import save_curvature

        save_curvature(self, folder)

    def summary(self) -> str:
        """Return a table of the layers, at most 80 columns wide."""
        fit = f"{self.kind}, {self.fisher} Fisher, {self.rows} rows, mean eigenvalue {self.mean_eigenvalue:.3g}"
        lines = [fit, f"{'layer':18} {'kind':10} {'form':8} {'shape':13} {'min':>8} {'mean':>8} {'max':>8}"]
        clamped = 0
        for name, block in self.blocks.items():
            clamped += block.clamped
            values = block.eigenvalues
            shape = " x ".join(str(size) for size in block.layer.shape)
            low, mean, high = (f"{float(x):8.1e}" for x in (values.min(), values.mean(), values.max()))
            short = name if len(name) <= 18 else "..." + name[-15:]
            form = "diagonal" if self.kind == "diagonal" else block.layer.form
            lines.append(f"{short or '(model)':18} {block.layer.kind:10} {form:8} {shape:13} {low} {mean} {high}")
        lines.append(f"negative eigenvalues set to 0: {clamped}")
        if self.passes is not None:
            lines.append(f"passes over the rows: {self.passes}")
        lines += [f"uncovered: {name} ({reason})"[:80] for name, reason in self.uncovered.items()]
        return "\n".join(lines)

    def _apply(self, vector: Vector, function: Callable[[Block, Tensor], Tensor]) -> Vector:
        self._check_vector(vector)
        result = {name: torch.zeros_like(part) for name, part in vector.items() if name in self.uncovered}
        for block in self.blocks.values():
            part = function(block, block.layer.block(vector).to(block.eigenvalues.dtype))
            for name, value in block.layer.vector(part).items():
                result[name] = value.to(vector[name].dtype)
        return {name: result[name] for name in vector}

    def _check_vector(self, vector: Mapping[str, Tensor]) -> None:
        shapes = {name: shape for layer in self.layers for name, shape in layer.parameters.items()}
        missing = [name for name in shapes if name not in vector]
        if missing:
            raise InputError(f"the vector lacks the covered parameters {some(map(repr, missing))}; give all of them")
        for name, part in vector.items():
            if name not in shapes and name not in self.uncovered:
                known = did_you_mean(name, [*shapes, *self.uncovered])
                raise InputError(f"{name!r} of the vector is no parameter of the model; {known}")
            if name in shapes and tuple(part.shape) != shapes[name]:
                raise InputError(
                    f"{name!r} of the vector has shape {tuple(part.shape)}; the parameter has shape {shapes[name]}"
                )
