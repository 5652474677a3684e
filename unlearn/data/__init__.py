"""Rows with stable ids, data sets by name, views and seeded label noise."""

from unlearn.data.as_rows import as_rows
from unlearn.data.noise import pair_noise, symmetric_noise
from unlearn.data.rows import DEFAULT_BATCH, Rows
from unlearn.data.sources import load_data

__all__ = ["DEFAULT_BATCH", "Rows", "as_rows", "load_data", "pair_noise", "symmetric_noise"]
