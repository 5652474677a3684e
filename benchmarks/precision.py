"""What half precision does to scores and edits, and what it takes: ``python -m benchmarks.precision [--quick]``.

A recipe's original model. Passes in bfloat16 and float16 are those of ``unlearn.half_precision``; "bfloat16 weights" is
the model rounded to bfloat16. All are held against a copy in float64, on the same rows: factors and scores (EK-FAC,
damping a tenth of the mean eigenvalue), and edits of the final weights that remove 20 mislabelled rows.

Times are CPU seconds of this process by those of float32, run in turns, medians of rounds. The last table says what
compiled passes or the channels-last format would give: for the passes alone, and for the whole fit.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, TypeVar

import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks.numerics import doubled, flat, relative
from benchmarks.setting import Bars, Setting, threads
from unlearn import half_precision
from unlearn.curvature import fit_curvature
from unlearn.data import Rows
from unlearn.detect import gif_scores, self_influence
from unlearn.errors import InputError
from unlearn.predict import predict
from unlearn.repair import Changes, apply_changes
from unlearn.training import TrainingRecord

RECIPES = {"mlp": "mnist5k-relabel", "cnn": "mnist5k-cnn-relabel"}
QUICK = {"digits": "digits-quick"}
EDITS: dict[str, dict[str, Any]] = {"unrolled": {}, "newton": {"method": "newton"}}
CHANGED = 20
ROUNDS = 3
BATCH = 512
WIDEST, USUAL = "float64", "float32"
BARS = {"bfloat16": (0.99, 0.05, 0.1), "float16": (0.999, 0.01, None)}
"""Least rank correlation and largest relative error of scores, largest distance of an edit by its length."""
AUROC_BAR = 0.005

Result = TypeVar("Result")


@dataclass(frozen=True)
class Case:
    """A model and rows in a type, and the context that its passes are run in."""

    model: nn.Module
    rows: Rows
    context: Callable[[], AbstractContextManager[None]] = nullcontext


def in_type(rows: Rows, dtype: torch.dtype) -> Rows:
    """Return the rows with inputs of a type."""
    inputs, labels = rows.batch(torch.arange(len(rows)))
    assert isinstance(inputs, Tensor)
    return Rows.from_tensors(inputs.to(dtype), labels, ids=rows.ids, classes=rows.classes)


def cases(model: nn.Module, rows: Rows) -> dict[str, Case]:
    """Return the precisions, float64 first."""
    return {
        WIDEST: Case(copy.deepcopy(model).double(), doubled(rows)),
        USUAL: Case(model, rows),
        "bfloat16": Case(model, rows, lambda: half_precision(torch.bfloat16)),
        "float16": Case(model, rows, lambda: half_precision(torch.float16)),
        "bfloat16 weights": Case(copy.deepcopy(model).bfloat16(), in_type(rows, torch.bfloat16)),
    }


def timed(run: Callable[[], Result]) -> tuple[Result, float]:
    """Return what a call returns, and its CPU seconds."""
    start = time.process_time()
    found = run()
    return found, time.process_time() - start


def scored(case: Case, weight_decay: float) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the values of both scores, and the CPU seconds of the fit and of each."""
    with case.context():
        curvature, spent = timed(lambda: fit_curvature(case.model, case.rows))
        values, seconds = {}, {"fit": spent}
        for name, score in {"self-influence": self_influence, "GIF": gif_scores}.items():
            found, seconds[name] = timed(
                lambda score=score: score(  # type: ignore[misc]
                    case.model, case.rows, curvature=curvature, weight_decay=weight_decay
                )
            )
            values[name] = torch.from_numpy(found.values)
    return values, seconds


def edited(case: Case, changes: Changes, record: TrainingRecord, options: dict[str, Any]) -> dict[str, Tensor] | None:
    """Return the edited weights; None where the edit is refused."""
    on = replace(record, data_fingerprint=None)
    with case.context():
        try:
            edit = apply_changes(case.model, case.rows, changes, record=on, budget=0, **options)
        except InputError:
            return None
    return {name: p.detach().double() for name, p in edit.model.named_parameters()}


def accuracy(name: str, recipe: str, rounds: int, bars: Bars) -> None:
    """Print the tables of one recipe."""
    setting = Setting.of(recipe, 0)
    model, record, _ = setting.trained
    rows, decay = setting.data, record.weight_decay
    assert rows.truth is not None
    wrong = (rows.truth != rows.labels).numpy()
    by_type = cases(model, rows)
    found: dict[str, dict[str, Tensor]] = {}
    seconds: dict[str, dict[str, list[float]]] = {kind: {} for kind in by_type}
    for k in range(rounds):
        for kind, case in by_type.items():
            if kind == "float16" and k > 0:
                continue  # many times as slow where the processor has no float16
            found[kind], spent = scored(case, decay)
            for what, part in spent.items():
                seconds[kind].setdefault(what, []).append(part)
    print(f"\n### {name}: scores of {len(rows)} rows, against float64\n")
    print("Spearman's correlation; distance of the scores by their length; AUROC of the mislabelled rows.\n")
    print(
        "| passes | self-influence, rank | error | AUROC | GIF, rank | error | AUROC |\n|---|---|---|---|---|---|---|"
    )
    exact = found[WIDEST]
    for kind, values in found.items():
        cells = []
        for score, value in values.items():
            rank, error = float(spearmanr(value, exact[score]).statistic), relative(value, exact[score])
            auroc = float(roc_auc_score(wrong, value))
            cells += [f"{rank:.6f}", f"{error:.1e}", f"{auroc:.4f}"]
            if kind in BARS:
                bars.hold(f"{name}, {kind}: rank correlation of {score}", rank, BARS[kind][0], at_least=True)
                bars.hold(f"{name}, {kind}: relative error of {score}", error, BARS[kind][1])
                lost = abs(auroc - float(roc_auc_score(wrong, exact[score])))
                bars.hold(f"{name}, {kind}: AUROC of {score} moves by", lost, AUROC_BAR)
        print(f"| {kind} | {' | '.join(cells)} |")
    print(f"\n### {name}: CPU time, ratios to float32\n")
    print("| passes | fit | self-influence | GIF |\n|---|---|---|---|")
    usual = {what: median(parts) for what, parts in seconds[USUAL].items()}
    for kind, spent_by in seconds.items():
        cells = [f"{median(parts) / usual[what]:.2f}" for what, parts in spent_by.items()]
        print(f"| {kind} | {' | '.join(cells)} |")
    edits(name, by_type, setting.flipped(CHANGED), record, bars)


def edits(name: str, by_type: dict[str, Case], changes: Changes, record: TrainingRecord, bars: Bars) -> None:
    """Print how far edits lie from those in float64."""
    print(f"\n### {name}: edits that remove {len(changes.ids)} rows, against those in float64\n")
    print(
        "Distance of the edited weights, and of their logits on the rows that stay, by the length of the change in "
        "float64. Rounding to bfloat16 weights is part of it.\n"
    )
    print("| passes | " + " | ".join(f"{how}, weights | logits" for how in EDITS) + " |")
    print("|---" * (1 + 2 * len(EDITS)) + "|")
    wide = by_type[WIDEST]
    kept = wide.rows.without(changes.ids)
    weights = {name: p.detach() for name, p in wide.model.named_parameters()}
    before, length, goal, asked = predict(wide.model, kept), {}, {}, {}
    lines = {}
    for kind, case in by_type.items():
        cells = []
        start = {name: p.detach().double() for name, p in case.model.named_parameters()}
        for how, options in EDITS.items():
            after = edited(case, changes, record, options)
            if after is None:
                cells += ["refused", "refused"]
                continue
            step = flat(after) - flat(start)
            moved = copy.deepcopy(wide.model)
            moved.load_state_dict({**moved.state_dict(), **{n: weights[n] + after[n] - start[n] for n in after}})
            logits = predict(moved, kept) - before
            if kind == WIDEST:
                length[how], goal[how], asked[how] = step.norm(), step, logits
            distance = float((step - goal[how]).norm() / length[how])
            cells += [f"{distance:.1e}", f"{relative(logits, asked[how]):.1e}"]
            limit = BARS.get(kind, (0.0, 0.0, None))[2]
            if limit is not None:
                bars.hold(f"{name}, {kind}: distance of the {how} edit", distance, limit)
        lines[kind] = cells
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


def formats(name: str, recipe: str, rounds: int) -> None:
    """Print what compiled passes and channels-last weights take, by the plain ones."""
    setting = Setting.of(recipe, 0)
    model, rows = setting.trained[0].eval(), setting.data
    inputs, _ = rows.batch(torch.arange(min(BATCH, len(rows))))
    assert isinstance(inputs, Tensor)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = torch.compile(copy.deepcopy(model))
    x_last = inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs

    def passes(net: Callable[[Tensor], Tensor], x: Tensor) -> None:
        for _ in range(8):
            net(x).sum().backward()  # type: ignore[no-untyped-call]

    _, first = timed(lambda: net_once(compiled, inputs))
    things: dict[str, Callable[[], object]] = {
        "passes": lambda: passes(model, inputs),
        "passes, compiled": lambda: passes(compiled, inputs),
        "passes, channels-last": lambda: passes(last, x_last),
        "fit": lambda: fit_curvature(model, rows),
        "fit, compiled model (run uncompiled)": lambda: fit_curvature(compiled, rows),
        "fit, channels-last": lambda: fit_curvature(last, rows),
    }
    spent = {what: median(timed(run)[1] for _ in range(rounds)) for what, run in things.items()}
    fitted = spent["fit"]
    print(f"\n### {name}: compiled, and channels-last\n")
    print(
        f"8 forward and backward passes of {len(inputs)} rows, and a fit. Compiling takes "
        f"{first / fitted:.1f} times a fit.\n"
    )
    print("| | ratio |\n|---|---|")
    for what, part in spent.items():
        print(f"| {what} | {part / spent[what.split(',')[0]]:.2f} |")
    share = spent["passes"] / 8 * len(rows) / len(inputs) / fitted
    print(f"| the passes' share of a fit | {share:.2f} |")


def net_once(net: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Run a net forward and backward once; the first time it is compiled."""
    net(x).sum().backward()  # type: ignore[no-untyped-call]


def main(words: list[str]) -> None:
    """Print the tables and the bars."""
    quick = "--quick" in words
    print(" ".join(["# python -m benchmarks.precision", *words]))
    print(f"\n{threads()}, {torch.backends.cpu.get_cpu_capability()}; one seed")
    bars, chosen = Bars(), QUICK if quick else RECIPES
    for name, recipe in chosen.items():
        accuracy(name, recipe, 1 if quick else ROUNDS, bars)
        formats(name, recipe, 1 if quick else ROUNDS)
    print(str(bars).replace("mean over seeds", "one seed"))


if __name__ == "__main__":
    main(sys.argv[1:])
