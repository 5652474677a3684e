"""Batches that are halved where memory runs out: nothing is done twice, left out or said more than once."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from unlearn.curvature import gauss_newton, loss_gradient
from unlearn.data import Rows, within_memory
from unlearn.detect import self_influence
from unlearn.errors import InputError

ROWS = Rows.from_tensors(torch.randn(23, 4, generator=torch.Generator().manual_seed(0)), torch.arange(23) % 3)
CPU = torch.device("cpu")


def test_batches_shrink_to_what_fits_and_each_row_is_done_once():
    seen: list[int] = []

    def work(positions, inputs, labels):
        if len(positions) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert torch.equal(inputs, ROWS.batch(positions)[0])
        seen.extend(positions.tolist())
        return len(positions)

    with pytest.warns(UserWarning, match="batches of 16 rows of data, so they were made smaller, down to 4") as said:
        sizes = list(within_memory(ROWS, 16, CPU, work, "work"))
    assert (sizes, seen, len(said)) == ([4, 4, 4, 4, 4, 3], list(range(23)), 1)


def test_what_fits_later_is_not_asked_again():
    sizes = []

    def work(positions, inputs, labels):
        sizes.append(len(positions))
        if positions[0] == 16 and len(positions) > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    with pytest.warns(UserWarning, match="down to 2"):
        list(within_memory(ROWS, 8, CPU, work, "work"))
    assert sizes == [8, 8, 7, 4, 2, 2, 2, 1]


def test_a_batch_size_beyond_the_rows_is_halved_from_the_rows():
    sizes = []

    def work(positions, inputs, labels):
        sizes.append(len(positions))
        if len(positions) > 12:
            raise torch.OutOfMemoryError

    with pytest.warns(UserWarning, match="batches of 1000 rows"):
        list(within_memory(ROWS, 1000, CPU, work, "work"))
    assert sizes == [23, 11, 11, 1]


def test_other_errors_pass_and_one_row_that_does_not_fit_is_refused():
    def broken(positions, inputs, labels):
        raise RuntimeError("mat1 and mat2 shapes can not be multiplied")

    def large(positions, inputs, labels):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="mat1"):
        list(within_memory(ROWS, 8, CPU, broken, "work"))
    with pytest.raises(InputError, match="memory runs out with a single row of data: CUDA out of memory"):
        list(within_memory(ROWS, 8, CPU, large, "work"))
    with pytest.raises(InputError, match="batch_size is 0"):
        list(within_memory(ROWS, 0, CPU, large, "work"))


class Small(nn.Linear):
    """A model for whose batches memory runs out above 6 rows."""

    def forward(self, x):
        if len(x) > 6:
            raise torch.OutOfMemoryError
        return super().forward(x)


def test_results_are_those_of_the_small_batches():
    model = Small(4, 3)
    plain = nn.Linear(4, 3)
    plain.load_state_dict(model.state_dict())
    vector = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    functions = {
        "scores": lambda m: torch.from_numpy(self_influence(m, ROWS, batch_size=16).values),
        "gradient": lambda m: loss_gradient(m, ROWS, batch_size=16)["weight"],
        "product": lambda m: gauss_newton(m, ROWS, batch_size=16).matvec(vector)["weight"],
    }
    for function in functions.values():
        with pytest.warns(UserWarning, match="memory ran out"):
            found = function(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(found, function(plain), rtol=1e-4, atol=1e-6)
