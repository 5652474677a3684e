"""MNIST, FashionMNIST, CIFAR-10, SVHN, Flowers102 and Food101 from a local folder, through torchvision's readers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearn.data.pictures import PictureFormat, ReadPictures, StoredPictures, check_files, open_picture
from unlearn.data.rows import Rows
from unlearn.errors import InputError
from unlearn.extras import extra_module
from unlearn.source_options import TorchvisionOptions


@dataclass(frozen=True)
class _Set:
    """A data set of torchvision: its class there, classes, channels, size, and whether ``train`` is a flag."""

    reader: str
    classes: int
    channels: int
    size: int
    files: str
    flag: bool = False


_SETS = {
    "mnist": _Set("MNIST", 10, 1, 28, "MNIST/raw/train-images-idx3-ubyte and the like", flag=True),
    "fashion-mnist": _Set(
        "FashionMNIST", 10, 1, 28, "FashionMNIST/raw/train-images-idx3-ubyte and the like", flag=True
    ),
    "cifar10": _Set("CIFAR10", 10, 3, 32, "cifar-10-batches-py/data_batch_1 and the like", flag=True),
    "svhn": _Set("SVHN", 10, 3, 32, "train_32x32.mat and test_32x32.mat"),
    "flowers102": _Set("Flowers102", 102, 3, 224, "flowers-102/jpg/, imagelabels.mat and setid.mat"),
    "food101": _Set("Food101", 101, 3, 224, "food-101/images/ and food-101/meta/"),
}


def torchvision_rows(name: str, split: str, options: TorchvisionOptions) -> Rows:
    """Return the rows of a data set that torchvision reads, with its own split into train and test.

    Args:
        name: ``mnist``, ``fashion-mnist``, ``cifar10``, ``svhn``, ``flowers102`` or ``food101``.
        split: ``train``, ``test`` or ``all``.
        options: root, download, and what images become.

    Returns:
        Rows with ids ``<name>-<split>-<row number>``, or ``<name>-<file>`` where each image is a file. The bytes of
        sets without files are held in memory; files are decoded each time they are asked for.

    Raises:
        InputError: files are missing or damaged, or can not be downloaded.
        MissingExtraError: torchvision is not installed.
    """
    chosen = _SETS[name]
    form = PictureFormat.of(options, chosen.size, chosen.channels)
    found = {part: _read(name, part, options) for part in (("train", "test") if split == "all" else (split,))}
    labels = torch.cat([_labels(part) for part in found.values()])
    if hasattr(next(iter(found.values())), "_image_files"):
        paths = [Path(path) for part in found.values() for path in part._image_files]
        check_files(paths, name)
        folder = next(iter(found.values()))._images_folder
        ids = [f"{name}-{path.relative_to(folder).with_suffix('').as_posix()}" for path in paths]
        source: Any = ReadPictures(lambda row: open_picture(paths[row]), ids, form)
    else:
        ids = [f"{name}-{part}-{i:05d}" for part, rows in found.items() for i in range(len(rows))]
        source = StoredPictures(torch.cat([_pixels(part, form, chosen) for part in found.values()]), form)
    return Rows.from_source(source, labels, length=len(ids), ids=ids, classes=chosen.classes, name=name)


def _read(name: str, split: str, options: TorchvisionOptions) -> Any:
    datasets = extra_module("torchvision.datasets", "vision", f"data {name!r} is read by torchvision")
    chosen, root = _SETS[name], Path(options.root).expanduser()
    part = {"train": split == "train"} if chosen.flag else {"split": split}
    try:
        return getattr(datasets, chosen.reader)(str(root), download=options.download, **part)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        what = "can not be downloaded to" if options.download else "is missing or damaged in"
        do = "put the files there" if options.download else "put them there, or state download = true"
        raise InputError(
            f"data {name!r} {what} {str(root)!r} ({str(error).splitlines()[0]}); it reads {chosen.files} there: {do}"
        ) from error


def _labels(dataset: Any) -> Tensor:
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            return torch.as_tensor(getattr(dataset, attribute), dtype=torch.long)
    raise InputError(f"this version of torchvision keeps no labels in {type(dataset).__name__}; use another one")


def _pixels(dataset: Any, form: PictureFormat, chosen: _Set) -> Tensor:
    """Return all images as bytes; at once where they are stored in the format that is asked for."""
    if (form.size, form.channels) != (chosen.size, chosen.channels):
        return torch.stack([form.pixels(dataset[i][0]) for i in range(len(dataset))])
    stored = torch.as_tensor(dataset.data)
    if stored.ndim == 3:
        return stored[:, None]
    return stored if stored.shape[1] == chosen.channels else stored.permute(0, 3, 1, 2).contiguous()
