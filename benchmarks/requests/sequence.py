"""Requests one after another: how far are all deleted rows from a retrain without them, and what does one cost?"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.requests.stories import Clock, trained_run
from benchmarks.setting import Bars
from unlearn.data import Rows
from unlearn.models import build_model
from unlearn.predict import predict
from unlearn.requests import Desk, approve, make_keys, process, submit
from unlearn.requests.answer import changes_of, model_after
from unlearn.tasks import phi
from unlearn.training import train

RECIPE = """
name = "requests-sequence"
description = "Digits, many small requests, every batch approved by hand; no references are trained on the way."
data.source = "digits"
model = { name = "mlp", options = { inputs = 64, classes = 10, widths = [64] } }
train = { epochs = 15, batch_size = 64, weight_decay = 1e-3 }
repair = { budget = 1.0 }
verify = { references = 0 }
requests = { release = "verified" }
"""


def phi_of(model: torch.nn.Module, rows: Rows) -> torch.Tensor:
    """Return phi at the rows' labels, (n,)."""
    return phi(predict(model, rows), rows.labels).double()


def retrains(desk: Desk, rows: Rows, count: int) -> list[torch.nn.Module]:
    """Train on these rows under ``count`` seeds."""
    model, settings = desk.run.recipe.model, desk.run.settings
    return [
        train(build_model(model.name, seed=seed, **model.options), rows, settings, seed=seed)[0]
        for seed in range(1000, 1000 + count)
    ]


@dataclass(frozen=True)
class Request:
    """What answering one request took, in training epochs.

    Attributes:
        method: of the batch.
        cost: counted passes by part.
        edit: CPU of edit and checkpoint, over the CPU of one epoch.
        all_steps: the same of everything, certificate and ledger included.
    """

    method: str
    cost: dict[str, float]
    edit: float
    all_steps: float

    @property
    def cached(self) -> bool:
        """Whether the curvature of an earlier request served."""
        return self.method == "edit" and self.cost["factors"] == 0


class Stopwatch:
    """CPU time at the points that a desk passes."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    def __call__(self, point: str) -> None:
        """Note the time."""
        self.at[point] = time.process_time()


def series(
    count: int = 100, every: int = 25, references: int = 5, seed: int = 0, recipe: str = RECIPE
) -> tuple[list[dict[str, float]], list[Request]]:
    """Answer requests of 1 to 4 rows one by one; return measurements after every so many, and what each took."""
    place = Path(tempfile.mkdtemp(prefix="unlearn-sequence-"))
    keys, folder = make_keys(place / "keys"), trained_run(place / "run", recipe)
    draw, lines, found, watch = random.Random(seed), [], [], Stopwatch()
    with Desk.open(folder, keys=keys, who="dpo", clock=Clock(), fault=watch, create=True) as desk:
        order = list(desk.run.data.ids)
        draw.shuffle(order)
        watch("training")
        train(desk.run.build(), desk.run.data, desk.run.settings)
        epoch = (time.process_time() - watch.at["training"]) / desk.run.recipe.train.epochs
        for number in range(1, count + 1):
            submit(desk, ids=[order.pop() for _ in range(draw.randint(1, 4))])
            watch("begun")
            state = process(desk)
            if state.held is not None:
                state = approve(desk, number, reason="measured at the end")
            watch("ended")
            batch = state.batches[state.current]
            edit, whole = (
                (watch.at[b] - watch.at[a]) / epoch for a, b in (("batch opened", "answer saved"), ("begun", "ended"))
            )
            found.append(Request(batch.method, batch.edited["answer"]["cost"], edit, whole))
            if number % every == 0:
                lines.append(_measured(desk, number, references))
    shutil.rmtree(place)
    return lines, found


def _measured(desk: Desk, number: int, references: int) -> dict[str, float]:
    state = desk.state()
    changes = changes_of(desk, (state.batches[k] for k in state.stack))
    gone, left = desk.run.data.only(changes.removed), changes.apply(desk.run.data)
    model, _ = model_after(desk.run, state.current, state)
    coupled = train(desk.run.build(), left, desk.run.settings, seed=desk.run.recipe.train.train_seed)[0]
    own, wanted = phi_of(model, gone), phi_of(coupled, gone)
    others = torch.stack([phi_of(one, gone) for one in retrains(desk, left, references)])
    pairs = [(others[a] - others[b]).square().mean() for a in range(references) for b in range(a)]
    spread = float(torch.stack(pairs).mean().sqrt())
    original, _ = model_after(desk.run, 0, state)
    return {
        "requests": float(number),
        "rows deleted": float(len(gone)),
        "retrains": float(sum(batch.method == "retrain" for batch in state.batches.values())),
        "drift": state.drift(),
        "phi error / spread": float((own - wanted).square().mean().sqrt()) / spread,
        "unedited": float((phi_of(original, gone) - wanted).square().mean().sqrt()) / spread,
    }


def latency(found: list[Request]) -> dict[str, list[float]]:
    """Return, for requests that fitted curvature and for those that found it, number and means in training epochs."""
    rows = {}
    for name, some in {
        "fitted for this request": [one for one in found if one.method == "edit" and not one.cached],
        "cached": [one for one in found if one.cached],
    }.items():
        columns = [[one.cost[part] for one in some] for part in ("factors", "solve", "replay")]
        columns += [[one.edit for one in some], [one.all_steps for one in some]]
        rows[name] = [float(len(some)), *(sum(one) / len(one) if one else float("nan") for one in columns)]
    return rows


def sequence(count: int = 100, every: int = 25) -> None:
    """Print the tables."""
    (lines, found), bars = series(count, every), Bars()
    print(
        f"\n### {count} requests of 1 to 4 rows, one after another (digits, MLP, 15 epochs, budget 1)\n\n"
        "phi error of all deleted rows against a retrain without them, in spreads of 5 independent retrains.\n"
    )
    print(f"| {' | '.join(lines[0])} |\n|{'---|' * len(lines[0])}")
    for line in lines:
        print(f"| {' | '.join(f'{value:.3g}' for value in line.values())} |")
    print(
        "\n### Latency of one small request with cached curvature, in training epochs\n\n"
        "Means. Counted passes by part, then CPU over the CPU of one epoch: of edit and checkpoint, and of all steps "
        "(certificate, ledger and measurements of the verification included; no retrains).\n\n"
        "| curvature | requests | factors | solve | replay | CPU, edit and checkpoint | CPU, all steps |\n"
        f"|{'---|' * 7}"
    )
    rows = latency(found)
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{value:.3g}' for value in row)} |")
    worst = max(line["phi error / spread"] for line in lines)
    bars.hold("phi error of all deleted rows / spread (worst line)", worst, 1.5)
    bars.hold("counted cost of one request with cached curvature, training epochs", sum(rows["cached"][1:4]), 3.0)
    print(bars)
