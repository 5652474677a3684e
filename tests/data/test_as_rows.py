"""Anything map-style becomes rows; anything that can not be read by number is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from unlearn.data import Rows, as_rows
from unlearn.errors import InputError

X = torch.arange(24.0).reshape(8, 3)
Y = torch.arange(8) % 2
EXPECTED = Rows.from_tensors(X, Y)


class Items(Dataset[Any]):
    """A data set of whatever ``item`` makes of a row number."""

    def __init__(self, item: Any, n: int = 8) -> None:
        self.item, self.n = item, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return self.item(i)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


def hugging_face(**columns: Any) -> Any:
    return pytest.importorskip("datasets").Dataset.from_dict(columns)


SAME = {
    "pair": lambda: (X, Y),
    "list of two tensors": lambda: [X, Y],
    "TensorDataset": lambda: TensorDataset(X, Y),
    "tuples, plain numbers": lambda: Items(lambda i: (X[i].tolist(), int(Y[i]))),
    "numpy": lambda: Items(lambda i: (X[i].numpy(), Y[i].numpy())),
    "dictionaries": lambda: Items(lambda i: {"pixel_values": X[i], "labels": Y[i], "other": "text"}),
    "list of pairs": lambda: list(zip(X, Y, strict=True)),
    "Hugging Face": lambda: hugging_face(image=X.tolist(), label=Y.tolist()),
    "DataLoader": lambda: DataLoader(TensorDataset(X, Y), batch_size=3),
    "DataLoader, unbatched": lambda: DataLoader(TensorDataset(X, Y), batch_size=None),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME.keys())
def test_every_kind_gives_the_same_rows(make: Any):
    # rejects kinds that differ in dtype, shape, order or ids
    rows = as_rows(make())
    assert rows.fingerprint == EXPECTED.fingerprint
    assert (rows.ids, rows.classes) == (EXPECTED.ids, 2)
    assert torch.equal(rows.at(torch.tensor([6, 1])).batch(torch.tensor([0, 1]))[0], X[[6, 1]])


def test_rows_are_returned_as_they_are_and_take_no_options():
    assert as_rows(EXPECTED) is EXPECTED
    with pytest.raises(InputError, match="ids has no meaning for rows"):
        as_rows(EXPECTED, ids=list("abcdefgh"))
    with pytest.raises(InputError, match="id_column has no meaning for a pair of tensors"):
        as_rows((X, Y), id_column="name")


def test_columns_and_ids_of_a_hugging_face_dataset():
    data = hugging_face(name=[f"r{i}" for i in range(8)], a=X.tolist(), b=(1 - Y).tolist(), label=Y.tolist())
    rows = as_rows(data, input_column="a", label_column="b", id_column="name")
    assert rows.ids[:2] == ("r0", "r1")
    assert torch.equal(rows.labels, 1 - Y)
    assert rows.only(["r5"])[0][0].tolist() == X[5].tolist()
    numbered = as_rows(hugging_face(id=list(range(10, 18)), x=X.tolist(), y=Y.tolist()), id_column="id")
    assert numbered.ids[0] == "10"  # not "tensor(10)"
    with pytest.raises(InputError, match="columns name, a, b, label: none is known as input; pass input_column="):
        as_rows(data)
    with pytest.raises(InputError, match=r"has no column 'c'; its columns are name, a, b, label"):
        as_rows(data, input_column="c")
    with pytest.raises(InputError, match="given twice"):
        as_rows(data, input_column="a", id_column="name", ids=list("abcdefgh"))


def test_a_missing_label_column_names_what_is_there():
    with pytest.raises(InputError, match="columns x, klass: none is known as label; pass label_column="):
        as_rows(Items(lambda i: {"x": X[i], "klass": Y[i]}))


def test_regression_labels_stay_numbers():
    rows = as_rows(Items(lambda i: (X[i], float(i) / 2)))
    assert rows.classes is None
    assert rows.labels.tolist() == [i / 2 for i in range(8)]


@pytest.mark.parametrize(
    "loader",
    [
        lambda data: DataLoader(data, shuffle=True),
        lambda data: DataLoader(data, sampler=RandomSampler(data)),
        # its .sampler is sequential all the same: rejects looking there alone
        lambda data: DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 2, False)),
    ],
)
def test_a_shuffling_loader_is_refused(loader: Any):
    with pytest.raises(InputError, match=r"DataLoader with RandomSampler.*shuffle=False"):
        as_rows(loader(TensorDataset(X, Y)))


def test_a_loader_whose_collate_function_would_be_lost_is_refused():
    # rejects rows that differ from what the loader gives
    loader = DataLoader(TensorDataset(X, Y), collate_fn=lambda items: (torch.stack([x / 255 for x, _ in items]), Y))
    with pytest.raises(InputError, match="collate_fn"):
        as_rows(loader)


@pytest.mark.parametrize("data", [Stream(), DataLoader(Stream()), iter([1]), 5, {1, 2}])
def test_what_can_not_be_read_by_number_is_refused(data: Any):
    with pytest.raises(InputError, match="rows are read by number"):
        as_rows(data)


@pytest.mark.parametrize("seed", range(5))
def test_a_random_transform_is_found_even_when_it_acts_on_half_the_reads(seed: int):
    # rejects reading one row twice: a random flip leaves it alike every second time
    generator = torch.Generator().manual_seed(seed)

    def flipped(i: int) -> tuple[Tensor, Tensor]:
        return (X[i].flip(0) if torch.rand((), generator=generator) < 0.5 else X[i]), Y[i]

    with pytest.raises(InputError, match="read twice gives two values: a random transform"):
        as_rows(Items(flipped))


def test_a_nan_is_no_random_transform():
    # rejects a comparison by which NaN differs from itself: the message would blame the wrong thing
    x = X.clone()
    x[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite in rows 0"):
        as_rows(TensorDataset(x, Y)).batch(torch.tensor([0]))


def test_empty_and_odd_items_are_refused():
    with pytest.raises(InputError, match="is empty"):
        as_rows([])
    with pytest.raises(InputError, match="0 inputs"):
        as_rows((X[:0], Y[:0]))
    with pytest.raises(InputError, match="items of data are Tensor"):
        as_rows(Items(lambda i: X[i]))
    with pytest.raises(InputError, match="pairs, which have no column 'id'"):
        as_rows(TensorDataset(X, Y), id_column="id")
    with pytest.raises(InputError, match="input of row 0 of reviews is str, not numbers"):
        as_rows(Items(lambda i: ("text", 0)), name="reviews")
    with pytest.raises(InputError, match=r"inputs of data differ in shape: \(1,\) in row 0, \(2,\) in row 1"):
        as_rows(Items(lambda i: (torch.zeros(i + 1), 0))).batch(torch.arange(3))
    with pytest.raises(InputError, match="not unique"):
        as_rows(Items(lambda i: {"x": X[i], "y": 0, "id": "same"}), id_column="id")


def test_bool_and_integer_inputs_pass():
    assert as_rows(Items(lambda i: (X[i] > 3, 0))).batch(torch.arange(2))[0].dtype == torch.bool
    assert as_rows(Items(lambda i: (X[i].to(torch.uint8), 0))).batch(torch.arange(2))[0].dtype == torch.uint8
