"""Every layer kind in half precision: per-sample scores and exact products near those of float32."""

from __future__ import annotations

import copy

import pytest
import torch
from curvature_cases import CASES, build, vector_of
from torch import Tensor, nn

import unlearn
from unlearn.curvature import fit_curvature, gauss_newton
from unlearn.data import Rows


def scores(model: nn.Module, rows: Rows) -> Tensor:
    curvature = fit_curvature(model, rows, fisher="exact")
    return torch.from_numpy(unlearn.self_influence(model, rows, curvature=curvature, damping=0.1).values)


@pytest.mark.parametrize("case", CASES)
def test_every_layer_kind(case: str) -> None:
    """In passes of float32 weights and with weights of bfloat16."""
    model, rows = build(case, torch.float32)
    wanted, v = scores(model, rows), vector_of(model)
    product = torch.cat([part.flatten() for part in gauss_newton(model, rows).matvec(v).values()])
    with unlearn.half_precision(torch.float16):
        near = scores(model, rows)
    assert 0 < float((near - wanted).abs().max() / wanted.max()) < 0.01
    with unlearn.half_precision(torch.bfloat16):
        found = torch.cat([part.flatten() for part in gauss_newton(model, rows).matvec(v).values()])
    assert 0 < float((found - product).norm() / product.norm()) < 0.1
    inputs, labels = rows.batch(torch.arange(len(rows)))
    assert isinstance(inputs, Tensor)
    narrow = inputs.bfloat16() if inputs.is_floating_point() else inputs
    rows = Rows.from_tensors(narrow, labels, ids=rows.ids, classes=rows.classes)
    near = scores(copy.deepcopy(model).bfloat16(), rows)
    assert 0 < float((near - wanted).abs().max() / wanted.max()) < 0.08
