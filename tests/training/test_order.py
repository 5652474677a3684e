"""The row order of a training."""

from __future__ import annotations

import torch
from training_cases import rows_of

from unlearn.data import Rows
from unlearn.training import BatchOrder


def test_batches_come_back_as_given():
    batches = [["c", "a"], ["b"], [], ["a", "a", "c"]]
    order = BatchOrder.from_batches(batches)
    assert [order.batch(step) for step in range(len(order))] == batches


def test_places_on_changed_rows_are_empty_and_nothing_moves_up():
    # rejects closing the gaps, which would make other batches
    order = BatchOrder.from_batches([["r4", "r2", "r0"], ["r2", "r1"]])
    rows = rows_of(5).at(torch.tensor([4, 0, 1]))  # without r2, in another order
    assert order.on(rows).tolist() == [[0, -1, 1], [-1, 2, -1]]


def test_an_epochs_order_depends_on_seed_and_epoch_only():
    # rejects a generator that runs on from epoch to epoch, so that more epochs change the first
    ids = [f"r{i}" for i in range(10)]
    short, long = (BatchOrder.shuffled(ids, epochs=e, batch_size=4, seed=3) for e in (2, 5))
    assert torch.equal(short.positions, long.positions[:6])
    assert not torch.equal(short.positions[:3], short.positions[3:])
    assert short.positions[2].tolist()[2:] == [-1, -1]
    assert not torch.equal(BatchOrder.shuffled(ids, epochs=2, batch_size=4, seed=4).positions, short.positions)


def test_the_digest_tells_orders_apart():
    one = BatchOrder.from_batches([["a", "b"], ["c"]])
    assert one.digest == BatchOrder.from_batches([["a", "b"], ["c"]]).digest
    others = [[["a", "b", "c"]], [["b", "a"], ["c"]], [["a", "b"], ["d"]], [["a"], ["b", "c"]]]
    assert len({one.digest, *(BatchOrder.from_batches(batches).digest for batches in others)}) == 5


def test_a_hundred_thousand_rows_keep_their_places():
    # rejects a search per place, which does not end: 10^6 places against 10^5 ids
    n = 100_000
    rows = Rows.from_tensors(torch.zeros(n, 1), torch.zeros(n).long())
    order = BatchOrder.shuffled(rows.ids, epochs=10, batch_size=100, seed=0)
    places = order.on(rows.at(torch.arange(n - 1, -1, -1)))
    again = BatchOrder.from_batches([order.batch(step) for step in range(len(order))])
    assert torch.equal(places, n - 1 - order.positions)
    assert again.batch(9_999) == order.batch(9_999)
