"""Options of the data sources that read a user's files: names, types, defaults. No torch: recipes check them early."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unlearn.errors import InputError, did_you_mean


class SourceOptions(BaseModel):
    """Options of a source; this one takes none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PictureOptions(SourceOptions):
    """How images become tensors; see :class:`unlearn.data.pictures.PictureFormat`."""

    size: int | None = Field(default=None, gt=0)
    channels: Literal[1, 3] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[Annotated[float, Field(gt=0)], ...] = ()

    @model_validator(mode="after")
    def _mean_with_std(self) -> PictureOptions:
        if len(self.mean) != len(self.std) or (self.channels and len(self.mean) not in (0, self.channels)):
            raise ValueError("mean and std go together, with one number for each channel, or none")
        return self


class TorchvisionOptions(PictureOptions):
    """A data set that torchvision reads, from the folder ``root``; downloaded only on request."""

    root: str
    download: bool = False


class ColumnOptions(PictureOptions):
    """Which columns are inputs, label and id.

    ``inputs``: columns of numbers; ``image``: a column of images; ``text``: a column of texts, cut into ``length``
    tokens by ``tokenizer``. One of the three; without any, all columns but label and id are inputs.
    """

    label: str = "label"
    id: str | None = None
    inputs: tuple[str, ...] = ()
    standardise: bool = True
    image: str | None = None
    text: str | None = None
    tokenizer: str | None = None
    length: int = Field(default=128, gt=0)
    classes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_kind_of_input(self) -> ColumnOptions:
        if sum(map(bool, (self.inputs, self.image, self.text))) > 1:
            raise ValueError("inputs, image and text are three kinds of input; state one of them")
        if bool(self.text) != bool(self.tokenizer):
            raise ValueError("text and tokenizer go together: a column, and the name or folder of its tokenizer")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes names a class twice; name each once, in the order of their numbers")
        return self


class TableOptions(ColumnOptions):
    """A CSV, JSON Lines or Parquet file; image paths are relative to ``folder``, by default the file's own."""

    path: str
    test: str | None = None
    folder: str | None = None


class MappedOptions(SourceOptions):
    """A safetensors file of rows that stays on the disk; see :func:`unlearn.data.mapped.mapped_rows`."""

    path: str
    test: str | None = None
    label: str = "labels"


class HubOptions(ColumnOptions):
    """A Hugging Face data set: a name on the Hub, a folder of its files, or a folder that ``save_to_disk`` wrote."""

    path: str
    config: str | None = None
    revision: str | None = None
    train: str = "train"
    test: str | None = None


SOURCE_OPTIONS: dict[str, type[SourceOptions]] = {
    "mnist": TorchvisionOptions,
    "fashion-mnist": TorchvisionOptions,
    "cifar10": TorchvisionOptions,
    "svhn": TorchvisionOptions,
    "flowers102": TorchvisionOptions,
    "food101": TorchvisionOptions,
    "table": TableOptions,
    "hub": HubOptions,
    "safetensors": MappedOptions,
}


def check_options(source: str, options: dict[str, Any]) -> SourceOptions:
    """Return the validated options of a source.

    Raises:
        InputError: an option that the source does not take, that is missing, or of a value that is not allowed.

    >>> check_options("mnist", {"root": "data"}).download
    False
    """
    kind = SOURCE_OPTIONS.get(source, SourceOptions)
    try:
        return kind(**options)
    except ValidationError as error:
        # a misspelt option is the reason why another is missing
        problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        option = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            known = kind.model_fields
            tail = did_you_mean(option, known) if known else "it takes none"
            raise InputError(f"data {source!r} has no option {option!r}; {tail}") from error
        if problem["type"] == "missing":
            raise InputError(
                f"data {source!r} needs the option {option!r}; it takes {', '.join(kind.model_fields)}"
            ) from error
        what = f"option {option!r} is {problem['input']!r}: " if option else ""
        raise InputError(f"data {source!r}: {what}{problem['msg'].removeprefix('Value error, ')}") from error
