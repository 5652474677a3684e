"""Draws the pictures of docs/concepts.md: ``python docs/_site/pictures.py`` writes docs/images/*.svg."""

from __future__ import annotations

import math
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "images"
INK, SOFT, BLUE, RED, GREEN = "#222", "#888", "#3f51b5", "#c0392b", "#2e7d32"


def picture(width: int, height: int, parts: list[str]) -> str:
    """Return an SVG on white, so that it reads on dark pages too."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    marker = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>'
    )
    return "\n".join([head, marker, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>", ""])


def text(x: float, y: float, words: str, *, size: int = 13, fill: str = INK, anchor: str = "start") -> str:
    """Return a line of text."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}">{words}</text>'


def line(points: list[tuple[float, float]], *, stroke: str = INK, width: float = 1.5, more: str = "") -> str:
    """Return straight lines through points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{width:g}" {more}/>'


def dot(x: float, y: float, fill: str) -> str:
    """Return a point."""
    return f'<circle cx="{x:g}" cy="{y:g}" r="4" fill="{fill}"/>'


def arrow(start: tuple[float, float], stop: tuple[float, float], *, dashed: bool = False) -> str:
    """Return an arrow."""
    return line([start, stop], more='marker-end="url(#head)"' + (' stroke-dasharray="5 4"' if dashed else ""))


def job() -> str:
    """Return the stages of a run and what each leaves."""
    stages = [
        ("train", "weights, snapshots,", "row order, margins"),
        ("detect", "a score for", "each row"),
        ("decide", "decisions.csv:", "yours to change"),
        ("repair", "edited weights,", "the original kept"),
        ("verify", "retrains, distances,", "the verdict"),
    ]
    parts = []
    for k, (name, *left) in enumerate(stages):
        x = 10 + 150 * k
        parts.append(f'<rect x="{x}" y="14" width="120" height="40" rx="6" fill="#e8eaf6" stroke="{BLUE}"/>')
        parts.append(text(x + 60, 39, name, size=15, anchor="middle"))
        parts += [
            text(x + 60, 76 + 17 * row, words, size=12, fill="#555", anchor="middle") for row, words in enumerate(left)
        ]
        if k:
            parts.append(arrow((x - 30, 34), (x - 3, 34)))
    return picture(740, 108, parts)


def path(bend: float, stop: float) -> list[tuple[float, float]]:
    """Return the way of a training in a plane of weights, which leaves the common start as ``bend`` grows."""
    return [
        (40 + 520 * t, 190 - 150 * (1 - math.exp(-2 * t)) + bend * t * t) for t in (k / 40 * stop for k in range(41))
    ]


def rewind() -> str:
    """Return the original training, the training without the rows, and the edit between them."""
    original, retrained = path(0, 1), path(70, 1)
    snapshot = original[28]
    edited = (retrained[28][0], retrained[28][1] - 9)
    replayed = [(x, y - 9 * math.exp(-4 * (k / 12))) for k, (x, y) in enumerate(retrained[28:])]
    parts = [
        line(original, stroke=SOFT, width=2),
        line(retrained, stroke=GREEN, width=2, more='stroke-dasharray="6 4"'),
        line(replayed, stroke=RED, width=3),
        arrow((original[-1][0], original[-1][1] - 16), (snapshot[0], snapshot[1] - 20), dashed=True),
        arrow(snapshot, edited),
        *(dot(*original[k], SOFT) for k in (0, 7, 14, 21, 28, 35, 40)),
        dot(*edited, RED),
        dot(*replayed[-1], RED),
        dot(*retrained[-1], GREEN),
        text(575, original[-1][1] + 4, "the trained model"),
        text(575, retrained[-1][1] + 18, "trained without the rows", fill=GREEN),
        text(575, retrained[-1][1] - 8, "the edited model", fill=RED),
        text(500, original[-1][1] - 26, "1 rewind", anchor="middle"),
        text(snapshot[0] - 8, (snapshot[1] + edited[1]) / 2 + 4, "2 edit", anchor="end"),
        text(edited[0] + 62, edited[1] - 8, "3 replay", fill=RED),
        text(40, 212, "first weights, common to both", size=12, fill="#555"),
        text(214, 100, "snapshots", size=12, fill="#555", anchor="end"),
    ]
    return picture(740, 225, parts)


def horizon() -> str:
    """Return how much of a direction training has learnt, and how far a damped step goes along it."""
    left, right, top, bottom = 60.0, 700.0, 20.0, 200.0

    def curve(share: object) -> list[tuple[float, float]]:
        ends = [10 ** (-2 + 4 * k / 100) for k in range(101)]
        return [
            (left + (right - left) * k / 100, bottom - (bottom - top) * share(end))  # type: ignore[operator]
            for k, end in enumerate(ends)
        ]

    parts = [
        line([(left, top), (left, bottom), (right, bottom)], stroke=SOFT),
        line(curve(lambda lt: 1 - math.exp(-lt)), stroke=GREEN, width=2.5),
        line(curve(lambda lt: lt / (lt + 2)), stroke=RED, width=2.5, more='stroke-dasharray="6 4"'),
        line([(left, top), (right, top)], stroke=SOFT, width=2, more='stroke-dasharray="2 4"'),
        *(
            text(left + (right - left) * (k + 2) / 4, bottom + 18, f"{10.0**k:g}", size=12, anchor="middle")
            for k in range(-2, 3)
        ),
        *(text(left - 8, bottom - (bottom - top) * y + 4, f"{y:g}", size=12, anchor="end") for y in (0, 0.5, 1)),
        text((left + right) / 2, bottom + 38, "curvature of the direction times the horizon T", anchor="middle"),
        text(left + 12, top + 16, "share of the way:", fill="#555"),
        text(left + 12, top + 56, "training, 1 - exp(-l T)", fill=GREEN),
        text(left + 12, top + 76, "damped step, l / (l + 2 / T)", fill=RED),
        text(left + 12, top + 36, "undamped step: all of it, everywhere", fill="#555"),
    ]
    return picture(740, 250, parts)


def verdict() -> str:
    """Return three intervals of r against the tolerance."""
    left, scale = 150.0, 170.0

    def at(r: float) -> float:
        return left + scale * r

    parts = [
        line([(at(0), 150), (at(3.3), 150)], stroke=SOFT),
        line([(at(1.5), 12), (at(1.5), 156)], stroke=RED, width=2, more='stroke-dasharray="5 4"'),
        text(at(1.5) + 6, 22, "tolerance 1.5", fill=RED),
        line([(at(1), 40), (at(1), 156)], stroke=SOFT, more='stroke-dasharray="2 4"'),
        *(text(at(r), 170, f"{r:g}", size=12, anchor="middle") for r in (0, 1, 1.5, 2, 3)),
        text(
            at(1.65),
            190,
            "r: distance to retrains by the distance between them (a retrain has 1 on average)",
            anchor="middle",
            size=12,
        ),
    ]
    for y, name, color, low, middle, high in (
        (52, "pass", GREEN, 0.8, 1.05, 1.38),
        (88, "undecided", "#555", 0.95, 1.45, 2.2),
        (124, "fail", RED, 1.75, 2.3, 3.0),
    ):
        parts.append(text(at(0) - 12, y + 5, name, size=14, fill=color, anchor="end"))
        parts.append(line([(at(low), y), (at(high), y)], stroke=color, width=4))
        parts.append(dot(at(middle), y, color))
    return picture(740, 200, parts)


PICTURES = {"job": job, "rewind": rewind, "horizon": horizon, "verdict": verdict}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (IMAGES / f"{name}.svg").write_text(draw())
