"""Retrained models to compare with."""

from __future__ import annotations

import copy
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import unlearn
from unlearn.data import Rows
from unlearn.errors import CheckpointError, InputError, RecordError, WorkerError
from unlearn.models import build_model
from unlearn.training import TrainingRecord, TrainSettings, replay
from unlearn.verification.references import Price, exchanged, fresh_weights, given_references, train_references

Trained = tuple[nn.Module, Rows, TrainingRecord, Path]
COUNT = 100


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.drop, self.head = nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.tanh(self.hidden(x.flatten(1)))))


def trained_in(folder: Path, model: nn.Module | None = None) -> Trained:
    rows = unlearn.load_data("digits").at(torch.arange(COUNT))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = model or build_model("mlp", inputs=64, classes=10, widths=[8])
    settings = TrainSettings(epochs=3, batch_size=32, lr=0.05)
    trained, record = unlearn.train(start, rows, settings, seed=2, folder=folder, snapshot_epochs=(0,))
    return trained, rows, record, folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_in(tmp_path_factory.mktemp("references"))


def same(a: nn.Module | None, b: nn.Module | None) -> bool:
    assert a is not None
    assert b is not None
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def by_hand(model: nn.Module, rows: Rows, record: TrainingRecord) -> nn.Module:
    """The recorded batches without the rows that are gone; mean over those left."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    assert record.order is not None
    for step in range(record.steps):
        inputs, labels = rows.batch(torch.tensor([rows.ids.index(i) for i in record.order.batch(step) if i in rows]))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


def test_coupled_retrain_is_the_recorded_training_without_the_rows(trained: Trained) -> None:
    model, rows, record, _ = trained
    changed = rows.without(rows.ids[:10]).relabelled({rows.ids[20]: 1})
    first = copy.deepcopy(model)
    record.snapshot(0).restore(first)
    coupled = train_references(model, changed, record, count=0).coupled
    assert same(coupled, replay(first, changed, record)[0])
    assert coupled is not None
    for found, wanted in zip(coupled.parameters(), by_hand(first, changed, record).parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert not same(coupled, model)


def test_coupled_retrain_on_the_same_rows_is_the_original(trained: Trained) -> None:
    model, rows, record, _ = trained
    before = copy.deepcopy(model)
    assert same(train_references(model, rows, record, count=0).coupled, model)
    assert same(model, before)


def test_independent_retrains_differ_by_seed_alone(trained: Trained) -> None:
    model, rows, record, _ = trained
    torch.manual_seed(3)
    found = train_references(model, rows, record, count=3)
    assert found.trained == 4
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))  # global seeds are left as found
    models = [model, *found.independent]
    assert not any(same(a, b) for i, a in enumerate(models) for b in models[:i])
    again = train_references(model, rows, record, count=2)
    assert all(same(a, b) for a, b in zip(again.independent, found.independent, strict=False))
    other = train_references(model, rows, replace(record, seed=9), count=1)  # of another original: other seeds
    assert not any(same(other.independent[0], m) for m in found.independent)


def test_an_independent_retrain_is_fresh_weights_on_exchanged_batches(trained: Trained) -> None:
    model, rows, record, _ = trained
    (one,) = train_references(model, rows, record, count=1).independent
    seed = 1000 + 2 * 1000
    start = fresh_weights(model, seed)
    wanted = by_hand(start, rows, exchanged(record, seed))
    for found, value in zip(one.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=1e-6)


def test_exchanged_keeps_batch_sizes_and_passes(trained: Trained) -> None:
    record = trained[2]
    other = exchanged(record, 7)
    assert record.order is not None
    assert other.order is not None
    per_epoch = 4
    for step in range(record.steps):
        assert len(other.order.batch(step)) == len(record.order.batch(step))
    for epoch in range(3):
        seen = [row for s in range(per_epoch) for row in other.order.batch(epoch * per_epoch + s)]
        assert sorted(seen) == sorted(record.order.ids)  # each row once an epoch
    assert other.order.batch(0) != record.order.batch(0)
    assert set(other.order.batch(0)) != set(record.order.batch(0))
    assert (other.lr, other.steps, other.weight_decay) == (record.lr, record.steps, record.weight_decay)
    assert other.order.digest == exchanged(record, 7).order.digest  # type: ignore[union-attr]
    with pytest.raises(RecordError, match="no row order"):
        exchanged(replace(record, order=None), 1)


def test_dropout_of_independent_retrains_is_independent(tmp_path: Path) -> None:
    """They once drew the original's dropout masks step by step, which would narrow the floor."""
    model, rows, record, _ = trained_in(tmp_path, WithDropout())
    assert same(train_references(model, rows, record, count=0).coupled, model)
    assert exchanged(record, 1).seed != record.seed
    masks_only = replace(record, seed=record.seed + 1)  # type: ignore[operator]
    start = fresh_weights(model, 1)
    assert not same(replay(start, rows, record)[0], replay(start, rows, masks_only)[0])


def test_fresh_weights_depend_on_the_seed_only(trained: Trained) -> None:
    model = trained[0]
    torch.manual_seed(1)
    one = fresh_weights(model, 5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert same(one, fresh_weights(model, 5))
    assert torch.equal(state, torch.get_rng_state())
    assert same(one, fresh_weights(one, 5))  # nothing of the trained weights is left
    assert not same(one, fresh_weights(model, 6))
    for name, p in one.named_parameters():
        assert not torch.equal(p, model.get_parameter(name)), name
        assert p.requires_grad


def test_modules_that_can_not_start_afresh_are_refused(trained: Trained) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

    with pytest.raises(RecordError, match=r"module '1' has parameters but no reset_parameters.*pass train="):
        fresh_weights(nn.Sequential(nn.Linear(2, 2), Scale()), 0)


def test_what_can_not_be_retrained(trained: Trained) -> None:
    model, rows, record, _ = trained
    with pytest.raises(InputError, match="references is -1"):
        train_references(model, rows, record, count=-1)
    for poorer in (None, replace(record, order=None)):
        with pytest.raises(RecordError, match=r"pass train=\(data, seed\) -> model, or references=0"):
            train_references(model, rows, poorer, count=1)
        nothing = train_references(model, rows, poorer, count=0)
        assert (nothing.coupled, nothing.independent, nothing.trained) == (None, (), 0)
    no_start = train_references(model, rows, replace(record, snapshots={}), count=1)
    assert no_start.coupled is None
    assert len(no_start.independent) == 1


def test_the_users_own_training(trained: Trained) -> None:
    model, rows, record, _ = trained
    changed = rows.without(rows.ids[:10])
    asked: list[tuple[str, int]] = []

    def train(data: Rows, seed: int) -> nn.Module:
        asked.append((data.fingerprint, seed))
        return fresh_weights(model, seed)

    found = train_references(model, changed, None, count=2, train=train)
    assert found.coupled is None
    assert [fingerprint for fingerprint, _ in asked] == [changed.fingerprint] * 2
    assert asked[0][1] != asked[1][1]
    assert same(found.independent[0], fresh_weights(model, asked[0][1]))
    both = train_references(model, changed, record, count=1, train=train)
    assert both.coupled is not None
    assert len(asked) == 3


def test_finished_retrains_are_read_from_the_folder(trained: Trained, tmp_path: Path) -> None:
    model, rows, record, _ = trained
    first = train_references(model, rows, record, count=2, folder=tmp_path)
    assert first.trained == 3
    again = train_references(model, rows, record, count=2, folder=tmp_path)
    assert again.trained == 0
    assert same(first.coupled, again.coupled)
    assert all(same(a, b) for a, b in zip(first.independent, again.independent, strict=True))
    assert not any(m.training for m in again.independent)
    assert train_references(model, rows, record, count=3, folder=tmp_path).trained == 1
    assert not list(tmp_path.glob("*.part"))


def test_what_belongs_to_something_else_is_trained_anew(trained: Trained, tmp_path: Path) -> None:
    """Other labels, another record, another activation, or the user's own training: not the same retrain."""
    model, rows, record, _ = trained

    def trained_again(of: nn.Module, data: Rows, by: TrainingRecord, **options: object) -> int:
        return train_references(of, data, by, count=1, folder=tmp_path, **options).trained  # type: ignore[arg-type]

    assert trained_again(model, rows, record) == 2
    other = rows.relabelled({rows.ids[0]: (int(rows.labels[0]) + 1) % 10})
    assert trained_again(model, other, record) == 2
    assert trained_again(model, rows, record) == 0
    assert trained_again(model, rows, replace(record, weight_decay=0.5)) == 2
    assert trained_again(model, rows, record) == 2  # the other record's took their place
    curved = copy.deepcopy(model)
    curved[2] = nn.Tanh()
    assert trained_again(curved, rows, record) == 2
    assert trained_again(model, rows, record) == 2
    # the user's own training once got a replay from the folder; the coupled retrain is the record's in any case
    assert trained_again(model, rows, record, train=lambda data, seed: fresh_weights(model, seed)) == 1


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "text"])
def test_a_damaged_file_is_trained_anew(trained: Trained, tmp_path: Path, damage: str) -> None:
    """safetensors has no check sum: a flipped bit in a weight was once read as it stood."""
    model, rows, record, _ = trained
    first = train_references(model, rows, record, count=0, folder=tmp_path)
    (path,) = tmp_path.glob("coupled-*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[:-7],
            "bit": whole[:-20] + bytes([whole[-20] ^ 64]) + whole[-19:],
            "empty": b"",
            "text": b"hello",
        }[damage]
    )
    again = train_references(model, rows, record, count=0, folder=tmp_path)
    assert again.trained == 1
    assert same(first.coupled, again.coupled)
    assert path.read_bytes() == whole


def test_several_processes_give_the_bytes_of_one(trained: Trained, tmp_path: Path) -> None:
    """The caller's tensors stay where they are: sent as they are, they once moved into shared memory."""
    model, rows, record, _ = trained
    told: list[Price] = []
    found = train_references(model, rows, record, count=2, folder=tmp_path / "two", processes=2, tell=told.append)
    assert told == [Price(retrains=3, finished=0, epochs=3.0, processes=2)]
    one = train_references(model, rows, record, count=2, folder=tmp_path / "one")
    assert all(same(a, b) for a, b in zip(found.independent, one.independent, strict=True))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    assert not any(p.is_shared() for p in model.parameters())


def killed_at_1002(rows: Rows, seed: int) -> nn.Module:
    """A training whose third run is ended by the system."""
    if seed == 1002:
        os.kill(os.getpid(), signal.SIGKILL)
    return fresh_weights(nn.Linear(64, 10), seed)


def test_a_killed_worker_is_one_clear_line_and_finished_retrains_stay(tmp_path: Path) -> None:
    rows = Rows.from_tensors(torch.zeros(2, 64), torch.tensor([0, 9]))
    model = nn.Linear(64, 10)
    train_references(model, rows, None, count=2, train=killed_at_1002, folder=tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(WorkerError, match=r"a worker process ended with [01] of 2 retrains done: killed") as caught:
        train_references(model, rows, None, count=4, train=killed_at_1002, folder=tmp_path, processes=2)
    assert "\n" not in str(caught.value)
    assert all((tmp_path / name).read_bytes() == data for name, data in kept.items())
    assert not list(tmp_path.glob("*.part"))


def test_what_can_not_be_sent_and_a_wrong_number_of_processes_are_refused(trained: Trained) -> None:
    model, rows, _, _ = trained
    with pytest.raises(InputError, match=r"can not be sent to another process.*or use processes=1"):
        train_references(model, rows, None, count=2, train=lambda data, seed: model, processes=2)
    with pytest.raises(InputError, match="processes is 0; give a number above 0, or 'auto'"):
        train_references(model, rows, None, count=2, train=killed_at_1002, processes=0)


def test_the_price_is_told_before_anything_is_trained(trained: Trained, tmp_path: Path) -> None:
    model, rows, record, _ = trained
    changed = rows.without(rows.ids[:10])
    told: list[Price] = []

    def tell(price: Price) -> None:
        assert len(list(tmp_path.iterdir())) == price.finished
        told.append(price)

    for count in (1, 3):
        train_references(model, changed, record, count=count, folder=tmp_path, tell=tell)
    # three epochs without a tenth of the rows, the coupled retrain among them
    assert told == [Price(2, 0, pytest.approx(2.7)), Price(2, 2, pytest.approx(2.7))]
    assert told[0].total == pytest.approx(5.4)
    train_references(model, rows, None, count=1, train=killed_at_1002, tell=told.append)
    assert told[-1].total is None
    assert "cost is not known" in str(told[-1])


def test_retrains_of_the_users_own(trained: Trained, tmp_path: Path) -> None:
    """Files of this tool, of another program, and modules."""
    model = trained[0]
    own = [fresh_weights(model, seed) for seed in (1, 2, 3)]
    unlearn.save_checkpoint(tmp_path / "ours.safetensors", own[0])
    save_file(own[1].state_dict(), tmp_path / "foreign.safetensors")
    found = given_references([tmp_path / "ours.safetensors", str(tmp_path / "foreign.safetensors"), own[2]], model)
    assert all(same(a, b) for a, b in zip(found.independent, own, strict=True))
    assert found.coupled is None
    assert "no coupled retrain" in found.notes[0]
    other = build_model("mlp", inputs=64, classes=10, widths=[9])
    unlearn.save_checkpoint(tmp_path / "other.safetensors", other)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        given_references([tmp_path / "other.safetensors"], model)


@pytest.mark.parametrize(
    ("missing", "why"),
    [("record", "foreign weights have no training record"), ("order", "no row order"), ("snapshots", "no snapshot of")],
)
def test_why_there_is_no_coupled_retrain_is_said(trained: Trained, missing: str, why: str) -> None:
    model, rows, record, _ = trained
    poorer = {
        "record": None,
        "order": replace(record, order=None),
        "snapshots": replace(record, snapshots={}),
    }[missing]
    (note,) = train_references(model, rows, poorer, count=0).notes
    assert note.startswith(why)
    assert note.endswith("so there is no coupled retrain")
    assert train_references(model, rows, record, count=0).notes == ()
