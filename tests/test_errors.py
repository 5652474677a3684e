"""Errors subclass built-ins and finish their sentence."""

from __future__ import annotations

import pytest

from unlearn import errors

BUILT_INS = {
    "InputError": ValueError,
    "RowNotFoundError": LookupError,
    "UnsupportedLayerError": TypeError,
    "StaleCurvatureError": ValueError,
    "RecordError": ValueError,
    "CheckpointError": ValueError,
    "RecipeError": ValueError,
    "FolderError": OSError,
    "LedgerError": ValueError,
    "LockedError": TimeoutError,
    "ConvergenceError": ArithmeticError,
    "WorkerError": RuntimeError,
    "UncertifiedError": ValueError,
    "BudgetSpentError": ArithmeticError,
    "MissingExtraError": ImportError,
}


@pytest.mark.parametrize("name", BUILT_INS)
def test_each_error_is_caught_as_a_built_in_and_as_the_tools_own(name: str):
    error = getattr(errors, name)
    assert issubclass(error, (BUILT_INS[name]))
    assert issubclass(error, errors.UnlearnError)
    assert str(error("one line")) == "one line"  # rejects the quotes of KeyError


def test_no_error_is_left_out_of_the_table():
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and name != "UnlearnError"}
    assert {name for name in defined if name.endswith("Error")} == set(BUILT_INS)


def test_the_nearest_word_is_offered_only_when_it_is_near():
    assert errors.did_you_mean("wieght_decay", ["lr", "weight_decay"]).startswith("did you mean 'weight_decay'?")
    assert errors.did_you_mean("q", ["lr", "weight_decay"]) == "known: lr, weight_decay"
    assert errors.did_you_mean("a", []) == "known: "


def test_a_long_list_is_cut_and_counted():
    assert errors.some(range(5)) == "0, 1, 2, 3, 4"  # rejects "and 0 more"
    assert errors.some((i for i in range(7)), most=5) == "0, 1, 2, 3, 4 and 2 more"
    assert errors.some([]) == ""
