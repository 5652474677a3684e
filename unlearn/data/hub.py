"""Hugging Face data sets: by name on the Hub, from a folder of files, or from what ``save_to_disk`` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn.data.column_rows import column_rows
from unlearn.data.rows import Rows
from unlearn.errors import InputError, did_you_mean
from unlearn.extras import extra_module
from unlearn.source_options import HubOptions


class _Column(Sequence[Any]):
    """A column that is read row by row, so that images are decoded when they are asked for."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset = dataset.select_columns([name])
        self.name = name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: Any) -> Any:
        return self.dataset[row][self.name]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dataset[self.name])


def hub_rows(split: str, split_seed: int, options: HubOptions) -> Rows:
    """Return the rows of a Hugging Face data set.

    Names of classes that the data set states (``ClassLabel``) give the class numbers. Without a test split, a share
    of the training split is drawn by id.

    Raises:
        InputError: the data set, a split or a column is not there, or the Hub can not be reached.
        MissingExtraError: datasets is not installed.
    """
    found = _load(options)
    name = Path(options.path).name
    if not isinstance(found, Mapping):
        if options.test:
            raise InputError(f"{name} has no splits, so no test split {options.test!r}; leave the option 'test' out")
        parts = {"train": found}
    else:
        test = options.test or ("test" if "test" in found else None)
        wanted = {"train": options.train} | ({"test": test} if test else {})
        for key in wanted.values():
            if key not in found:
                raise InputError(f"{name} has no split {key!r}; {did_you_mean(key, found)}")
        parts = {part: found[key] for part, key in wanted.items()}
    columns: dict[str, dict[str, Sequence[Any]]] = {
        part: {column: _Column(dataset, column) for column in dataset.column_names} for part, dataset in parts.items()
    }
    for part, dataset in parts.items():
        names = getattr(dataset.features.get(options.label), "names", None)
        if names:
            options = options if options.classes else options.model_copy(update={"classes": tuple(names)})
            given = columns[part][options.label]
            # -1 is how Hugging Face says that a label is not known
            columns[part][options.label] = [None if k is None or k < 0 else names[k] for k in given]
    return column_rows(columns, split, split_seed, options, name=name, folder=Path(options.path).expanduser())


def _load(options: HubOptions) -> Any:
    datasets = extra_module("datasets", "hf", "data 'hub' is read by datasets")
    folder = Path(options.path).expanduser()
    saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
    if not folder.exists() and (folder.is_absolute() or options.path.startswith((".", "~"))):
        raise InputError(
            f"folder {options.path!r} is not there; give a folder, or a name on the Hub such as 'ag_news'; where there "
            f"is network, make one by datasets.load_dataset(NAME).save_to_disk({options.path!r})"
        )
    try:
        if saved:
            return datasets.load_from_disk(str(folder))
        path = str(folder) if folder.exists() else options.path
        return datasets.load_dataset(path, options.config, revision=options.revision)
    except ConnectionError as error:
        raise InputError(
            f"data set {options.path!r} can not be reached on the Hub: {_line(error)}; where there is network, make a "
            f"local copy by datasets.load_dataset({options.path!r}).save_to_disk('copy'), and state path = 'copy'"
        ) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
        raise InputError(
            f"data set {options.path!r} can not be loaded: {_line(error)}; give a name on the Hub, a folder of CSV, "
            "JSON, Parquet or image files, or one that save_to_disk wrote"
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
