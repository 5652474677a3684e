"""Hugging Face data sets from disk: images, texts, numbers; a name on the Hub without network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unlearn.data import Rows, load_data
from unlearn.errors import InputError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def everything(rows: Rows) -> object:
    return rows.batch(torch.arange(len(rows)))[0]


def pictures(count: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (6, 6), dtype=np.uint8)) for _ in range(count)]


def image_set(labels: list[int]) -> object:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["seven", "one"])})
    return datasets.Dataset.from_dict({"image": pictures(len(labels)), "label": labels}, features=features)


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_image_columns_and_class_names(form: str, tmp_path: Path):
    # rejects numbering names by the alphabet where the data set states their order
    labels = {"train": [1, 0, 1], "test": [0, 0]}
    folder = tmp_path / "set"
    if form == "saved":
        datasets.DatasetDict({split: image_set(given) for split, given in labels.items()}).save_to_disk(folder)
    else:
        folder.mkdir()
        for split, given in labels.items():
            image_set(given).to_parquet(folder / f"{split}-00000-of-00001.parquet")  # type: ignore[attr-defined]
    for split, given in labels.items():
        rows = load_data("hub", split, options={"path": str(folder), "image": "image"})  # type: ignore[arg-type]
        assert (rows.labels.tolist(), rows.classes) == (given, 2)
        assert rows.ids == tuple(f"{split}-{i}" for i in range(len(given)))
        expected = np.stack([np.array(image) for image in pictures(len(given))])
        assert torch.equal(everything(rows), torch.from_numpy(expected)[:, None].float() / 255)


def tokenizer(folder: Path) -> str:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "very": 4}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    return str(folder)


def test_text_columns_are_cut_and_padded(tmp_path: Path):
    columns = {"review": ["very good", "bad", "very very very bad"], "label": ["pos", "neg", "neg"], "key": [7, 8, 9]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "set")
    options = {"path": str(tmp_path / "set"), "text": "review", "id": "key", "length": 3}
    rows = load_data("hub", "all", options=options | {"tokenizer": tokenizer(tmp_path / "tokenizer")})
    inputs = everything(rows)
    assert isinstance(inputs, dict)
    assert inputs["input_ids"].tolist() == [[4, 2, 0], [3, 0, 0], [4, 4, 4]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert (rows.ids, rows.labels.tolist()) == (("7", "8", "9"), [1, 0, 0])
    with pytest.raises(InputError, match=r"tokenizer '.*nowhere' can not be loaded") as caught:
        load_data("hub", options=options | {"tokenizer": str(tmp_path / "nowhere")})
    assert "\n" not in str(caught.value)


def test_numbers_in_lists_and_a_share_of_test_rows(tmp_path: Path):
    columns = {"vector": [[float(i), 1.0] for i in range(10)], "y": [i / 4 for i in range(10)]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "set")
    options = {"path": str(tmp_path / "set"), "label": "y", "standardise": False}
    train, test = load_data("hub", options=options), load_data("hub", "test", options=options)
    assert (len(train), len(test), train.classes) == (8, 2, None)
    for rows in (train, test):
        numbers = torch.tensor([float(row.removeprefix("train-")) for row in rows.ids])
        assert torch.equal(everything(rows)[:, 0], numbers)  # type: ignore[index]
        assert torch.equal(rows.labels, numbers / 4)


def test_bad_columns_splits_and_labels_are_refused_in_one_line(tmp_path: Path):
    path = str(tmp_path / "set")
    datasets.DatasetDict({"train": image_set([0, -1])}).save_to_disk(path)
    datasets.Dataset.from_dict({"image": ["a"], "label": ["b"]}).save_to_disk(tmp_path / "words")
    (tmp_path / "empty").mkdir()
    cases = {
        "has no column 'picture'; .*image, label": {"path": path, "image": "picture"},
        "has no split 'valid'; .*train": {"path": path, "image": "image", "test": "valid"},
        "labels of set are missing in rows train-1": {"path": path, "image": "image"},
        "words has no splits, so no test split 'test'": {"path": str(tmp_path / "words"), "test": "test"},
        "the image of row 'train-0' of words can not be read": {"path": str(tmp_path / "words"), "image": "image"},
        "folder './nowhere' is not there": {"path": "./nowhere"},
        "can not be loaded": {"path": str(tmp_path / "empty")},
    }
    for message, options in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            load_data("hub", options=options)
        assert "\n" not in str(caught.value)


def test_a_name_on_the_hub_without_network_says_how_to_use_a_copy(monkeypatch: pytest.MonkeyPatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = r"'someone/reviews' can not be reached on the Hub: .*local copy by .*save_to_disk.*state path = 'copy'"
    with pytest.raises(InputError, match=message) as caught:
        load_data("hub", options={"path": "someone/reviews", "text": "text", "tokenizer": "x"})
    assert "\n" not in str(caught.value)
