"""The most suspicious rows of MNIST-5k as it is, for the eye: ``python -m benchmarks.raw_mnist``.

No noise is added. The recipe mnist5k-relabel trains on its 4,000 rows, the margin trajectory ranks them, and the top 20
go to ``docs/images/mnist5k-suspicious.png`` with their given label and the one suggested. Whether a label is wrong is
for the reader to say: no truth is known.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw

from benchmarks.setting import Setting, threads
from unlearn.detect import estimate_cutoff, margin_trajectory, suggest_labels

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "mnist5k-suspicious.png"
SHOWN, COLUMNS, SCALE = 20, 10, 3


def main() -> None:
    """Print the ranking and draw the picture."""
    print(f"# python -m benchmarks.raw_mnist\n\n{threads()}\n")
    setting = Setting.of("mnist5k-relabel", 0, 0.0)
    _, _, trajectory = setting.trained
    data = setting.data
    scores, suggested = margin_trajectory(trajectory, data), suggest_labels(data, trajectory=trajectory)
    given = dict(zip(data.ids, data.labels.tolist(), strict=True))
    top = scores.top(SHOWN)
    print(f"Rows that the cut-off would act on: {len(estimate_cutoff(scores).ids)} of {len(data)}.\n")
    print("| rank | id | given | suggested | minus mean margin |\n|---|---|---|---|---|")
    for rank, (row, value) in enumerate(top, 1):
        print(f"| {rank} | {row} | {given[row]} | {suggested[row]} | {value:.2f} |")
    side = 28 * SCALE
    height = side + 16
    picture = Image.new("L", (COLUMNS * (side + 6), (SHOWN // COLUMNS) * height), 255)
    images, _ = data.batch(data.positions([row for row, _ in top]))
    draw = ImageDraw.Draw(picture)
    for k, (row, _) in enumerate(top):
        x, y = (k % COLUMNS) * (side + 6), (k // COLUMNS) * height
        digit = images[k].reshape(28, 28)
        grey = (255 * (1 - (digit - digit.min()) / (digit.max() - digit.min()))).to(torch.uint8).numpy()
        picture.paste(Image.fromarray(grey).resize((side, side), Image.Resampling.NEAREST), (x, y))
        draw.text((x + 8, y + side + 2), f"{given[row]}, not {suggested[row]}?", fill=0)
    picture.save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
