"""Shadow models: what they saw, seeds, the folder."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import unlearn
from unlearn.data import Rows
from unlearn.errors import InputError, RecordError
from unlearn.models import build_model
from unlearn.repair import Changes
from unlearn.training import TrainingRecord, TrainSettings, fresh_weights, replay
from unlearn.verification import Price, Shadows, train_references
from unlearn.verification.references import exchanged
from unlearn.verification.shadows import learn, train_shadows

COUNTS = {"never": 3, "learned": 3, "unlearned": 3}
Trained = tuple[nn.Module, Rows, TrainingRecord, Changes]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.set_num_threads(1)
    rows = unlearn.load_data("digits").at(torch.arange(80))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = build_model("mlp", inputs=64, classes=10, widths=[8])
    folder = tmp_path_factory.mktemp("shadows")
    settings = TrainSettings(epochs=3, batch_size=32)
    model, record = unlearn.train(start, rows, settings, seed=2, folder=folder, snapshot_epochs=(0, 1))
    return model, rows, record, Changes(removed=rows.ids[:4], relabelled={rows.ids[5]: 7})


def edit(model: nn.Module, data: Rows, changes: Changes, record: TrainingRecord) -> nn.Module:
    return unlearn.apply_changes(model, data, changes, record=record, budget=1.0, allow_empty_class=True).model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_each_kind_is_trained_on_what_its_name_says(trained: Trained) -> None:
    model, rows, record, changes = trained
    found = train_shadows(model, rows, changes, record, counts=COUNTS, repair=edit)
    assert found.trained == 9
    references = train_references(model, changes.apply(rows), record, count=3).independent
    assert all(same(a, b) for a, b in zip(found.never, references, strict=True))
    seed = 1000 + 2000 + 400
    by_hand = replay(fresh_weights(model, seed), rows, exchanged(record, seed))[0]
    assert same(found.learned[0], by_hand)
    every = [*found.never, *found.learned, *found.unlearned]
    assert not any(same(a, b) for i, a in enumerate(every) for b in every[:i])


def test_what_learns_and_unlearns_is_an_independent_training_and_its_edit(trained: Trained, tmp_path: Path) -> None:
    model, rows, record, changes = trained
    seed = 1000 + 2000 + 700
    learned, own = learn(model, rows, record, seed, tmp_path)
    assert same(learned, replay(fresh_weights(model, seed), rows, exchanged(record, seed))[0])
    assert sorted(own.snapshots) == sorted(record.snapshots)
    found = train_shadows(model, rows, changes, record, counts=COUNTS, repair=edit).unlearned[0]
    assert same(found, edit(learned, rows, changes, own))
    assert not same(found, learned)


def test_finished_models_are_kept_shared_with_references_and_the_price_is_told(
    trained: Trained, tmp_path: Path
) -> None:
    model, rows, record, changes = trained
    before, weights = torch.random.get_rng_state(), copy.deepcopy(model.state_dict())
    train_references(model, changes.apply(rows), record, count=2, folder=tmp_path)
    told: list[Price] = []
    options = {"repair": edit, "folder": tmp_path, "tell": told.append}
    first = train_shadows(model, rows, changes, record, counts=COUNTS, **options)
    assert (first.trained, told[0].retrains, told[0].finished, told[0].epochs) == (7, 7, 2, 3)
    more = train_shadows(model, rows, changes, record, counts={**COUNTS, "learned": 4}, **options)
    assert (more.trained, told[1].finished) == (1, 9)
    assert all(same(a, b) for a, b in zip(first.unlearned, more.unlearned, strict=True))
    assert all(same(a, b) for a, b in zip(first.learned, more.learned, strict=False))
    other = train_shadows(model, rows, changes, record, counts=COUNTS, repair_name="another", **options)
    assert other.trained == 3  # another way to unlearn is not taken for this one
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_own_training_function(trained: Trained) -> None:
    model, rows, _, changes = trained
    seen: list[tuple[int, int]] = []

    def own(data: Rows, seed: int) -> nn.Module:
        seen.append((len(data), seed))
        return fresh_weights(model, seed)

    train_shadows(model, rows, changes, None, counts={"never": 3, "learned": 3}, train=own)
    assert [count for count, _ in seen] == [76] * 3 + [80] * 3
    assert len({seed for _, seed in seen}) == 6


def test_bad_input(trained: Trained) -> None:
    model, rows, record, changes = trained
    with pytest.raises(InputError, match="2 shadow models of the kind 'learned'; give at least 3"):
        Shadows([model] * 3, [model] * 2)
    with pytest.raises(InputError, match="1 shadow models of the kind 'unlearned'"):
        Shadows([model] * 3, [model] * 3, [model])
    bare = TrainingRecord("sgd", 0.1, 10)
    with pytest.raises(RecordError, match=r"no row order is recorded, so no shadow model can be trained: pass train="):
        train_shadows(model, rows, changes, bare, counts={"never": 3, "learned": 3})
    with pytest.raises(RecordError, match="learn and then unlearn need a training record with its row order"):
        train_shadows(model, rows, changes, record, counts=COUNTS)
    with pytest.raises(InputError, match="301 shadow models of one kind are asked for; at most 300"):
        train_shadows(model, rows, changes, record, counts={"never": 301, "learned": 3})
