"""Every tensor the package makes is made on the device of the tensors it works with.

On a machine without an accelerator a second device is played by ``meta``: it is made the default device, so a tensor
made without a device lands there, and using it beside the model's tensors fails.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from curvature_cases import CASES, build, vector_of
from torch import Tensor

from unlearn.curvature import conjugate_gradient, fit_curvature, gauss_newton, layer_gradients, loss_gradient
from unlearn.data import Rows


class PreparedRows(Rows):
    """Rows that read their batches in advance: positions are CPU tensors by contract."""

    def prepare(self, size: int) -> PreparedRows:
        self.prepared = list(super().batches(size))
        assert self.fingerprint
        return self

    def batches(
        self, size: int = 0, device: torch.device | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        yield from self.prepared


@pytest.mark.parametrize("fisher", ["sampled", "exact"])
@pytest.mark.parametrize("kind", ["ekfac", "diagonal"])
@pytest.mark.parametrize("case", CASES)
def test_no_tensor_is_made_elsewhere(case: str, kind: str, fisher: str) -> None:
    model, rows = build(case)
    rows = PreparedRows.from_tensors(*rows.batch(torch.arange(len(rows))), classes=3).prepare(4)
    v = vector_of(model)
    with torch.device("meta"):
        assert torch.zeros(1).is_meta
        curvature = fit_curvature(model, rows, kind=kind, fisher=fisher)
        x = curvature.solve(curvature.matvec(v), damping=0.1)
        operator = gauss_newton(model, rows)
        x |= conjugate_gradient(operator.matvec, loss_gradient(model, rows), iterations=2).solution
        for _, gradients in layer_gradients(model, rows, "classification", curvature.layers):
            x |= {name: curvature.blocks[name].quadratic(a, d, 0.1) for name, (a, d) in gradients.items()}
    assert {part.device.type for part in x.values()} == {"cpu"}
