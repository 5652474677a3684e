"""The unrolled edit: exact where training is linear, else the written-out recurrence; and how a method is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from repair_cases import STEPS, same_bits, training
from torch import nn

from unlearn.curvature import Curvature, fit_curvature, loss_gradient
from unlearn.data import Rows
from unlearn.errors import InputError, RecordError
from unlearn.repair import Changes, apply_changes
from unlearn.repair.correction import corrected
from unlearn.repair.impulses import bins_of, impulses
from unlearn.repair.method import MANY
from unlearn.repair.trajectory import Segment, Trajectory, segments_to
from unlearn.repair.unrolled import COHERENT, unroll
from unlearn.tasks import get_task
from unlearn.training import TrainingRecord, TrainSettings, replay, train

Trained = tuple[nn.Module, Rows, TrainingRecord]


@pytest.fixture(scope="module")
def sgd(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return training(tmp_path_factory.mktemp("sgd"), snapshots=(0, 1, 2, 3, 4, 5))


class ExactTrajectory(Trajectory):
    """Factors without the noise of sampled labels, so that they are G itself for one linear layer."""

    def curvature(self, segment: Segment, model: nn.Module) -> Curvature:
        return fit_curvature(model, self.rows, task=self.task, fisher="exact")


def least_squares(folder: Path, batch: int, optimizer: str = "sgd", targets: int = 2) -> Trained:
    torch.manual_seed(0)
    rows = Rows.from_tensors(torch.randn(24, 5, dtype=torch.float64), torch.randn(24, targets, dtype=torch.float64))
    settings = TrainSettings(optimizer=optimizer, lr=0.05, weight_decay=0.02, epochs=8, batch_size=batch)  # type: ignore[arg-type]
    start = nn.Linear(5, targets).double()
    model, record = train(start, rows, settings, task="regression", folder=folder, snapshot_epochs=range(9))
    return model, rows, record


@pytest.mark.parametrize("most", [None, 3])
def test_new_targets_of_least_squares_are_followed_exactly(tmp_path: Path, most: int | None) -> None:
    """G is the same before and after; rejects a wrong sign, a lost momentum, weight decay or 1 / n, a missed step."""
    model, rows, record = least_squares(tmp_path, batch=24)
    changes = Changes(relabelled={row: [1.0, -3.0] for row in rows.ids[:4]})  # type: ignore[dict-item]
    known = ExactTrajectory(model, record, rows, get_task("regression"))
    found = unroll(known, rows, changes, segments_to(list(record.snapshots), record.steps, most), bins=24)
    first = record.snapshot(0)
    start = nn.Linear(5, 2).double()
    first.restore(start)
    there, _ = replay(start, changes.apply(rows), record, snapshot=first)
    for name, value in there.state_dict().items():
        torch.testing.assert_close(found.on(record.snapshot(record.steps)).weights[name], value, rtol=1e-10, atol=1e-12)
        assert float((value - model.state_dict()[name]).abs().max()) > 1e-3
    again, _ = replay(model, changes.apply(rows), replace(record, task="regression"), start=record.steps)
    assert same_bits(again, model)


def test_the_momentum_is_that_of_the_edited_training(tmp_path: Path) -> None:
    """Stopped in the middle and replayed from there, the end is that of training on the new targets from the start."""
    model, rows, record = least_squares(tmp_path, batch=24)
    changes = Changes(relabelled={rows.ids[0]: [4.0, 0.0]})  # type: ignore[dict-item]
    known = ExactTrajectory(model, record, rows, get_task("regression"))
    found = unroll(known, rows, changes, segments_to(list(record.snapshots), 5), bins=24)
    middle, end = nn.Linear(5, 2).double(), nn.Linear(5, 2).double()
    moved = found.on(record.snapshot(5))
    moved.restore(middle)
    record.snapshot(0).restore(end)
    by_half, _ = replay(middle, changes.apply(rows), record, start=5, snapshot=moved)
    whole, _ = replay(end, changes.apply(rows), record, snapshot=record.snapshot(0))
    torch.testing.assert_close(by_half.weight, whole.weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_recurrence_written_out_in_full_matrices(tmp_path: Path, optimizer: str) -> None:
    """Batches, removals and Adam's metric by dense matrices in the eigenbasis, step by step."""
    model, rows, record = least_squares(tmp_path, batch=8, optimizer=optimizer, targets=1)
    changes = Changes(removed=tuple(rows.ids[:3]))
    segments = segments_to(list(record.snapshots), record.steps, 2)
    known = ExactTrajectory(model, record, rows, get_task("regression"))
    found = unroll(known, rows, changes, segments, bins=100, coherence=1.0)
    change, momentum = (torch.zeros(6, dtype=torch.float64) for _ in range(2))
    keep = record.betas[0] if optimizer == "adam" else record.momentum
    for segment in segments:
        half = known.halfway(segment)
        curvature = known.curvature(segment, half)
        block = curvature.blocks[""]
        U = block.basis.inputs[0]  # type: ignore[index]
        assert float(block.basis.outputs.abs().item()) == 1.0  # type: ignore[union-attr]
        G = U @ block.eigenvalues[0, 0].diag() @ U.T + record.weight_decay * torch.eye(6, dtype=torch.float64)
        P = torch.eye(6, dtype=torch.float64)
        if optimizer == "adam":
            parts = []
            for step in (segment.start, segment.stop):
                if step:
                    state = record.snapshot(step).optimizer
                    v = torch.cat([state["exp_avg_sq/weight"].flatten(), state["exp_avg_sq/bias"]])
                    parts.append(1 / ((v / (1 - record.betas[1] ** step)).sqrt() + record.eps))
            metric = torch.stack(parts).mean(0)
            P = U @ (U.T @ metric.diag() @ U).diagonal().diag() @ U.T
        for step in range(segment.start, segment.stop):
            assert record.order is not None
            batch = record.order.batch(step)
            gone = [row for row in batch if row in changes.removed]
            p = torch.zeros(6, dtype=torch.float64)
            for row in gone:
                g = loss_gradient(half, rows.only([row]), task="regression")
                p += torch.cat([g["weight"].flatten(), g["bias"]]) / (len(batch) - len(gone))
            gain = 1 - keep if optimizer == "adam" else 1.0
            momentum = keep * momentum + gain * (G @ change - p)
            correction = 1 - keep ** (step + 1) if optimizer == "adam" else 1.0
            change = change - record.rates()[step] / correction * (P @ momentum)
    ours = torch.cat([found.change["weight"].flatten(), found.change["bias"]])
    torch.testing.assert_close(ours, change, rtol=1e-9, atol=1e-13)
    assert float(change.norm()) > 1e-3


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_impulses_against_a_gradient_a_visit(sgd: Trained, name: str) -> None:
    """Rejects the old label's gradient taken twice, a mean over the full batch, and a row pushed in the wrong bin."""
    torch.manual_seed(0)
    _, rows, record = sgd
    layers = {
        "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10)),
        "conv": lambda: nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 10)),
    }
    model = layers[name]().double()
    rows = Rows.from_tensors(rows.batch(torch.arange(len(rows)))[0].double(), rows.labels, ids=rows.ids, classes=10)
    changes = Changes(
        tuple(rows.ids[:40]), {row: int(rows.labels[rows.positions([row])]) ^ 1 for row in rows.ids[50:60]}
    )
    curvature, segment = fit_curvature(model, rows), Segment(STEPS, 3 * STEPS)
    bins = bins_of(segment, 5)
    assert record.order is not None
    found = impulses(model, curvature, rows, changes, get_task("classification"), record.order, segment, bins)
    wanted = [{n: torch.zeros_like(p) for n, p in model.named_parameters()} for _ in range(int(bins.max()) + 1)]
    for step, k in zip(range(segment.start, segment.stop), bins.tolist(), strict=True):
        batch = record.order.batch(step)
        left = sum(row not in changes.removed for row in batch)
        for row in batch:
            if row not in changes.ids:
                continue
            g = loss_gradient(model, rows.only([row]))
            if row in changes.relabelled:
                new = loss_gradient(model, rows.only([row]).relabelled({row: changes.relabelled[row]}))
                g = {n: g[n] - new[n] for n in g}
            for n, part in g.items():
                wanted[k][n] += part / left
    for ours, dense in zip(found, wanted, strict=True):
        for layer, block in curvature.blocks.items():
            back = block.layer.vector(block.basis.rotate_back(ours[layer]))
            for n, part in back.items():
                torch.testing.assert_close(part, dense[n], rtol=1e-9, atol=1e-12)


def test_bins_are_runs_that_cover_the_steps() -> None:
    for steps in (1, 5, 16, 33, 96):
        bins = bins_of(Segment(10, 10 + steps), 16)
        assert len(bins) == steps
        assert bins[0] == 0
        assert bins.diff().min().item() >= 0 if steps > 1 else True
        assert int(bins.max()) + 1 <= 16


def test_a_segment_is_read_at_the_snapshot_inside_it_or_half_way(sgd: Trained) -> None:
    model, rows, record = sgd
    known = Trajectory(model, record, rows, get_task("classification"))
    a, b, c = (record.snapshot(step * STEPS).weights for step in (1, 2, 3))
    inside = known.halfway(Segment(STEPS, 3 * STEPS, 2 * STEPS)).state_dict()
    between = known.halfway(Segment(STEPS, 3 * STEPS)).state_dict()
    for name in a:
        assert torch.equal(inside[name], b[name])
        torch.testing.assert_close(between[name], (a[name] + c[name]) / 2)


def test_requests_share_the_factors_in_a_folder(sgd: Trained, tmp_path: Path) -> None:
    model, rows, record = sgd
    first = apply_changes(model, rows, Changes(rows.ids[:2]), record=record, factors=tmp_path)
    second = apply_changes(model, rows, Changes(rows.ids[2:4]), record=record, factors=tmp_path)
    assert first.method == second.method == "rewind-unrolled-replay"
    assert first.cost.factors == 5 * 2.0
    assert second.cost.factors == 0.0
    assert second.cost.storage == first.cost.storage > 0
    alone = apply_changes(model, rows, Changes(rows.ids[:2]), record=record)
    assert 0 < alone.cost.factors < first.cost.factors
    other, other_rows, other_record = training(tmp_path / "other", snapshots=(0, 3, 4, 5))
    assert len(other_rows) == len(rows)
    anew = apply_changes(other, other_rows, Changes(rows.ids[:2]), record=other_record, factors=tmp_path)
    assert anew.cost.factors > 0


def test_on_the_changed_rows_it_comes_nearer_than_replay_and_the_newton_step(sgd: Trained) -> None:
    """Six epochs of digits; rejects an edit without momentum or with the wrong sign, which come out farther."""
    model, rows, record = sgd
    wrong = [rows.ids[i] for i in (rows.labels != rows.truth).nonzero().flatten().tolist()[:6]]
    changes = Changes(tuple(wrong))
    first = record.snapshot(0)
    start = apply_changes(model, rows, changes, record=record, budget=0).model
    first.restore(start)
    there, _ = replay(start, changes.apply(rows), record, snapshot=first)
    snapshot = record.snapshot(5 * STEPS)
    rewound = apply_changes(model, rows, changes, record=record, budget=0).model
    snapshot.restore(rewound)
    plain, _ = replay(rewound, changes.apply(rows), record, start=5 * STEPS, snapshot=snapshot)

    def distance(other: nn.Module) -> float:
        x = rows.only(wrong).batch(torch.arange(len(wrong)))[0]
        with torch.no_grad():
            return float((other(x).log_softmax(1) - there(x).log_softmax(1)).square().mean())

    ours = apply_changes(model, rows, changes, record=record, budget=1)
    newton = apply_changes(model, rows, changes, record=record, budget=1, method="newton")
    assert ours.method == "rewind-unrolled-replay"
    assert distance(ours.model) < distance(newton.model)
    assert distance(ours.model) < distance(plain)


def test_moved_snapshots_are_handed_on(sgd: Trained, tmp_path: Path) -> None:
    model, rows, record = sgd
    edit = apply_changes(model, rows, Changes(rows.ids[:2]), record=record, budget=1, successor=tmp_path / "next")
    assert edit.successor is not None
    assert sorted(edit.successor.snapshots) == [STEPS * k for k in range(7)]
    moved, was = (r.snapshot(2 * STEPS).weights for r in (edit.successor, record))
    assert all(0 < float((moved[n] - was[n]).norm()) < float(was[n].norm()) for n in was)
    following = apply_changes(edit.model, edit.edited_data, Changes(rows.ids[4:5]), record=edit.successor, budget=1)
    assert following.method == "rewind-unrolled-replay"


def poorer(record: TrainingRecord, *steps: int) -> TrainingRecord:
    return replace(record, snapshots={step: record.snapshots[step] for step in steps})


CHOICES: dict[str, tuple[Callable[[TrainingRecord], TrainingRecord], dict[str, object], str]] = {
    "snapshots": (lambda r: r, {"budget": 1}, "rewind-unrolled-replay"),
    "no budget": (lambda r: r, {"budget": 0}, "unrolled"),
    "no budget, newton asked for": (lambda r: r, {"budget": 0, "method": "newton"}, "newton"),
    "newton asked for": (lambda r: r, {"budget": 1, "method": "newton"}, "rewind-newton-replay"),
    "damping given": (lambda r: r, {"budget": 1, "damping": 0.1}, "rewind-newton-replay"),
    "far apart": (lambda r: poorer(r, 0, 5 * STEPS, 6 * STEPS), {"budget": 1}, "rewind-newton-replay"),
    "no snapshots": (lambda r: replace(r, snapshots={}), {"budget": 1}, "newton"),
    "no order": (lambda r: replace(r, snapshots={}, order=None), {"budget": 1}, "newton"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_method_is_the_best_that_was_recorded(sgd: Trained, case: str) -> None:
    model, rows, record = sgd
    change, options, method = CHOICES[case]
    edit = apply_changes(model, rows, Changes(rows.ids[:2]), record=change(record), **options)  # type: ignore[arg-type]
    assert edit.method == method
    assert any("too far apart to unroll" in note for note in edit.notes) == (case == "far apart")


def test_many_rows_are_not_unrolled_unless_asked_for(sgd: Trained, tmp_path: Path) -> None:
    model, rows, record = sgd
    changes = Changes(rows.ids[: int(MANY * len(rows)) + 1])
    few_steps = apply_changes(model, rows, changes, record=record, factors=tmp_path)
    assert few_steps.method == "rewind-newton-replay"
    asked = apply_changes(model, rows, changes, record=record, factors=tmp_path, method="unrolled")
    assert asked.method == "rewind-unrolled-replay"
    final = apply_changes(model, rows, changes, record=record, budget=0, factors=tmp_path)
    assert final.method == "newton"  # nothing would mend the overshoot of many rows


def test_the_correction_is_the_exact_answer_to_the_same_source(tmp_path: Path) -> None:
    """(G + w + d) D' = (c K + w + d) D, solved densely; rejects a forgotten c, w or d, and a sign."""
    model, rows, _ = least_squares(tmp_path, batch=8)
    torch.manual_seed(1)
    change = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    K = fit_curvature(model, rows.at(torch.arange(10)), task="regression")
    task = get_task("regression")
    metric = {name: torch.full_like(p, 0.3) for name, p in change.items()}
    options = {"scale": 3.0, "weight_decay": 0.02, "iterations": 100}
    found, cost = corrected(change, model, rows, task, K, damping=0.3, **options)  # type: ignore[arg-type]
    same, _ = corrected(change, model, rows, task, K, damping=metric, **options)  # type: ignore[arg-type]
    assert all(torch.allclose(found[name], same[name]) for name in found)
    flat = torch.cat([change["weight"], change["bias"][:, None]], 1)
    x = torch.cat([rows.batch(torch.arange(len(rows)))[0], torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    A = x.T @ x / len(rows)  # G = 1 (x) A, for half the squared error summed over outputs
    known = K.matvec(change)
    source = 3.0 * torch.cat([known["weight"], known["bias"][:, None]], 1) + 0.32 * flat
    wanted = torch.linalg.solve(A + 0.32 * torch.eye(6, dtype=torch.float64), source.T).T
    torch.testing.assert_close(torch.cat([found["weight"], found["bias"][:, None]], 1), wanted, rtol=2e-3, atol=2e-3)
    assert cost == 4 * len(rows) * (cost // (4 * len(rows)))


def test_many_rows_take_larger_eigenvalues(sgd: Trained) -> None:
    """c is sqrt(L) for few rows, L past ``COHERENT`` of them; rejects 1 and L throughout."""
    model, rows, record = sgd
    known = Trajectory(model, record, rows, get_task("classification"))
    segments = segments_to(list(record.snapshots), record.steps, 3)
    for count, factor in ((1, math.sqrt(2)), (int(COHERENT * len(rows)) + 1, 2.0)):
        changes = Changes(rows.ids[:count])
        found, same = (unroll(known, rows, changes, segments, coherence=c).change for c in (None, factor))
        assert all(torch.equal(found[name], same[name]) for name in found)


def test_bad_input_is_refused(sgd: Trained) -> None:
    model, rows, record = sgd
    changes = Changes(rows.ids[:1])
    with pytest.raises(InputError, match=r"unknown method 'unroled'; did you mean 'unrolled'"):
        apply_changes(model, rows, changes, record=record, method="unroled")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="method 'unrolled' takes no damping="):
        apply_changes(model, rows, changes, record=record, method="unrolled", damping=0.1)
    with pytest.raises(RecordError, match="needs snapshots and the row order"):
        apply_changes(model, rows, changes, record=replace(record, snapshots={}), method="unrolled")
    with pytest.raises(RecordError, match="needs a recorded row order"):
        unroll(Trajectory(model, record, rows, get_task("classification")), rows, changes, [])
    hot = replace(record, lr=1e6)
    with pytest.raises(InputError, match="is not finite: the linearised training diverges"):
        unroll(
            Trajectory(model, hot, rows, get_task("classification")),
            rows,
            changes,
            segments_to(list(record.snapshots), record.steps),
        )
