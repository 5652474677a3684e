"""Each torchvision set, read from small files in its original format that the tests write."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from unlearn.data import load_data
from unlearn.errors import InputError

torchvision = pytest.importorskip("torchvision")
COUNTS = {"train": 10, "test": 6}


@pytest.fixture(autouse=True)
def _small_files_pass(monkeypatch: pytest.MonkeyPatch) -> None:
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
            torchvision.datasets.utils.extract_archive(str(folder / f"{file}.gz"), str(folder))


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


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files(name: str, folder: str, tmp_path: Path):
    write_idx(tmp_path, folder)
    for split in COUNTS:
        images, labels = drawn(split, 28, 28)
        rows = load_data(name, split, options={"root": str(tmp_path)})  # type: ignore[arg-type]
        inputs, given = rows.batch(torch.arange(len(rows)))
        assert torch.equal(inputs, torch.from_numpy(images)[:, None].float() / 255)
        assert given.tolist() == labels.tolist()
        assert (rows.ids[3], rows.classes) == (f"{name}-{split}-00003", 10)


def test_cifar_batches_are_planes_of_colour(tmp_path: Path):
    # rejects reading the bytes of a row as pixels of three colours
    write_cifar(tmp_path)
    rows = load_data("cifar10", "all", options={"root": str(tmp_path)})
    assert len(rows) == 16
    for split, first in (("train", 0), ("test", 10)):
        images, labels = drawn(split, 3072)
        part = rows.at(torch.arange(first, first + COUNTS[split]))
        expected = torch.from_numpy(images).reshape(-1, 3, 32, 32).float() / 255
        assert torch.equal(part.batch(torch.arange(len(part)))[0], expected)
        assert part.labels.tolist() == labels.tolist()
        assert part.fingerprint == load_data("cifar10", split, options={"root": str(tmp_path)}).fingerprint  # type: ignore[arg-type]


def test_svhn_calls_zero_zero(tmp_path: Path):
    write_svhn(tmp_path)
    images, labels = drawn("test", 32, 32, 3)
    rows = load_data("svhn", "test", options={"root": str(tmp_path)})
    assert torch.equal(rows.batch(torch.arange(6))[0], torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    assert rows.labels.tolist() == labels.tolist()


def test_flowers_are_named_by_their_files(tmp_path: Path):
    write_flowers(tmp_path)
    options = {"root": str(tmp_path), "size": 16}
    train, test = (load_data("flowers102", split, options=options) for split in ("train", "test"))  # type: ignore[arg-type]
    assert train.ids == ("flowers102-image_00007", "flowers102-image_00002", "flowers102-image_00005")
    assert (train.labels.tolist(), train.classes) == ([6, 101, 49], 102)
    assert test.labels.tolist() == [3, 5, 7]
    assert train[0][0].shape == (3, 16, 16)
    expected = torch.tensor(colour(7))[:, None, None].expand(3, 16, 16) / 255
    torch.testing.assert_close(train[0][0], expected, atol=3 / 255, rtol=0)  # JPEG is lossy
    assert load_data("flowers102", options={"root": str(tmp_path)})[0][0].shape == (3, 224, 224)


def test_food_classes_are_in_the_order_of_their_names(tmp_path: Path):
    write_food(tmp_path)
    rows = load_data("food101", "all", options={"root": str(tmp_path), "size": 8})
    assert rows.ids[:3] == ("food101-waffles/11", "food101-waffles/12", "food101-apple_pie/12")
    assert rows.labels.tolist() == [1, 1, 0, 0, 1, 0]
    assert rows.classes == 101


def test_format_is_stated_and_the_same_each_time(tmp_path: Path):
    write_svhn(tmp_path)
    options = {"root": str(tmp_path), "size": 20, "channels": 1, "mean": [0.5], "std": [0.25]}
    rows = load_data("svhn", options=options)
    plain = load_data("svhn", options={"root": str(tmp_path), "size": 20, "channels": 1})
    assert rows[0][0].shape == (1, 20, 20)
    torch.testing.assert_close(rows[4][0], (plain[4][0] - 0.5) / 0.25)
    assert rows.fingerprint == load_data("svhn", options=options).fingerprint


BAD = {
    "no root": ({}, r"data 'svhn' needs the option 'root'"),
    "misspelt": ({"root": ".", "sise": 3}, r"has no option 'sise'; did you mean 'size'"),
    "size": ({"root": ".", "size": 0}, r"option 'size' is 0"),
    "channels": ({"root": ".", "channels": 2}, r"option 'channels' is 2"),
    "mean alone": ({"root": ".", "mean": [0.5]}, "mean and std go together"),
    "means of one channel": ({"root": ".", "mean": [0.5], "std": [1.0]}, "1 numbers for images of 3 channels"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused_in_one_line(case: str):
    options, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        load_data("svhn", options=options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "svhn", "flowers102", "food101"])
def test_missing_files_are_said_with_where_they_belong(name: str, tmp_path: Path):
    with pytest.raises(
        InputError, match=r"is missing or damaged in .*; it reads .* put them there, or state"
    ) as caught:
        load_data(name, options={"root": str(tmp_path)})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())  # nothing is downloaded, nothing is made


def test_missing_and_damaged_images_are_named(tmp_path: Path):
    write_flowers(tmp_path)
    image = tmp_path / "flowers-102" / "jpg" / "image_00002.jpg"
    image.write_bytes(b"no image")
    with pytest.raises(InputError, match="the image of row 'flowers102-image_00002' can not be read"):
        load_data("flowers102", options={"root": str(tmp_path)}).batch(torch.arange(3))
    image.unlink()
    with pytest.raises(InputError, match=r"1 of 3 image files of flowers102 are missing: .*image_00002\.jpg"):
        load_data("flowers102", options={"root": str(tmp_path)})


def test_shipped_sets_take_no_options():
    with pytest.raises(InputError, match="data 'digits' has no option 'root'; it takes none"):
        load_data("digits", options={"root": "."})
