"""The damping of Adam, (sqrt(v) + eps) / sum of rates, against Adam itself on least squares, with and without rows.

It stands on second moments that are stationary over the training, as the noise of small batches makes them: Adam is
then gradient descent in a fixed metric. Full-batch Adam has moments that fall with the gradient; there it fails.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unlearn.repair.damping import damping_of
from unlearn.training import Snapshot, TrainingRecord

ROWS, GONE, STEPS, RATE, BATCH = 60, 3, 200, 0.002, 10
SCALES = torch.tensor([0.3] * 5 + [0.03] * 5, dtype=torch.float64)


def unrolled(x: Tensor, y: Tensor, batches: list[Tensor], keep: Tensor) -> tuple[nn.Linear, Snapshot]:
    """Adam over the batches, removed rows leaving their places empty."""
    model = nn.Linear(len(SCALES), 1, bias=False).double()
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for batch in batches:
        seen = batch[keep[batch]]
        optimizer.zero_grad()
        (0.5 * (model(x[seen])[:, 0] - y[seen]).square()).mean().backward()
        optimizer.step()
    return model, Snapshot.take(model, optimizer)


def changes(seed: int, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the true change of the weights, G of the kept rows, the right-hand side, and the damping of the rule."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, len(SCALES), generator=draw, dtype=torch.float64) * SCALES
    y = x @ (torch.randn(len(SCALES), generator=draw, dtype=torch.float64) / SCALES)
    y += torch.randn(ROWS, generator=draw, dtype=torch.float64)
    y[:GONE] += 6
    batches = [torch.randperm(ROWS, generator=draw)[:batch] for _ in range(STEPS)]
    keep = torch.arange(ROWS) >= GONE
    model, snapshot = unrolled(x, y, batches, torch.ones(ROWS, dtype=torch.bool))
    again, _ = unrolled(x, y, batches, keep)
    record = TrainingRecord("adam", RATE, STEPS, task="regression")
    damping = damping_of("horizon", record, None, snapshot, model)
    assert isinstance(damping, dict)
    residual = model(x[:GONE]).detach()[:, 0] - y[:GONE]
    gauss_newton, right = x[keep].T @ x[keep] / int(keep.sum()), x[:GONE].T @ residual / int(keep.sum())
    return (again.weight - model.weight).detach()[0], gauss_newton, right, damping["weight"][0]


def off(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


def test_the_metric_holds_under_small_batches_and_no_scalar_does() -> None:
    """Means over six seeds. Rejects a rule without the sum of rates, v for its root, and one number for all weights."""
    drawn = [changes(seed, BATCH) for seed in range(6)]

    def measured(rule: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        steps = [(torch.linalg.solve(g + rule(d).diag(), right), true) for true, g, right, d in drawn]
        cosines = [float(torch.cosine_similarity(found, true, 0)) for found, true in steps]
        return sum(cosines) / 6, sum(off(found, true) for found, true in steps) / 6

    cosine, error = measured(lambda d: d)
    scalars = [measured(lambda d, k=k: torch.full_like(d, 10 ** (k / 4))) for k in range(-24, 13)]  # type: ignore[misc]
    horizon = RATE * STEPS
    others = [measured(lambda d: d * horizon), measured(lambda d: (d * horizon).square() / horizon)]
    assert cosine > 0.8
    assert error < 0.8
    assert all(one < cosine and distance > 1.2 * error for one, distance in scalars)
    assert all(distance > 1.2 * error for _, distance in others)


def test_it_does_not_hold_for_full_batches() -> None:
    """So the limit is stated, not guessed."""
    true, gauss_newton, right, damping = changes(0, ROWS)
    assert off(torch.linalg.solve(gauss_newton + damping.diag(), right), true) > 1
