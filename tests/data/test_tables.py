"""CSV, JSON Lines and Parquet files, and folders of images with a manifest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unlearn.data import Rows, load_data
from unlearn.errors import InputError

NAMES = ["cat", "dog", "cat", "bird", "dog", "cat", "bird", "cat", "dog", "cat"]
TABLE = {
    "key": [f"k{i}" for i in range(10)],
    "width": [float(i) for i in range(10)],
    "height": [2 * i for i in range(10)],
    "kind": NAMES,
}


def write(path: Path, columns: dict[str, list]) -> str:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(columns), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return str(path)


def everything(rows: Rows) -> torch.Tensor:
    return rows.batch(torch.arange(len(rows)))[0]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_table_is_the_same_in_every_format(ending: str, tmp_path: Path):
    options = {"path": write(tmp_path / f"pets{ending}", TABLE), "label": "kind", "id": "key", "standardise": False}
    rows = load_data("table", "all", options=options)
    assert rows.ids == tuple(TABLE["key"])
    assert (rows.labels.tolist(), rows.classes) == ([1, 2, 1, 0, 2, 1, 0, 1, 2, 1], 3)
    assert torch.equal(everything(rows), torch.tensor([TABLE["width"], TABLE["height"]]).T.float())


def test_splits_share_nothing_and_numbers_are_standardised_by_training_rows(tmp_path: Path):
    # rejects statistics of all rows, and class numbers that depend on the split
    path = write(tmp_path / "pets.csv", TABLE | {"same": [4] * 10})
    options = {"path": path, "label": "kind", "id": "key"}
    train, test = load_data("table", options=options), load_data("table", "test", options=options)
    assert (len(train), len(test), train.classes, test.classes) == (8, 2, 3, 3)
    assert sorted(train.ids + test.ids) == TABLE["key"]
    x = everything(train)
    torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std(0), torch.tensor([1.0, 1.0, 0.0]))
    width = np.array([float(row[1:]) for row in train.ids])
    expected = (np.array([float(row[1:]) for row in test.ids]) - width.mean()) / width.std(ddof=1)
    torch.testing.assert_close(everything(test)[:, 0], torch.from_numpy(expected).float())
    assert load_data("table", options=options, split_seed=1).ids != train.ids


def test_a_file_of_test_rows_and_row_numbers_as_ids(tmp_path: Path):
    train = write(tmp_path / "a.csv", {"x": [1, 2], "label": ["b", "c"]})
    test = write(tmp_path / "b.csv", {"x": [3], "label": ["a"]})
    parts = [load_data("table", split, options={"path": train, "test": test}) for split in ("train", "test", "all")]  # type: ignore[arg-type]
    assert [rows.ids for rows in parts] == [("train-0", "train-1"), ("test-0",), ("train-0", "train-1", "test-0")]
    assert [rows.labels.tolist() for rows in parts] == [[1, 2], [0], [1, 2, 0]]
    alone = load_data("table", "all", options={"path": train})
    assert alone.ids == ("a-0", "a-1")
    grown = write(tmp_path / "a.csv", {"x": [1, 2, 3] * 100, "label": ["b"] * 300})
    assert load_data("table", "all", options={"path": grown}).ids[:2] == alone.ids  # rejects numbers padded by length


def test_labels_are_numbers_names_or_stated_classes(tmp_path: Path):
    def labels(values: list, ending: str = ".csv", **more: object) -> Rows:
        path = write(tmp_path / f"t{ending}", {"x": list(range(len(values))), "label": values})
        return load_data("table", "all", options={"path": path, **more})

    assert (labels([2, 0, 1]).labels.tolist(), labels([2, 0, 1]).classes) == ([2, 0, 1], 3)
    assert labels([True, False], ".jsonl").labels.tolist() == [1, 0]
    assert (labels([0.5, 2]).labels.tolist(), labels([0.5, 2]).classes) == ([0.5, 2.0], None)
    stated = labels(["b", "7", "b"], classes=["b", "a", "7"])
    assert (stated.labels.tolist(), stated.classes) == ([0, 2, 0], 3)
    with pytest.raises(InputError, match=r"label 'c' of row 't-1' of t.csv is none of the classes b, a"):
        labels(["b", "c"], classes=["b", "a"])
    for ending, values in ((".csv", [0, 1, "cat"]), (".jsonl", [0, 1, "cat"])):
        with pytest.raises(
            InputError, match=r"mixed types: .*2 whole numbers \(row 't-0': .*1 text \(row 't-2': 'cat'"
        ):
            labels(values, ending)
    with pytest.raises(InputError, match=r"labels of t.jsonl are missing in rows t-1"):
        labels([0, None], ".jsonl")
    with pytest.raises(InputError, match=r"the label of row 't-0' of t.jsonl is list"):
        labels([[0, 1], [1, 2]], ".jsonl")


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_folder_of_images_with_a_manifest(ending: str, tmp_path: Path):
    for k in range(4):
        Image.new("RGB", (12, 10 + k), (60 * k, 0, 0)).save(tmp_path / f"{k}.png")
    manifest = {"file": [f"{k}.png" for k in (3, 0, 2, 1)], "label": ["x", "y", "x", "y"]}
    options = {"path": write(tmp_path / f"list{ending}", manifest), "image": "file", "id": "file", "size": 8}
    rows = load_data("table", "all", options=options)
    assert rows.ids == ("3.png", "0.png", "2.png", "1.png")
    expected = torch.tensor([180, 0, 120, 60]) / 255
    assert torch.equal(everything(rows)[:, 0], expected[:, None, None].expand(4, 8, 8))
    assert rows.fingerprint == load_data("table", "all", options=options).fingerprint
    with pytest.raises(InputError, match=r"the image of row '0.png' is 12 x 10, that of row '3.png' 12 x 13; state a"):
        everything(load_data("table", "all", options=options | {"size": None}))
    (tmp_path / "2.png").unlink()
    with pytest.raises(InputError, match=r"1 of 4 image files of list\S+ are missing: .*2\.png"):
        load_data("table", "all", options=options)


def bad(tmp_path: Path) -> dict[str, tuple[dict, str]]:
    path = write(tmp_path / "pets.csv", TABLE)
    damaged = {
        "short.csv": "x,label\n1,0\n1\n",
        "empty.csv": "x,label\n",
        "word.csv": "x,label\n1,0\nno,1\n",
        "gap.jsonl": '{"x": 1, "label": 0}\n{"label": 1}\n',
        "broken.jsonl": '{"x": 1, "label": 0}\n{"x": \n',
        "list.jsonl": "[1, 2]\n",
        "no.parquet": "no",
        "twice.csv": "x,x,label\n1,2,0\n",
        "ids.csv": "key,x,label\na,1,0\na,2,1\n",
    }
    for name, text in damaged.items():
        (tmp_path / name).write_text(text)

    def at(name: str, **more: object) -> dict:
        return {"path": str(tmp_path / name), **more}

    return {
        "label": ({"path": path}, r"pets.csv has no column 'label'; .*height, key, kind, width"),
        "input": (at("pets.csv", label="kind", inputs=["widht"]), r"no column 'widht'; did you mean 'width'"),
        "words": (at("pets.csv", label="kind"), r"column 'key' of pets.csv is 'k0' in row 'pets-0', not a number"),
        "fields": (at("short.csv"), r"line 3 of .*short.csv' has 1 fields and the header 2"),
        "no rows": (at("empty.csv"), "has no rows"),
        "word": (at("word.csv"), r"column 'x' of word.csv is 'no' in row 'word-1', not a number"),
        "gap": (at("gap.jsonl"), r"column 'x' of gap.jsonl is empty, NaN or infinite in rows gap-1"),
        "no JSON": (at("broken.jsonl"), r"line 2 of .*broken.jsonl' is not JSON"),
        "no object": (at("list.jsonl"), r"line 1 of .*list.jsonl' is list"),
        "no Parquet": (at("no.parquet"), r"no.parquet' can not be read"),
        "two columns": (at("twice.csv"), "names a column twice: x, x, label"),
        "ids": (at("ids.csv", id="key"), "ids of ids.csv are not unique: a named twice"),
        "nothing": (at("nothing.csv"), r"nothing.csv' is not there"),
        "ending": (at("pets.xlsx"), r"ends in '.xlsx'; known: .csv, .tsv, .jsonl, .parquet"),
        "two kinds": (at("pets.csv", image="a", inputs=["b"]), "three kinds of input; state one"),
        "no tokenizer": (at("pets.csv", text="a"), "text and tokenizer go together"),
        "no path": ({}, "data 'table' needs the option 'path'"),
    }


def test_bad_tables_are_refused_in_one_line(tmp_path: Path):
    for case, (options, message) in bad(tmp_path).items():
        with pytest.raises(InputError, match=message) as caught:
            load_data("table", options=options)
        assert "\n" not in str(caught.value), case
