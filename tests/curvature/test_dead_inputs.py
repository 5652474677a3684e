"""Unit vectors in a basis are copied, not multiplied: values are those of the whole product."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unlearn.curvature import Basis, fit_curvature, layer_gradients
from unlearn.data import as_rows


def basis_of(groups: int) -> Basis:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.zeros(groups, 7, 7, dtype=torch.float64)
    for g in range(groups):
        dead = torch.tensor([4, 1, 6] if g == 0 else [0, 5])
        live = torch.tensor([k for k in range(7) if k not in dead])
        inputs[g, dead, torch.arange(len(dead))] = 1
        turned, _ = torch.linalg.qr(torch.randn(len(live), len(live), generator=generator, dtype=torch.float64))
        inputs[g, live, len(dead) :] = turned
    outputs, _ = torch.linalg.qr(torch.randn(groups, 3, 3, generator=generator, dtype=torch.float64))
    return Basis(inputs, outputs)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("positions", [1, 2, 9])
def test_rows_alive_on_dead_inputs_are_rotated_right(groups: int, positions: int) -> None:
    # a copy of the wrong entry, of another group's, or a row taken to be 0 there would show
    basis = basis_of(groups)
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(groups, 5, positions, 7, generator=generator, dtype=torch.float64)
    d = torch.randn(groups, 5, positions, 3, generator=generator, dtype=torch.float64)
    expected = torch.einsum("gbto,gbti,goO,giI->gbOI", d, a, basis.outputs, basis.inputs)
    torch.testing.assert_close(torch.cat(list(basis.gradients(a, d)), 1), expected, rtol=1e-12, atol=1e-12)
    if positions == 1:
        a2, d2 = basis.squares(a, [d])
        torch.testing.assert_close(d2[..., None] * a2[:, :, None], expected.square(), rtol=1e-12, atol=1e-12)


def test_unit_vectors_are_found_and_a_basis_of_units_alone_is_multiplied() -> None:
    assert basis_of(1)._units.tolist() == [[4, 1, 6]]
    assert basis_of(2)._units.tolist() == [[4, 1], [0, 5]]
    turned = basis_of(1).inputs.clone()
    turned[:, :, 1] *= -1  # a copy would have the wrong sign
    assert Basis(turned)._units.tolist() == [[4]]
    assert Basis(torch.eye(3)[None])._units is None
    assert Basis()._units is None


def test_scores_of_rows_that_are_alive_where_fitted_rows_are_dead() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    x[:, [2, 5]] = 0
    model, y = nn.Linear(8, 3).double(), torch.arange(20) % 3
    curvature = fit_curvature(model, (x, y))
    assert curvature.blocks[""].basis._units.shape == (1, 2)
    assert (curvature.blocks[""].eigenvalues[:, :, :2] == 0).all()
    rows = as_rows((x + torch.randn(20, 8, generator=generator, dtype=torch.float64), y))
    ((_, gradients),) = layer_gradients(model, rows, "classification", curvature.layers)
    a, d = gradients[""]
    found = curvature.blocks[""].quadratic(a, d, 0.1)
    for k in range(20):
        v = d[:, k].mT @ a[:, k]
        torch.testing.assert_close(found[k], (v * curvature.blocks[""].solve(v, 0.1)).sum(), rtol=1e-11, atol=0)
