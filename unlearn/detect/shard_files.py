"""A folder of scores in shards: ``manifest.json``, ``part-00000.safetensors`` and so on, ``finished.json`` last.

The manifest says what is scored by what. Every part, and the last file, names the manifest that it was made for.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unlearn.atomic import read_json, write_atomically
from unlearn.detect.scores import Scores
from unlearn.errors import FolderError, some

FORMAT = 1
_MANIFEST, _FINISHED = "manifest.json", "finished.json"


@dataclass(frozen=True)
class ScoreShards:
    """Finished scores in a folder, of which one shard is read at a time.

    Attributes:
        folder: where they are.
        run: sha256 of the manifest that they were made for.
        shards: how many there are.
        rows: how many rows they score together.
        method: name of the score.
        options: what the score says of itself, as far as all shards agree.
    """

    folder: Path
    run: str
    shards: int
    rows: int
    method: str
    options: Mapping[str, object]

    @classmethod
    def open(cls, folder: str | Path) -> ScoreShards:
        """Open the scores in a folder.

        Raises:
            FolderError: there are none, they are not finished, or a shard is missing, damaged or of another run.
        """
        folder = Path(folder)
        if not (folder / _MANIFEST).exists():
            raise FolderError(f"{str(folder)!r} holds no scores in shards; make them with score_shards(...)")
        if not (folder / _FINISHED).exists():
            done = len(list(folder.glob("part-*.safetensors")))
            raise FolderError(
                f"the scores in {str(folder)!r} are not finished ({done} shards are there); make the same call again"
            )
        run, facts = _digest(folder / _MANIFEST), read_json(folder / _FINISHED)
        if facts.get("run") != run:
            raise FolderError(
                f"manifest and {_FINISHED} in {str(folder)!r} are of two runs; score the rows anew in another folder"
            )
        missing = [part_path(folder, k).name for k in range(facts["shards"]) if not part_path(folder, k).exists()]
        if missing:
            raise FolderError(
                f"{len(missing)} of {facts['shards']} shards are missing in {str(folder)!r} ({some(missing)}); "
                "make the same call again, which computes them alone"
            )
        said = [check_part(part_path(folder, k), k, run) for k in range(facts["shards"])]
        agreed = {
            key: value
            for key, value in said[0]["options"].items()
            if all(one["options"].get(key) == value for one in said)
        }
        return cls(folder, run, facts["shards"], facts["rows"], said[0]["method"], agreed)

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[Scores]:
        for number in range(self.shards):
            ids, values, about = _read(part_path(self.folder, number), number, self.run)
            yield Scores(ids, values.numpy(), self.method, about["options"])

    def top(self, k: int) -> list[tuple[str, float]]:
        """Return ids and values of the ``k`` most suspicious rows, equal values in the order of their ids.

        Raises:
            InputError: k is negative.
        """
        best: list[tuple[str, float]] = []
        for shard in self:
            best = heapq.nsmallest(k, [*best, *shard.top(k)], key=lambda pair: (-pair[1], pair[0]))
        return best

    def scores(self) -> Scores:
        """Return the scores of all rows, in memory."""
        shards = list(self)
        ids = tuple(row for shard in shards for row in shard.ids)
        return Scores(ids, np.concatenate([shard.values for shard in shards]), self.method, self.options)


def begin(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Write the manifest, or compare it with the one that is there; return its digest."""
    path = folder / _MANIFEST
    if path.exists():
        there = read_json(path)
        other = [key for key, value in manifest.items() if there.get(key) != value]
        if other:
            key = other[0]
            raise FolderError(
                f"{str(folder)!r} holds scores of another run: its {key} is {_short(there.get(key))}, here it is "
                f"{_short(manifest[key])}; choose another folder, or remove this one"
            )
    else:
        write_atomically(path, (json.dumps(manifest, indent=1) + "\n").encode())
    return _digest(path)


def finish(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write that all parts are there.

    Raises:
        FolderError: there are more: rows of a stream that is shorter now.
    """
    if part_path(folder, facts["shards"]).exists():
        raise FolderError(
            f"{str(folder)!r} holds shards of rows behind the last, {facts['rows']}: the stream is shorter than it was"
        )
    write_atomically(folder / _FINISHED, (json.dumps(facts) + "\n").encode())


def write_part(path: Path, scores: Scores, number: int, run: str, contents: str) -> None:
    """Write a shard; ``contents`` is the fingerprint of its rows where the manifest has none."""
    texts = [row.encode() for row in scores.ids]
    tensors = {
        "values": torch.from_numpy(scores.values),
        "ids": torch.frombuffer(bytearray(b"".join(texts) or b"\0"), dtype=torch.uint8),
        "ends": torch.tensor([len(text) for text in texts]).cumsum(0),
    }
    about = {
        "run": run,
        "shard": number,
        "contents": contents,
        "method": scores.method,
        "options": dict(scores.options),
    }
    write_atomically(path, save(tensors, {"about": json.dumps(about)}))


def check_part(path: Path, number: int, run: str, contents: str | None = None) -> dict[str, Any]:
    """Return what a part says of itself; refuse one that was not made by this run, of these rows."""
    return _read(path, number, run, contents, head=True)[2]


def _read(
    path: Path, number: int, run: str, contents: str | None = None, *, head: bool = False
) -> tuple[tuple[str, ...], Tensor, dict[str, Any]]:
    """Return ids, values and what a part says of itself."""
    again = "remove this file and make the same call again, which computes it alone"
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()["about"])
            if (about["run"], about["shard"]) != (run, number):
                raise FolderError(f"{str(path)!r} belongs to another run than its manifest; {again}")
            if contents is not None and about["contents"] != contents:
                raise FolderError(
                    f"{str(path)!r} scores other rows than the stream now gives in its place; give the same stream, or "
                    "another folder"
                )
            if head:
                return (), torch.empty(0), about
            text, ends = file.get_tensor("ids").numpy().tobytes(), file.get_tensor("ends").tolist()
            values = file.get_tensor("values")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{str(path)!r} is damaged ({error}); {again}") from error
    starts = [0, *ends[:-1]]
    return tuple(text[a:b].decode() for a, b in zip(starts, ends, strict=True)), values, about


def part_path(folder: Path, number: int) -> Path:
    """Return the name of a shard."""
    return folder / f"part-{number:05d}.safetensors"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == hashlib.sha256().digest_size * 2 else text
