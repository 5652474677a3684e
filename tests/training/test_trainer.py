"""The training loop against loops written by hand."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from training_cases import ADAM, SETTINGS, SGD, network, plain_loop, rows_of, same

from unlearn.data import Rows
from unlearn.errors import FolderError, InputError
from unlearn.training import TrainSettings, snapshot_epochs, train

each_optimizer = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())


@each_optimizer
@pytest.mark.parametrize("recorded", [False, True])
def test_training_is_the_loop_a_user_would_write(settings: TrainSettings, recorded: bool, tmp_path: Path):
    # rejects a rate that comes a step late, a mean over the full batch size, a recorder that disturbs
    rows = rows_of()
    model, record = train(network(), rows, settings, folder=tmp_path if recorded else None)
    assert record.order is not None
    batches = [record.order.batch(step) for step in range(record.steps)]
    assert same(model, plain_loop(network(), rows, batches, settings.rates(20), settings))


def test_sgd_is_momentum_and_decay_by_their_formulas():
    # rejects decoupled decay, (1 - momentum) g, and Nesterov: torch's own optimizer is not asked here
    rows = rows_of()
    model, record = train(network().double(), doubled(rows), SGD)
    x, y = doubled(rows).batch(torch.arange(20))
    theta = [p.detach().clone() for p in network().double().parameters()]
    velocity = [torch.zeros_like(p) for p in theta]
    for step, rate in enumerate(SGD.rates(20)):
        at = rows.positions(record.order.batch(step))  # type: ignore[union-attr]
        w1, b1, w2, b2 = leaves = [p.clone().requires_grad_() for p in theta]
        loss = F.cross_entropy(torch.tanh(x[at] @ w1.T + b1) @ w2.T + b2, y[at])
        for k, g in enumerate(torch.autograd.grad(loss, leaves)):
            velocity[k] = 0.9 * velocity[k] + g + 0.01 * theta[k]
            theta[k] = theta[k] - rate * velocity[k]
    for ours, by_hand in zip(model.parameters(), theta, strict=True):
        torch.testing.assert_close(ours.detach(), by_hand, rtol=1e-12, atol=1e-14)


def doubled(rows: Rows) -> Rows:
    inputs, labels = rows.batch(torch.arange(len(rows)))
    return Rows.from_tensors(inputs.double(), labels, ids=rows.ids)


@each_optimizer
def test_two_trainings_are_equal_bit_by_bit_and_seeds_differ(settings: TrainSettings):
    torch.manual_seed(1)
    one, _ = train(network(), rows_of(), settings, seed=4)
    torch.manual_seed(2)
    two, _ = train(network(), rows_of(), settings, seed=4)
    assert same(one, two)
    assert not same(one, train(network(), rows_of(), settings, seed=5)[0])


def with_dropout() -> nn.Module:
    return nn.Sequential(*network(), nn.Dropout(0.5))


def test_dropout_is_deterministic_for_the_seed_and_differs_from_step_to_step():
    # rejects drawing from the global generator, and one mask for all steps
    torch.manual_seed(1)
    one, _ = train(with_dropout(), rows_of(), SGD, seed=4)
    torch.manual_seed(2)
    assert same(one, train(with_dropout(), rows_of(), SGD, seed=4)[0])

    masks = []

    class Spy(nn.Dropout):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            masks.append(super().forward(torch.ones(2, 3)))
            return x

    train(nn.Sequential(*network(), Spy()), rows_of(), SGD)
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 6


def test_the_callers_model_gradients_modes_and_generators_are_left_as_found(tmp_path: Path):
    model = with_dropout().eval()
    F.cross_entropy(model(torch.ones(1, 4)), torch.tensor([0])).backward()
    model[0].train()
    weights, gradients = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    torch.manual_seed(7)
    np.random.seed(7)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    result, _ = train(model, rows_of(), SGD, folder=tmp_path)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(p.grad is None for p in result.parameters())  # those of one batch, as large as the weights
    assert [module.training for module in model] == [True, False, False, False]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert not any(module.training for module in result.modules())


def test_each_epoch_sees_each_row_once_in_a_new_order():
    _, record = train(network(), rows_of(), SGD)
    assert record.order is not None
    epochs = [[row for k in range(4) for row in record.order.batch(4 * e + k)] for e in range(3)]
    assert all(sorted(epoch) == sorted(rows_of().ids) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [len(record.order.batch(k)) for k in range(4)] == [6, 6, 6, 2]


def test_the_record_says_how_it_was_trained_with_and_without_a_folder(tmp_path: Path):
    # rejects settings that stand in one of the two records only (momentum of Adam)
    for settings in SETTINGS.values():
        memory = train(network(), rows_of(), settings, seed=3)[1].to_dict()
        disk = train(network(), rows_of(), settings, seed=3, folder=tmp_path)[1].to_dict()
        assert {k: v for k, v in memory.items() if k not in ("snapshots", "order")} == {
            k: v for k, v in disk.items() if k not in ("snapshots", "order")
        }
        assert (disk["seed"], disk["data_fingerprint"], disk["task"]) == (3, rows_of().fingerprint, "classification")
        assert disk["momentum"] == (0.9 if settings is SGD else 0.0)


def test_divergence_names_the_step_and_leaves_no_record(tmp_path: Path):
    settings = TrainSettings(lr=1e38, weight_decay=0.0, epochs=3, batch_size=10)
    with pytest.raises(InputError, match=r"the loss of step \d is not finite: training diverged; lower the learning"):
        train(nn.Sequential(network(), nn.Linear(3, 3)), rows_of(), settings, folder=tmp_path)
    assert not (tmp_path / "snapshots" / "order.safetensors").exists()


def test_data_that_does_not_fit_the_model_is_refused_before_a_step():
    rows = rows_of()
    with pytest.raises(InputError, match="label 2 is outside the model's 2 classes"):
        train(nn.Linear(4, 2), rows, SGD)
    with pytest.raises(InputError, match="int64; regression needs"):
        train(nn.Linear(4, 1), rows, SGD, task="regression")


def test_a_snapshot_after_an_epoch_that_is_not_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="after epoch 4; the training has 3 epochs"):
        train(network(), rows_of(), SGD, folder=tmp_path, snapshot_epochs=[1, 4])


def test_an_unwritable_folder_is_refused_before_training(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="can not create folder"):
        train(network(), rows_of(), ADAM, folder=tmp_path / "file")


def test_regression_is_trained_and_leaves_no_margins(tmp_path: Path):
    inputs = rows_of().batch(torch.arange(20))[0]
    rows = Rows.from_tensors(inputs, inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0]))
    settings = TrainSettings(lr=0.1, weight_decay=0.0, epochs=150, batch_size=5)
    model, record = train(nn.Linear(4, 1), rows, settings, task="regression", folder=tmp_path)
    assert F.mse_loss(model(inputs).flatten(), rows.labels) < 1e-6
    assert record.task == "regression"
    assert not (tmp_path / "trajectory.safetensors").exists()


def test_schedules_by_hand():
    def rates(schedule: str, **options: float) -> list[float]:
        return TrainSettings(lr=0.8, schedule=schedule, epochs=4, batch_size=4, **options).rates(6)  # type: ignore[arg-type]

    assert rates("constant") == [0.8] * 8
    cosine = [0.8, 0.7695518130045147, 0.6828427124746191, 0.5530733729460359, 0.4, 0.2469266270539641]
    assert rates("cosine") == pytest.approx([*cosine, 0.1171572875253810, 0.0304481869954853])
    # rejects steps counted in steps instead of epochs
    assert rates("step", step_epochs=2, step_factor=0.5) == [0.8] * 4 + [0.4] * 4
    assert rates("step", step_epochs=3, step_factor=0.25) == [0.8] * 6 + [0.2] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"lr": 0.0}, "lr is 0.0; give a number above 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"epochs": 0}, "epochs is 0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"betas": (0.9, 1.0)}, "beta2 is 1.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
    ],
)
def test_settings_that_can_not_be_meant_are_refused(options: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        TrainSettings(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("epochs", "count"), [(15, 4), (45, 6), (3, 9), (1, 3), (100, 3)])
def test_few_snapshots_end_with_the_last_two_epochs_and_halve_towards_them(epochs: int, count: int) -> None:
    found = snapshot_epochs(count, epochs)
    assert found[0] == 0
    assert found[-2:] == [epochs - 1, epochs]
    assert len(found) == count or found == list(range(epochs + 1)) or count > epochs
    lengths = [b - a for a, b in itertools.pairwise(found[:-1])]
    assert lengths == sorted(lengths, reverse=True)


def test_snapshots_that_can_not_be_meant_are_refused() -> None:
    with pytest.raises(InputError, match="2 snapshots are asked for; give at least 3"):
        snapshot_epochs(2, 10)
    with pytest.raises(InputError, match="after epochs 0 to 11; the training has 0 to 10"):
        snapshot_epochs([11], 10)
    with pytest.raises(InputError, match="give 'every'"):
        snapshot_epochs("all", 10)  # type: ignore[arg-type]
