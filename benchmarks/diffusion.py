"""Gradient sketches on a diffusion model of the 8 x 8 digits: ``python -m benchmarks.diffusion [planted ...]``.

Sections: ``planted`` (is a training row found from a changed copy of it), ``classes`` (do the rows nearest to a
generated image show its digit), ``fidelity`` (sketches against whole gradients), ``removal`` (does the loss on a
generated image rise when the rows nearest to it are left out of training). About 50 minutes of one core where others
use the machine, most of it the retrainings of ``removal``. Width and epochs were chosen by the loss and by samples;
levels and sizes were fixed before any table was seen. ``removal`` was cut to 4 queries and without noise by row, to
save time, after ``planted`` and before its own figures.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.svm import SVC
from torch import Tensor, nn

from benchmarks.setting import threads
from unlearn.curvature import Curvature, fit_curvature
from unlearn.data import Rows, load_data
from unlearn.detect import Sketches, gradient_sketches, join_sketches
from unlearn.models import build_model, mixed, noised_rows, sample_images
from unlearn.models.denoiser import Noise

SEEDS = (0, 1, 2)
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
SIZE = 1024  # at each level
EPOCHS, BATCH, RATE = 300, 128, 2e-3
QUERIES, NEAR, REMOVED = 200, 10, 50
RETRAINED_QUERIES = 4
Finder = Callable[[Rows, int], list[list[str]]]


def images(split: str) -> Rows:
    """Return digits with pixels from -1 to 1, flattened."""
    rows = load_data("digits", split=split)  # type: ignore[arg-type]
    return of_pixels(rows.batch(torch.arange(len(rows)))[0].flatten(1) * 2 - 1, rows.labels, rows.ids)


def of_pixels(pixels: Tensor, labels: Tensor | None = None, ids: Sequence[str] | None = None) -> Rows:
    """Return images as rows."""
    labels = torch.zeros(len(pixels), dtype=torch.long) if labels is None else labels
    return Rows.from_tensors(pixels, labels, ids=ids, classes=10, name="images")


def pixels_of(rows: Rows) -> Tensor:
    """Return all images, shape (n, 64)."""
    return rows.batch(torch.arange(len(rows)))[0]


def train(rows: Rows, seed: int, left_out: Sequence[str] = ()) -> nn.Module:
    """Return a denoiser trained on the rows; rows left out leave their places in the batches empty (coupled)."""
    model = build_model("denoiser", seed=seed)
    draw = torch.Generator().manual_seed(seed)
    x, n = pixels_of(rows), len(rows)
    kept = torch.ones(n, dtype=torch.bool)
    kept[rows.positions(left_out)] = False
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-n // BATCH))
    for _ in range(EPOCHS):
        order = torch.randperm(n, generator=draw)
        levels, noise = torch.rand(n, generator=draw), torch.randn(n, x.shape[1], generator=draw)
        for batch in order.split(BATCH):
            batch = batch[kept[batch]]
            loss = losses(model, x[batch], levels[batch], noise[batch]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def losses(model: nn.Module, x: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
    """Return half the squared error of the predicted noise, shape (b,)."""
    return 0.5 * (model(mixed(x, noise, levels)) - noise).square().sum(1)


def mean_loss(model: nn.Module, image: Tensor, draws: int = 400) -> float:
    """Return the loss on one image, mean over levels evenly from 0 to 1, each with its own fixed noise."""
    noise = torch.randn(draws, len(image), generator=torch.Generator().manual_seed(7))
    levels = (torch.arange(draws) + 0.5) / draws
    with torch.no_grad():
        return float(losses(model, image.expand(draws, -1), levels, noise).mean())


def sketches(
    model: nn.Module, rows: Rows, size: int, noise: Noise = "shared", curvature: Curvature | None = None
) -> Sketches:
    """Return sketches of the images, the noise levels side by side."""
    return join_sketches(
        {
            f"t={level}": gradient_sketches(
                model, noised_rows(rows, level, noise=noise), size=size, curvature=curvature, task="regression"
            )
            for level in LEVELS
        }
    )


def finders(model: nn.Module, rows: Rows) -> dict[str, Finder]:
    """Return the ways to find the rows nearest to images."""
    levels = [noised_rows(rows, level, noise="row") for level in LEVELS]
    everything = Rows.from_tensors(
        torch.cat([pixels_of(level) for level in levels]), torch.cat([level.labels for level in levels])
    )
    curvature = fit_curvature(model, everything, task="regression")
    x = pixels_of(rows)

    def by_sketch(noise: Noise = "shared", curvature: Curvature | None = None) -> Finder:
        index = sketches(model, rows, SIZE, noise, curvature)

        def find(queries: Rows, k: int) -> list[list[str]]:
            near = index.nearest(sketches(model, queries, SIZE, noise, curvature), k)
            return [[row for row, _ in found] for found in near]

        return find

    def by_pixels(queries: Rows, k: int) -> list[list[str]]:
        order = torch.cdist(pixels_of(queries), x).argsort(1)[:, :k]
        return [[rows.ids[i] for i in found] for found in order.tolist()]

    def at_random(queries: Rows, k: int) -> list[list[str]]:
        return [list(rows.sample(k, seed=1000 + q).ids) for q in range(len(queries))]

    return {
        "sketch, shared noise": by_sketch(),
        "sketch, noise by row": by_sketch("row"),
        "sketch of (G + d)^-1/2 g": by_sketch(curvature=curvature),
        "pixels": by_pixels,
        "random": at_random,
    }


def planted(model: nn.Module, rows: Rows, seed: int) -> dict[str, dict[str, float]]:
    """Recall of training rows from changed copies of them."""
    chosen = rows.sample(QUERIES, seed)
    x = pixels_of(chosen)
    draw = torch.Generator().manual_seed(seed)
    shifted = torch.full((len(x), 8, 8), -1.0)
    shifted[:, :, 1:] = x.reshape(-1, 8, 8)[:, :, :-1]
    changed = {
        "copy": x,
        "noise 0.2": (x + 0.2 * torch.randn(x.shape, generator=draw)).clamp(-1, 1),
        "noise 0.5": (x + 0.5 * torch.randn(x.shape, generator=draw)).clamp(-1, 1),
        "half blank": torch.cat([x[:, :32], torch.full((len(x), 32), -1.0)], 1),
        "shifted": shifted.flatten(1),
    }
    out: dict[str, dict[str, float]] = {}
    for name, find in finders(model, rows).items():
        out[name] = {}
        for change, pixels in changed.items():
            near = find(of_pixels(pixels, ids=[f"query {row}" for row in chosen.ids]), NEAR)
            hit = np.array([[row == truth for row in found] for found, truth in zip(near, chosen.ids, strict=True)])
            out[name] |= {f"{change} @1": float(hit[:, 0].mean()), f"{change} @10": float(hit.any(1).mean())}
    return out


def classes(model: nn.Module, rows: Rows, seed: int) -> dict[str, dict[str, float]]:
    """Share of the nearest rows with the digit of the query: generated images (as an SVM reads them) and test rows."""
    svm = SVC(C=10, gamma=1 / 64).fit(pixels_of(rows), rows.labels)
    drawn = sample_images(model, QUERIES, seed=seed)
    test = images("test").sample(QUERIES, seed)
    queries = {"generated": (of_pixels(drawn), svm.predict(drawn)), "test rows": (test, test.labels.numpy())}
    labels = dict(zip(rows.ids, rows.labels.tolist(), strict=True))
    out: dict[str, dict[str, float]] = {}
    for name, find in finders(model, rows).items():
        out[name] = {}
        for kind, (images_, digits) in queries.items():
            near = np.array([[labels[row] for row in found] for found in find(images_, NEAR)])
            same = near == np.asarray(digits)[:, None]
            out[name] |= {f"{kind} @1": float(same[:, 0].mean()), f"{kind} @10": float(same.mean())}
    return out


def fidelity(model: nn.Module, rows: Rows, seed: int) -> dict[str, dict[str, float]]:
    """Similarities of sketches against cosines of whole gradients, at one level."""
    level = 0.5
    pool = noised_rows(rows.sample(400, seed), level)
    queries = noised_rows(of_pixels(sample_images(model, 50, seed=seed)), level)
    entries = sum(p.numel() for p in model.parameters())

    def similarities(size: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        a, b = (gradient_sketches(model, data, size=size, seed=seed, task="regression") for data in (queries, pool))
        return (a.values.double() @ b.values.double().T).numpy()

    exact = similarities(entries)  # as many numbers as entries: nothing is lost
    out: dict[str, dict[str, float]] = {}
    for size in (256, 1024, 4096, 16384):
        start = time.perf_counter()
        found = similarities(size)
        seconds = time.perf_counter() - start
        ranks = [spearmanr(a, b).statistic for a, b in zip(exact, found, strict=True)]
        tops = [len(set(a.argsort()[-10:]) & set(b.argsort()[-10:])) / 10 for a, b in zip(exact, found, strict=True)]
        out[f"size {size}"] = {
            "rank correlation": float(np.mean(ranks)),
            "error (rms)": float(np.sqrt(np.mean((exact - found) ** 2))),
            "spread of cosines": float(exact.std(1).mean()),
            "nearest 10 in common": float(np.mean(tops)),
            "kB a row": 4 * size / 1000,
            "ms a row": 1000 * seconds / (len(pool) + len(queries)),
        }
    return out | {f"whole gradient ({entries:,})": {"kB a row": 4 * entries / 1000}}


def removal(model: nn.Module, rows: Rows, seed: int) -> dict[str, dict[str, float]]:
    """Rise of the loss on generated images, in per cent, when training leaves out the rows nearest to them."""
    queries = of_pixels(sample_images(model, RETRAINED_QUERIES, seed=100 + seed))
    x = pixels_of(queries)
    out: dict[str, dict[str, float]] = {}
    for name, find in finders(model, rows).items():
        if "by row" in name:  # worse in the other sections, and each way costs as many trainings as queries
            continue
        rises = []
        for image, left_out in zip(x, find(queries, REMOVED), strict=True):
            before, after = mean_loss(model, image), mean_loss(train(rows, seed, left_out), image)
            rises.append(100 * (after / before - 1))
            print(f"seed {seed}, {name}: {rises[-1]:.2f} %", file=sys.stderr, flush=True)
        out[name] = {"mean over queries": float(np.mean(rises)), "least": min(rises), "most": max(rises)}
    return out


TITLES = {
    "planted": f"Planted: share of {QUERIES} training rows found first, or among the nearest 10, from changed copies",
    "classes": f"Digits: share of the nearest 1 or 10 rows with the digit of {QUERIES} queries",
    "fidelity": "Fidelity at t = 0.5: 50 generated images against 400 training rows",
    "removal": f"Removal: rise of the loss on {RETRAINED_QUERIES} generated images when the nearest {REMOVED} of all "
    "rows are left out and the net is trained again with the same seed, per cent",
}


def table(title: str, found: Sequence[dict[str, dict[str, float]]]) -> str:
    """Return a table of means over seeds, with the least and the most."""
    columns = list(next(iter(found[0].values())))
    lines = [f"\n### {title}\n", "| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in found[0]:
        cells = []
        for column in columns:
            values = [seed[name].get(column, np.nan) for seed in found]
            spread = f" ({min(values):.3g} to {max(values):.3g})" if len(set(values)) > 1 else ""
            cells.append("-" if np.isnan(values).any() else f"{np.mean(values):.3g}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(sections: Sequence[str]) -> None:
    """Print the tables."""
    rows, test = images("train"), pixels_of(images("test"))
    models = {seed: train(rows, seed) for seed in SEEDS}
    print("# python -m benchmarks.diffusion\n")
    print(f"{threads()}; mean over seeds {SEEDS} of training, noise of queries and draws (least to most)\n")
    held = [np.mean([mean_loss(model, image, 50) for image in test[:100]]) for model in models.values()]
    seen = [np.mean([mean_loss(model, image, 50) for image in pixels_of(rows)[:100]]) for model in models.values()]
    print(
        f"Denoiser of {sum(p.numel() for p in models[0].parameters()):,} parameters, {EPOCHS} epochs on {len(rows)} "
        f"digits; loss {np.mean(seen):.3g} on training rows, {np.mean(held):.3g} on test rows. Sketches of {SIZE} "
        f"numbers at each of the levels {LEVELS}."
    )
    for section in sections:
        measure = {"planted": planted, "classes": classes, "fidelity": fidelity, "removal": removal}[section]
        print(table(TITLES[section], [measure(models[seed], rows, seed) for seed in SEEDS]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(TITLES))
