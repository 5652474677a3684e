"""A review of made-up rows, without a run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from unlearn.data import Rows
from unlearn.pipeline.appearance import Appearance
from unlearn.review import FlaggedRow, Review, ReviewServer, Shown


def flagged(count: int, beside: int = 0, name: str = "row-{}") -> list[FlaggedRow]:
    others = [{"id": name.format(k), "given": k % 3, "influence": 2.5} for k in range(beside)]
    return [
        FlaggedRow(name.format(k), 9.0 - k, k % 3, [(k + 1) % 3, (k + 2) % 3], (k + 1) % 3, 0.75, others, others)
        for k in range(count)
    ]


def rows_of(count: int, name: str = "row-{}", pictures: bool = True) -> Rows:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.rand((count, 1, 6, 6) if pictures else (count, 4), generator=draw)
    return Rows.from_tensors(
        inputs, torch.arange(count) % 3, ids=[name.format(k) for k in range(count)], classes=3, name="made up"
    )


@contextmanager
def served(folder: Path, count: int = 5, beside: int = 2, **options: object) -> Iterator[ReviewServer]:
    """Serve a review in a thread."""
    data = rows_of(max(count, beside), **options)
    name = {"name": options["name"]} if "name" in options else {}
    review = Review(folder, flagged(count, beside, **name), classes=3, data=data.fingerprint)
    server = ReviewServer(Shown(review, data, Appearance(data), "made up", "unlearn repair apply RUN CSV"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        review.close()
