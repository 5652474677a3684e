"""What a repair is measured beside: each rival against its formula or loop written out, and what it says it cost."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from repair_cases import (
    EPOCHS,
    ROWS,
    STEPS,
    TINY_CHANGES,
    flat,
    loop,
    right_hand_side,
    row_gradient,
    same_bits,
    tiny,
    training,
    weights_of,
)
from torch import Tensor, nn

from unlearn.curvature import fit_curvature
from unlearn.data import Rows
from unlearn.errors import InputError, RecordError, RowNotFoundError
from unlearn.predict import predict
from unlearn.repair import RIVALS, Changes
from unlearn.repair.rivals.dampening import dampened, importances
from unlearn.repair.rivals.random_labels import other_labels
from unlearn.tasks import get_task
from unlearn.training import BatchOrder, TrainingRecord, TrainSettings, compressed_rates

Trained = tuple[nn.Module, Rows, TrainingRecord]
SETTINGS: dict[str, dict[str, float]] = {
    "fine-tune": {"epochs": 1},
    "compressed retrain": {"epochs": 1},
    "replay": {"epochs": 1},
    "gradient ascent": {"passes": 2, "lr": 0.01},
    "random labels": {"epochs": 1},
    "NegGrad+": {"epochs": 1, "alpha": 0.9},
    "SSD": {},
    "influence step": {},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return training(tmp_path_factory.mktemp("rivals"))


def mixed(rows: Rows) -> Changes:
    return Changes(removed=rows.ids[:30], relabelled={rows.ids[40]: (int(rows.labels[40]) + 1) % 10})


def shuffled(ids: tuple[str, ...], epochs: int, seed: int) -> BatchOrder:
    return BatchOrder.shuffled(ids, epochs=epochs, batch_size=ROWS // STEPS, seed=seed)


def by_hand(record: TrainingRecord, order: BatchOrder, lr: float = 0.05) -> TrainingRecord:
    return replace(record, lr=lr, steps=len(order), order=order, snapshots={})


@pytest.mark.parametrize("lr", [None, 0.01])
def test_fine_tuning_is_training_on_the_changed_rows_alone(trained: Trained, lr: float | None) -> None:
    """A fresh optimizer from the final weights, the record's settings, new row order, no removed row in it."""
    model, rows, record = trained
    changes = mixed(rows)
    setting = {"epochs": 2} if lr is None else {"epochs": 2, "lr": lr}
    tuned = RIVALS["fine-tune"](model, rows, changes, record, setting=setting, seed=5)
    order = shuffled(changes.apply(rows).ids, 2, 5)
    assert set(order.ids).isdisjoint(rows.ids[:30])
    wanted = loop(model, changes.apply(rows), by_hand(record, order, lr or 0.05))
    torch.testing.assert_close(weights_of(tuned.model), weights_of(wanted), rtol=0, atol=1e-6)
    assert tuned.settings == {"epochs": 2, "lr": lr or 0.05}
    assert tuned.cost == 2 * (ROWS - 30) / ROWS


def test_half_an_epoch_of_fine_tuning_is_the_first_half_of_one(trained: Trained) -> None:
    model, rows, record = trained
    changes = Changes(relabelled=mixed(rows).relabelled)
    tuned = RIVALS["fine-tune"](model, rows, changes, record, setting={"epochs": 0.5}, seed=5)
    whole = shuffled(rows.ids, 1, 5)
    wanted = loop(model, changes.apply(rows), by_hand(record, BatchOrder(whole.ids, whole.positions[: STEPS // 2])))
    torch.testing.assert_close(weights_of(tuned.model), weights_of(wanted), rtol=0, atol=1e-6)
    assert tuned.cost == 0.5


def test_fine_tuning_takes_the_median_rate(trained: Trained) -> None:
    """Rejects the last rate: after a cosine schedule it is next to nothing, and the rival would stand still."""
    model, rows, record = trained
    falling = replace(record, lr=[0.1] * (record.steps - 2) + [0.02, 0.0])
    tuned = RIVALS["fine-tune"](model, rows, mixed(rows), falling, setting={"epochs": 1})
    wanted = RIVALS["fine-tune"](model, rows, mixed(rows), record, setting={"epochs": 1, "lr": 0.1})
    assert same_bits(tuned.model, wanted.model)


def test_a_compressed_retrain_starts_over_on_the_recorded_order(trained: Trained) -> None:
    """From the original's initial weights, removed rows leaving their places empty. Rejects the final weights."""
    model, rows, record = trained
    changes = mixed(rows)
    short = RIVALS["compressed retrain"](model, rows, changes, record, setting={"epochs": 1.5, "lr": 0.1})
    assert record.order is not None
    steps = 3 * STEPS // 2
    order = BatchOrder(record.order.ids, record.order.positions[:steps])
    start = copy.deepcopy(model)
    record.snapshot(0).restore(start)
    wanted = loop(start, changes.apply(rows), by_hand(record, order, 0.1))
    torch.testing.assert_close(weights_of(short.model), weights_of(wanted), rtol=0, atol=2e-6)
    seen = [row for step in range(steps) for row in order.batch(step) if row not in changes.removed]
    assert short.cost == pytest.approx(len(seen) / ROWS)


def test_a_compressed_retrain_without_recorded_weights_or_order_depends_on_the_seed_only(trained: Trained) -> None:
    model, rows, record = trained
    poorer = replace(record, order=None, snapshots={})
    one, same, other = (
        RIVALS["compressed retrain"](m, rows, mixed(rows), poorer, setting={"epochs": 1}, seed=seed).model
        for m, seed in ((model, 1), (copy.deepcopy(model), 1), (model, 2))
    )
    assert same_bits(one, same)
    assert not same_bits(one, other)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_the_compressed_schedule_is_the_schedule_of_a_shorter_training(schedule: str) -> None:
    """Rejects the first rates of the long schedule, which never come down."""
    long = TrainSettings(lr=0.1, schedule=schedule, step_epochs=4, epochs=12, batch_size=10)  # type: ignore[arg-type]
    short = replace(long, epochs=3, step_epochs=1)
    record = TrainingRecord("sgd", long.rates(80), 12 * 8)
    np.testing.assert_allclose(compressed_rates(record, 3 * 8), short.rates(80), rtol=1e-12)


@pytest.mark.parametrize(("epochs", "epoch"), [(0.5, 5), (1, 5), (1.5, 4), (2, 4), (3, 2), (4, 2), (5, 0), (6, 0)])
def test_plain_replay_starts_at_the_latest_snapshot_that_far_back(trained: Trained, epochs: float, epoch: int) -> None:
    model, rows, record = trained
    changes = Changes(removed=rows.ids[:30])
    replayed = RIVALS["replay"](model, rows, changes, record, setting={"epochs": epochs})
    assert replayed.settings["start_step"] == epoch * STEPS
    wanted = loop(model, changes.apply(rows), record, epoch * STEPS, record.snapshot(epoch * STEPS))
    torch.testing.assert_close(weights_of(replayed.model), weights_of(wanted), rtol=0, atol=2e-6)
    assert replayed.cost == (EPOCHS - epoch) * (ROWS - 30) / ROWS


def test_gradient_ascent_climbs_the_changed_rows_alone(trained: Trained) -> None:
    """Each step written out: the loss's gradient with a plus, weight decay still with a minus; old labels only."""
    model, rows, record = trained
    changes = mixed(rows)
    climbed = RIVALS["gradient ascent"](model, rows, changes, record, setting={"passes": 2, "lr": 0.02}, seed=4)
    changed = rows.only(changes.ids)
    wanted, buffers = copy.deepcopy(model), {}
    order = shuffled(changed.ids, 2, 4)
    for step in range(len(order)):
        inputs, labels = changed.batch(changed.positions(order.batch(step)))
        loss = nn.functional.cross_entropy(wanted(inputs), labels)
        gradients = torch.autograd.grad(loss, list(wanted.parameters()))
        with torch.no_grad():
            for (name, p), g in zip(wanted.named_parameters(), gradients, strict=True):
                direction = -g + record.weight_decay * p
                buffers[name] = direction if name not in buffers else record.momentum * buffers[name] + direction
                p -= 0.02 * buffers[name]
    torch.testing.assert_close(weights_of(climbed.model), weights_of(wanted), rtol=0, atol=1e-6)
    before, after = (
        float(nn.functional.cross_entropy(predict(m, changed), changed.labels)) for m in (model, climbed.model)
    )
    assert after > before
    assert climbed.cost == pytest.approx(2 * 31 / ROWS)


def test_random_labels_are_never_the_old_ones_and_depend_on_no_other_row(trained: Trained) -> None:
    model, rows, record = trained
    drawn = other_labels(rows, rows.ids, seed=3)
    assert all(drawn[row] != int(label) for row, label in zip(rows.ids, rows.labels, strict=True))
    counts = np.bincount([(drawn[row] - int(y)) % 10 for row, y in zip(rows.ids, rows.labels, strict=True)])
    assert counts[0] == 0
    assert counts[1:].min() > 10  # 300 draws of nine
    assert other_labels(rows, rows.ids[5:7], seed=3) == {row: drawn[row] for row in rows.ids[5:7]}
    changes = Changes(removed=rows.ids[:30])
    made = RIVALS["random labels"](model, rows, changes, record, setting={"epochs": 1}, seed=3)
    labelled = rows.relabelled({row: drawn[row] for row in changes.removed})
    wanted = loop(model, labelled, by_hand(record, shuffled(rows.ids, 1, 3)))
    torch.testing.assert_close(weights_of(made.model), weights_of(wanted), rtol=0, atol=1e-6)
    assert made.cost == 1


def test_neggrad_plus_is_one_loss_of_two_batches(trained: Trained) -> None:
    """alpha L(kept) - (1 - alpha) L(changed, old labels), step by step. Rejects a swapped alpha and new labels."""
    model, rows, record = trained
    changes, alpha = mixed(rows), 0.8
    made = RIVALS["NegGrad+"](model, rows, changes, record, setting={"epochs": 1, "alpha": alpha, "lr": 0.02}, seed=4)
    kept, changed = changes.apply(rows), rows.only(changes.ids)
    wanted, buffers = copy.deepcopy(model), {}
    order = shuffled(kept.ids, 1, 4)
    for step in range(len(order)):
        inputs, labels = kept.batch(kept.positions(order.batch(step)))
        others, old = changed.batch(changed.positions(shuffled(changed.ids, 1, 5 + step).batch(0)))
        cross_entropy = nn.functional.cross_entropy
        loss = alpha * cross_entropy(wanted(inputs), labels) - (1 - alpha) * cross_entropy(wanted(others), old)
        gradients = torch.autograd.grad(loss, list(wanted.parameters()))
        with torch.no_grad():
            for (name, p), g in zip(wanted.named_parameters(), gradients, strict=True):
                direction = g + record.weight_decay * p
                buffers[name] = direction if name not in buffers else record.momentum * buffers[name] + direction
                p -= 0.02 * buffers[name]
    torch.testing.assert_close(weights_of(made.model), weights_of(wanted), rtol=0, atol=1e-6)
    assert made.cost == pytest.approx((270 + len(order) * 31) / ROWS)


def test_neggrad_plus_with_alpha_1_is_fine_tuning(trained: Trained) -> None:
    model, rows, record = trained
    setting = {"epochs": 1, "lr": 0.02}
    made = RIVALS["NegGrad+"](model, rows, mixed(rows), record, setting={**setting, "alpha": 1}, seed=4)
    tuned = RIVALS["fine-tune"](model, rows, mixed(rows), record, setting=setting, seed=4)
    torch.testing.assert_close(weights_of(made.model), weights_of(tuned.model), rtol=0, atol=1e-7)
    assert made.cost > tuned.cost


def test_importances_are_mean_squares_of_single_rows_at_the_given_labels() -> None:
    """Rejects squares of a batch's mean gradient, and labels drawn from the model."""
    model, rows = tiny()
    found = importances(model, rows, get_task("classification"))
    squares = [row_gradient(model, *rows[i]).square() for i in range(len(rows))]
    torch.testing.assert_close(flat(found), torch.stack(squares).mean(0), rtol=1e-12, atol=0)


def test_dampening_is_the_papers_elementwise() -> None:
    generator = torch.Generator().manual_seed(0)
    theta, of_all, of_changed = (torch.rand(200, generator=generator, dtype=torch.float64) for _ in range(3))
    alpha, lam = 1.5, 0.8
    wanted = [
        min(lam * i / j, 1.0) * t if j > alpha * i else t
        for t, i, j in zip(theta.tolist(), of_all.tolist(), of_changed.tolist(), strict=True)
    ]
    found = dampened({"w": theta}, {"w": of_all}, {"w": of_changed}, alpha=alpha, lam=lam)["w"]
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)
    assert 0.1 < float((found != theta).double().mean()) < 0.9
    grown = dampened({"w": theta}, {"w": of_all}, {"w": of_changed}, alpha=0.1, lam=5.0)["w"]
    assert bool((grown <= theta).all())  # never above its old size


def test_ssd_weighs_the_changed_rows_against_all_rows_and_shares_the_latter() -> None:
    model, rows = tiny()
    record = TrainingRecord("sgd", 0.1, 100)
    changes, task = TINY_CHANGES["mixed"], get_task("classification")
    made = RIVALS["SSD"](model, rows, changes, record, setting={"alpha": 2, "lambda": 0.5})
    weights = {name: p.detach() for name, p in model.named_parameters()}
    of_all, of_changed = importances(model, rows, task), importances(model, rows.only(changes.ids), task)
    wanted = dampened(weights, of_all, of_changed, alpha=2, lam=0.5)
    assert torch.equal(weights_of(made.model), flat(wanted))
    assert not torch.equal(weights_of(made.model), weights_of(model))
    assert (made.cost, made.shared, made.own_cost) == (1 + 4 / 12, 1, pytest.approx(4 / 12))
    assert RIVALS["SSD"](model, rows, changes, record).settings == {"alpha": 10, "lambda": 1}


@pytest.mark.parametrize("action", TINY_CHANGES)
def test_the_influence_step_is_one_solve_of_the_changed_rows(action: str) -> None:
    """theta + (EK-FAC + w + d)^-1 b with b row by row, d a multiple of 2 / T. Rejects a minus and a missing w."""
    model, rows = tiny()
    record = TrainingRecord("sgd", 0.1, 100, momentum=0.9, weight_decay=0.02)
    changes = TINY_CHANGES[action]
    made = RIVALS["influence step"](model, rows, changes, record, setting={"scale": 3})
    curvature = fit_curvature(model, rows)
    b = right_hand_side(model, rows, changes, 0.02)
    sizes = [p.numel() for p in model.parameters()]
    vector = {
        name: part.reshape(p.shape) for (name, p), part in zip(model.named_parameters(), b.split(sizes), strict=True)
    }
    step = flat(curvature.solve(vector, damping=0.02 + 3 * 2 / 100))
    torch.testing.assert_close(weights_of(made.model) - weights_of(model), step, rtol=1e-9, atol=1e-12)
    assert made.shared == 2
    assert 0 < made.own_cost <= 4 * len(changes.ids) / (3 * len(rows)) + 1e-12


def test_the_influence_step_of_adam_takes_the_mean_of_its_metric(tmp_path: Path) -> None:
    model, rows, record = training(tmp_path, "adam")
    changes = mixed(rows)
    made = RIVALS["influence step"](model, rows, changes, record, setting={"scale": 2})
    moments: list[Tensor] = [
        part for key, part in record.snapshot(record.steps).optimizer.items() if key.startswith("exp_avg_sq/")
    ]
    metric = torch.cat([((v / (1 - 0.999**record.steps)).sqrt() + record.eps).reshape(-1) for v in moments])
    d = float(metric.mean()) / record.horizon()
    b = right_hand_side(model, rows, changes, record.weight_decay)
    sizes = [p.numel() for p in model.parameters()]
    vector = {
        name: part.reshape(p.shape) for (name, p), part in zip(model.named_parameters(), b.split(sizes), strict=True)
    }
    step = flat(fit_curvature(model, rows).solve(vector, damping=record.weight_decay + 2 * d))
    torch.testing.assert_close(weights_of(made.model) - weights_of(model), step, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_leaves_the_caller_s_things_alone(trained: Trained, name: str) -> None:
    """Weights, modes, gradients, global seeds; and the same call twice gives the same bits."""
    model, rows, record = trained
    changes = Changes(removed=rows.ids[:10])
    model.train()[1].eval()
    weight = next(model.parameters())
    weight.grad = torch.ones_like(weight)
    before, seeds = copy.deepcopy(model), torch.get_rng_state()
    one, two = (RIVALS[name](model, rows, changes, record, setting=SETTINGS[name], seed=2) for _ in range(2))
    assert same_bits(model, before)
    assert torch.equal(torch.get_rng_state(), seeds)
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert [m.training for m in model.modules()] == [m.training for m in one.model.modules()]
    assert same_bits(one.model, two.model)
    assert not same_bits(one.model, model)
    assert one.cost > 0
    weight.grad = None
    model.eval()


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("cost", [0.5, 1.0, 3.0])
def test_a_grid_s_settings_cost_what_may_be_spent_and_no_more(trained: Trained, name: str, cost: float) -> None:
    model, rows, record = trained
    rival, changes = RIVALS[name], Changes(removed=rows.ids[:30])
    settings = rival.grid(rows, changes, record, cost)
    if name == "replay" and cost == 0.5:  # snapshots lie whole epochs apart
        assert settings == []
        return
    paid = [
        rival(model, rows, changes, record, setting=setting).own_cost for setting in settings[:: len(settings) - 1 or 1]
    ]
    assert max(paid) <= cost * 1.1  # steps are whole
    if name in ("fine-tune", "compressed retrain", "random labels", "NegGrad+"):
        assert min(paid) >= cost * 0.8
        assert {setting["lr"] for setting in settings} == {0.01, 0.02, 0.05, 0.1}


BAD = {
    "unknown setting": ("fine-tune", {"epoch": 1}, "no setting 'epoch'; did you mean 'epochs'"),
    "missing setting": ("NegGrad+", {"epochs": 1}, "needs a number for its setting 'alpha'"),
    "no epochs": ("fine-tune", {"epochs": 0}, "setting 'epochs' of fine-tune is 0; give a finite number above 0"),
    "infinite": ("SSD", {"alpha": math.inf}, "setting 'alpha' of SSD is inf"),
    "not a number": ("SSD", {"lambda": math.nan}, "setting 'lambda' of SSD is nan"),
    "alpha": ("NegGrad+", {"epochs": 1, "alpha": 2}, "alpha of NegGrad\\+ is 2; give a number above 0 and at most 1"),
    "too long": ("compressed retrain", {"epochs": 7}, "7 epochs is longer than the recorded training of 6"),
    "diverged": ("gradient ascent", {"passes": 300, "lr": 50}, "training diverged; lower the learning rate"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_setting_that_can_not_be_meant(trained: Trained, case: str) -> None:
    model, rows, record = trained
    name, setting, message = BAD[case]
    before = copy.deepcopy(model)
    with pytest.raises(InputError, match=message):
        RIVALS[name](model, rows, mixed(rows), record, setting=setting)
    assert same_bits(model, before)


def test_changes_and_records_that_do_not_fit(trained: Trained) -> None:
    model, rows, record = trained
    tune, replay = RIVALS["fine-tune"], RIVALS["replay"]
    removal = Changes(removed=rows.ids[:3])
    with pytest.raises(InputError, match="random labels is a rival for removals only, and 1 rows are relabelled"):
        RIVALS["random labels"](model, rows, mixed(rows), record, setting={"epochs": 1})
    with pytest.raises(InputError, match="no row is changed"):
        tune(model, rows, Changes(), record, setting={"epochs": 1})
    with pytest.raises(RowNotFoundError, match="1 of 1 ids not in"):
        tune(model, rows, Changes(removed=("nobody",)), record, setting={"epochs": 1})
    with pytest.raises(RecordError, match="the record is of data"):
        tune(model, rows.without(rows.ids[5:6]), removal, record, setting={"epochs": 1})
    with pytest.raises(RecordError, match="training to the optimum"):
        tune(model, rows, removal, replace(record, optimizer="lbfgs"), setting={"epochs": 1})
    with pytest.raises(RecordError, match="no snapshot lies 7 epochs before the end"):
        replay(model, rows, removal, record, setting={"epochs": EPOCHS + 1})
    with pytest.raises(RecordError, match="no row order"):
        replay(model, rows, removal, replace(record, order=None), setting={"epochs": 1})
    numbers = Rows.from_tensors(torch.eye(4), torch.tensor([0.0, 1.0, 0.5, 2.0]))
    with pytest.raises(InputError, match="no two classes"):
        other_labels(numbers, ("0",), seed=0)
