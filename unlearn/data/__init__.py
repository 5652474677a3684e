"""Rows with stable ids, data sets by name, views, seeded label noise and corruptions."""

from unlearn.data.as_rows import as_rows
from unlearn.data.corruptions import (
    Corrupted,
    add_duplicates,
    add_outliers,
    add_trigger,
    corrupt_inputs,
    with_trigger,
)
from unlearn.data.mapped import mapped_rows
from unlearn.data.noise import pair_noise, symmetric_noise
from unlearn.data.rows import DEFAULT_BATCH, Rows
from unlearn.data.sources import load_data
from unlearn.data.tokens import token_rows
from unlearn.data.within_memory import within_memory

__all__ = [
    "DEFAULT_BATCH",
    "Corrupted",
    "Rows",
    "add_duplicates",
    "add_outliers",
    "add_trigger",
    "as_rows",
    "corrupt_inputs",
    "load_data",
    "mapped_rows",
    "pair_noise",
    "symmetric_noise",
    "token_rows",
    "with_trigger",
    "within_memory",
]
