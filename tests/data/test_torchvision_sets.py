"""Each torchvision set, read from small files in its original format that the tests write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision_files import (
    COUNTS,
    colour,
    drawn,
    let_small_files_pass,
    write_cifar,
    write_flowers,
    write_food,
    write_idx,
    write_svhn,
)

from unlearn.data import load_data
from unlearn.errors import InputError

pytest.importorskip("torchvision")


@pytest.fixture(autouse=True)
def _small_files_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    let_small_files_pass(monkeypatch)


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
