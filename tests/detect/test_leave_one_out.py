"""Influence against leaving single rows out of a logistic regression on real data, each trained to its optimum."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from unlearn.curvature import Basis, Block, Curvature, find_layers, weights_digest
from unlearn.data import Rows, load_data
from unlearn.detect import influence
from unlearn.tasks import get_task
from unlearn.training import train_to_optimum

WEIGHT_DECAY = 0.01
LEFT_OUT, QUERIES = 12, 20


def table(split: str) -> Rows:
    """Return breast-cancer in float64, with a column of ones."""
    rows = load_data("breast-cancer", split)  # type: ignore[arg-type]
    x, y = rows.batch(torch.arange(len(rows)))
    return Rows.from_tensors(torch.cat([x, torch.ones(len(x), 1)], 1).double(), y, ids=rows.ids)


def copied(rows: Rows, copies: int) -> Rows:
    """Return the rows several times over: the optimum is the same, and a copy is a part of a row."""
    x, y = rows.batch(torch.arange(len(rows)))
    ids = [f"{row}/{k}" for k in range(copies) for row in rows.ids]
    return Rows.from_tensors(x.repeat(copies, 1), y.repeat(copies), ids=ids)


def optimum(rows: Rows, weight_decay: float) -> nn.Module:
    start = nn.Linear(31, 2, bias=False).double()
    nn.init.zeros_(start.weight)
    return train_to_optimum(start, rows, weight_decay=weight_decay, gradient_tolerance=1e-10)[0]


def exact_curvature(model: nn.Module, rows: Rows) -> Curvature:
    """Return the exact Hessian of a two-class linear model: (e e^T) (x) (1/n) sum p (1-p) x x^T with e = (1, -1)."""
    x, _ = rows.batch(torch.arange(len(rows)))
    p = model(x).detach().softmax(1)[:, 0]
    values, vectors = torch.linalg.eigh(x.T @ (x * (p * (1 - p))[:, None]) / len(rows))
    outputs = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)[None] / 2**0.5
    (layer,) = find_layers(model, rows).layers
    block = Block(layer, Basis(vectors[None], outputs), torch.stack([2 * values, 0 * values])[None])
    options = {"kind": "diagonal", "fisher": "exact", "task": "classification"}
    return Curvature({layer.name: block}, {}, len(rows), weights_digest(model), rows.fingerprint, options)


def losses(model: nn.Module, rows: Rows) -> Tensor:
    x, y = rows.batch(torch.arange(len(rows)))
    with torch.no_grad():
        return get_task("classification").loss(model(x), y)


@cache
def predicted_and_exact(copies: int) -> tuple[Tensor, Tensor]:
    """Return -I / n and the change of the queries' losses when a row (of one copy) is left out, (queries, rows).

    The rows are those of the largest and some of the smaller influences.
    """
    base, queries = table("train"), table("test").at(torch.arange(QUERIES))
    model = optimum(base, WEIGHT_DECAY)
    harm = influence(
        model,
        base,
        queries,
        curvature=exact_curvature(model, base),
        damping=0.0,
        weight_decay=WEIGHT_DECAY,
    )
    order = harm.norm(dim=0).argsort(descending=True)
    chosen = order[torch.cat([torch.arange(LEFT_OUT // 2), torch.arange(20, 200, 30)])]
    rows, before = copied(base, copies), losses(model, queries)
    n = len(rows)
    # with fixed 1/n the objective without a row is ((n-1)/n) (mean loss + (w n / (n-1)) / 2 ||theta||^2)
    decay = WEIGHT_DECAY * n / (n - 1)
    changes = [losses(optimum(rows.without([rows.ids[i]]), decay), queries) - before for i in chosen.tolist()]
    return -harm[:, chosen] / n, torch.stack(changes, 1)


def errors(copies: int) -> Tensor:
    """Return for each row the error of the prediction over the size of the change, (rows,)."""
    predicted, exact = predicted_and_exact(copies)
    return (predicted - exact).norm(dim=0) / exact.norm(dim=0)


def test_whole_rows_are_predicted_to_first_order_with_their_sign() -> None:
    # rejects the other sign; one row changes the losses of the 20 queries by 1.5 (norm), far beyond first order
    predicted, exact = predicted_and_exact(1)
    assert ((predicted > 0) == (exact > 0)).double().mean() > 0.95
    assert errors(1).max() < 0.5
    assert errors(1)[-LEFT_OUT // 2 :].max() < 0.1


def test_the_error_halves_when_half_a_row_is_left_out_and_the_limit_is_the_influence() -> None:
    # rejects every wrong factor, the Hessian without weight decay, and the decay of the smaller data
    predicted, quarter = predicted_and_exact(4)
    half = predicted_and_exact(2)[1]
    assert torch.equal(predicted > 0, quarter > 0)
    ratio = errors(4) / errors(2)
    assert ((ratio > 0.4) & (ratio < 0.65)).all()
    # n change = -I + c / copies + O(1 / copies^2): two of them give -I but for the square of the first error
    limit = 2 * quarter - half / 2
    remaining = (limit - predicted).norm(dim=0) / predicted.norm(dim=0)
    assert (remaining < 2 * errors(2) ** 2).all()
