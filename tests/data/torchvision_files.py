"""Small files of torchvision's data sets in their original formats, and what is in them."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

COUNTS = {"train": 10, "test": 6}


def let_small_files_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision compares sums of the full files; ours are small. Whether a file is there is still checked."""
    for module in ("cifar", "svhn", "flowers102"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: Path(path).is_file()
        )


def drawn(split: str, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(len(split))
    labels = np.arange(COUNTS[split]) % 10
    return generator.integers(0, 256, (COUNTS[split], *shape), dtype=np.uint8), labels


def write_idx(root: Path, name: str) -> None:
    from torchvision.datasets.utils import extract_archive

    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for split, stem in (("train", "train"), ("test", "t10k")):
        images, labels = drawn(split, 28, 28)
        whole = {
            f"{stem}-images-idx3-ubyte": struct.pack(">HBB3I", 0, 8, 3, *images.shape) + images.tobytes(),
            f"{stem}-labels-idx1-ubyte": struct.pack(">HBBI", 0, 8, 1, len(labels)) + labels.astype(np.uint8).tobytes(),
        }
        for file, content in whole.items():
            (folder / f"{file}.gz").write_bytes(gzip.compress(content))
            extract_archive(str(folder / f"{file}.gz"), str(folder))


def write_cifar(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images, labels = drawn("train", 3072)
    batches = {f"data_batch_{k + 1}": (images[2 * k : 2 * k + 2], labels[2 * k : 2 * k + 2]) for k in range(5)}
    for file, (data, given) in (batches | {"test_batch": drawn("test", 3072)}).items():
        (folder / file).write_bytes(pickle.dumps({"data": data, "labels": given.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{k}" for k in range(10)]}))


def write_svhn(root: Path) -> None:
    for split in COUNTS:
        images, labels = drawn(split, 32, 32, 3)
        digits = np.where(labels == 0, 10, labels)[:, None]  # the files call the digit 0 "10"
        savemat(root / f"{split}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": digits})


def colour(k: int) -> tuple[int, int, int]:
    return (20 * k, 100, 255 - 20 * k)


def write_flowers(root: Path) -> None:
    (root / "flowers-102" / "jpg").mkdir(parents=True)
    for k in range(1, 9):
        Image.new("RGB", (40 + k, 50), colour(k)).save(root / "flowers-102" / "jpg" / f"image_{k:05d}.jpg")
    savemat(root / "flowers-102" / "setid.mat", {"trnid": [[7, 2, 5]], "valid": [[1, 3]], "tstid": [[4, 6, 8]]})
    savemat(root / "flowers-102" / "imagelabels.mat", {"labels": [[1, 102, 3, 4, 50, 6, 7, 8]]})


def write_food(root: Path) -> None:
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    for k, food in enumerate(("apple_pie", "waffles")):
        (folder / "images" / food).mkdir(parents=True)
        for number in (11, 12, 13):
            Image.new("RGB", (30, 60), colour(k)).save(folder / "images" / food / f"{number}.jpg")
    # the classes in another order than the alphabet's
    train = {"waffles": ["waffles/11", "waffles/12"], "apple_pie": ["apple_pie/12", "apple_pie/13"]}
    (folder / "meta" / "train.json").write_text(json.dumps(train))
    test = {"waffles": ["waffles/13"], "apple_pie": ["apple_pie/11"]}
    (folder / "meta" / "test.json").write_text(json.dumps(test))
