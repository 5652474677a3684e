"""Other packages beside ours: ``python -m benchmarks.peers [--quick] [mlp] [cnn] [agreement] [growth] [lds]``.

Every package works on the same weights, the same rows, one damping, float32 and one thread, in a process of its own;
the Fisher is made of the same sampled labels for all packages that let labels be given (pyDVL does not; TRAK has no
curvature). Seconds are CPU seconds. Rivals take the fastest of three batch sizes for each step (fit, self-influence,
pairwise; tried on as many rows as the largest) and are measured once; ours takes its defaults, and the median of five.
"fit" leaves eigendecompositions out; epochs ("ep.") are training epochs on the same rows, measured in the same process.
Memory is the peak above what was in use before the fit. Pairwise is 32 test rows on all rows. Agreement is Spearman's
correlation with our scores, and the largest difference relative to our largest score. kronfluence runs on 1,000 rows of
the recipes mnist5k-relabel and mnist5k-cnn-relabel, the others on 250.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from benchmarks.peers.case import Case
from benchmarks.peers.compare import Measured, PeerError, agreement, available, installed, run
from benchmarks.peers.jobs import grown_case, recipe_case
from benchmarks.peers.worker import PACKAGES, peer_class
from benchmarks.setting import Bars, threads

SECTIONS = ("mlp", "cnn", "agreement", "growth", "lds")
TIMES = ("fit", "self", "pairs")
SPEED_BARS = {"mlp": 150.0, "cnn": 20.0}
EPOCH_BARS = {"mlp": (2.0, 1.2), "cnn": (3.0, 1.7)}


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        rows: of kronfluence and ours.
        fewer: of the others, which take longer a row or cover less.
        growth: of kronfluence in the table of growth.
        lds: rows, queries, subsets, repeats.
    """

    rows: int = 1000
    fewer: int = 250
    growth: int = 250
    lds: tuple[int, int, int, int] = (1000, 100, 100, 1)


FULL, QUICK = Sizes(), Sizes(128, 128, 64, (200, 20, 10, 1))


def side_by_side(name: str, sizes: Sizes, bars: Bars) -> None:
    """Print the table of one model."""
    whole = recipe_case(name, 4000)
    for rows, rivals in ((sizes.rows, ["kronfluence"]), (sizes.fewer, [p for p in PACKAGES if p != "kronfluence"])):
        case = whole.first(rows)
        _head(f"{name}, {rows:,} rows")
        ours = run(case, "unlearn")
        print(_line(ours, ours))
        for package in available([p for p in rivals if p != "unlearn"]):
            try:
                found = run(case, package)
            except PeerError as error:
                print(f"| {package} | failed: {error} " + "| " * 8 + "|")
                continue
            print(_line(found, ours))
            if package == "kronfluence":
                ratio, rank = (
                    found.fit_and_self / ours.fit_and_self,
                    agreement(ours.scores["self"], found.scores["self"]),
                )
                apart = (found.fit_and_self - found.figures["eigen"]) / (ours.fit_and_self - ours.figures["eigen"])
                bars.hold(f"{name}: kronfluence / ours, fit and self-influence", ratio, SPEED_BARS[name], at_least=True)
                bars.hold(f"{name}: the same without eigendecompositions", apart, SPEED_BARS[name], at_least=True)
                bars.hold(f"{name}: Spearman's correlation of self-influence", rank[0], 0.99, at_least=True)
            sys.stdout.flush()
    ours = run(whole, "unlearn", steps=("self",))
    for step, bar in zip(("fit", "self"), EPOCH_BARS[name], strict=True):
        bars.hold(f"{name}: {step} on {len(whole):,} rows, epochs", ours.epochs(step) or 0.0, bar)


def _head(title: str) -> None:
    print(f"\n### {title}\n")
    print(
        "| package | batch | fit | eigendecompositions | self-influence | pairwise | memory | "
        "fit and self / ours | self agrees | pairwise agrees |"
    )
    print("|---" * 10 + "|")


def _line(found: Measured, ours: Measured) -> str:
    figures = found.figures
    cells = [found.package, _batches(found)]
    cells.append(_time(found, "fit"))
    cells.append(f"{figures['eigen']:.2f} s")
    cells += [_time(found, name) for name in ("self", "pairs")]
    cells.append(f"{figures['peak']:,.0f} MB")
    cells.append(f"{found.fit_and_self / ours.fit_and_self:.3g}" if "self" in figures else "-")
    for name in ("self", "pairs"):
        if found is ours or name not in found.scores:
            cells.append("-")
        else:
            rank, difference = agreement(ours.scores[name], found.scores[name])
            cells.append(f"{rank:.4f}, {difference:.1e}")
    linear = " (Linear layers only)" if peer_class(found.package).ONLY_LINEAR else ""
    return "| " + " | ".join([cells[0] + linear, *cells[1:]]) + " |"


def _batches(found: Measured) -> str:
    sizes = [str(size) for size in found.batches.values()]
    return "/".join(sizes) if any(found.batches.values()) else "default"


def _time(found: Measured, name: str) -> str:
    epochs = found.epochs(name)
    return "-" if epochs is None else f"{found.figures[name]:.3g} s ({epochs:.3g} ep.)"


def exact_values(sizes: Sizes) -> None:
    """Print how far values are apart from curvlinops's in float64, and from dattri's where its formula is right."""
    print("\n### The same matrices: largest difference by the largest entry, float64\n\n| | MLP | CNN |\n|---|---|---|")
    cases = [recipe_case(name, 4000).first(sizes.fewer) for name in ("mlp", "cnn")]
    if "curvlinops" in available():
        from benchmarks.peers.curvlinops import exact_agreement

        found = [exact_agreement(case) for case in cases]
        for what in found[0]:
            print(f"| curvlinops: {what} | {found[0][what]:.1e} | {found[1][what]:.1e} |")
    if "dattri" in available():
        from benchmarks.peers.dattri import mended_agreement

        print(
            f"| dattri, mended (see its file), two layers without bias, float32 | {mended_agreement(cases[0]):.1e} | |"
        )


def growth(sizes: Sizes) -> None:
    """Print times by rows, width and classes."""
    print("\n### Growth: ours, and kronfluence on the first " + f"{sizes.growth} rows of the same case\n")
    print(
        "| case | parameters | epoch | our fit | eigendecompositions | our self-influence | fit and self, us a row | "
        "kronfluence, us a row | ratio without eigendecompositions |"
    )
    print("|---" * 9 + "|")
    jobs: list[tuple[str, str, int, dict[str, object], bool]] = [
        ("rows", "mlp", 1000, {}, True),
        ("rows", "mlp", 4000, {}, False),
        ("rows", "mlp", 16000, {}, False),
        ("rows", "cnn", 1000, {}, True),
        ("rows", "cnn", 4000, {}, False),
        ("rows", "cnn", 16000, {}, False),
        ("width", "mlp", 4000, {"widths": (128, 64)}, True),
        ("width", "mlp", 4000, {"widths": (1024, 512)}, True),
        ("width", "cnn", 4000, {"widths": (16, 32)}, True),
        ("classes", "mlp", 4000, {"classes": 100}, True),
        ("classes", "mlp", 4000, {"classes": 1000}, True),
    ]
    for what, name, rows, options, rival in jobs:
        case = grown_case(name, rows if sizes is FULL else rows // 8, **options)  # type: ignore[arg-type]
        _grown(
            f"{name}, {what}: " + (f"{len(case):,}" if what == "rows" else str(*options.values())), case, sizes, rival
        )


def _grown(title: str, case: Case, sizes: Sizes, rival: bool) -> None:
    ours = run(case, "unlearn", steps=("self",))
    micro = _per_row(ours, len(case))
    cells = [title, f"{sum(p.numel() for p in case.model.parameters()):,}", f"{ours.figures['epoch']:.3g} s"]
    cells += [_time(ours, "fit"), f"{ours.figures['eigen']:.2f} s", _time(ours, "self"), f"{micro:.3g}"]
    if rival and "kronfluence" in available():
        theirs = _per_row(run(case.first(sizes.growth), "kronfluence", steps=("self",), batch=32), sizes.growth)
        cells += [f"{theirs:.3g}", f"{theirs / micro:.3g}"]
    else:
        cells += ["-", "-"]
    print("| " + " | ".join(cells) + " |")
    sys.stdout.flush()


def _per_row(found: Measured, rows: int) -> float:
    return 1e6 * (found.figures["fit"] + found.figures["self"]) / rows


def main(words: list[str]) -> None:
    """Print the tables and the bars."""
    sizes = QUICK if "--quick" in words else FULL
    chosen = [word for word in words if word in SECTIONS] or SECTIONS
    torch.set_num_threads(1)
    print(" ".join(["# python -m benchmarks.peers", *words]))
    packages = (f"{package} {installed(package) or '(not installed)'}" for package in PACKAGES)
    print(f"\n{threads()}; {', '.join(packages)}\n\n{' '.join((__doc__ or '').split(chr(10), 2)[2].split())}")
    bars = Bars()
    for name in ("mlp", "cnn"):
        if name in chosen:
            side_by_side(name, sizes, bars)
    if "agreement" in chosen:
        exact_values(sizes)
    if "growth" in chosen:
        growth(sizes)
    if "lds" in chosen:
        from benchmarks.peers import lds

        print(lds.table(*sizes.lds))
    if bars.lines:
        print(str(bars).replace("mean over seeds", "one seed"))


if __name__ == "__main__":
    main(sys.argv[1:])
