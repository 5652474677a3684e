"""Requests one after another: how far are all deleted rows from a retrain without them, and what does one cost?"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
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


def series(count: int = 100, every: int = 25, references: int = 5, seed: int = 0) -> list[dict[str, float]]:
    """Answer requests of 1 to 4 rows one by one; return a line of measurements after every so many."""
    place = Path(tempfile.mkdtemp(prefix="unlearn-sequence-"))
    keys, folder = make_keys(place / "keys"), trained_run(place / "run", RECIPE)
    draw, lines, costs = random.Random(seed), [], []
    with Desk.open(folder, keys=keys, who="dpo", clock=Clock(), create=True) as desk:
        order = list(desk.run.data.ids)
        draw.shuffle(order)
        begun = time.process_time()
        train(desk.run.build(), desk.run.data, desk.run.settings)
        epoch = (time.process_time() - begun) / desk.run.recipe.train.epochs
        for number in range(1, count + 1):
            submit(desk, ids=[order.pop() for _ in range(draw.randint(1, 4))])
            begun = time.process_time()
            state = process(desk)
            if state.held is not None:
                state = approve(desk, number, reason="measured at the end")
            spent = time.process_time() - begun
            batch = state.batches[state.current]
            cost = batch.edited["answer"]["cost"]
            costs.append((batch.method, cost, spent / epoch))
            if number % every == 0:
                lines.append(_measured(desk, number, references, costs))
                costs = []
    shutil.rmtree(place)
    return lines


def _measured(
    desk: Desk, number: int, references: int, costs: list[tuple[str, dict[str, float], float]]
) -> dict[str, float]:
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
    edits = [cost for method, cost, _ in costs if method == "edit"]
    mean = lambda values: sum(values) / len(values) if values else float("nan")  # noqa: E731
    return {
        "requests": float(number),
        "rows deleted": float(len(gone)),
        "retrains": float(sum(batch.method == "retrain" for batch in state.batches.values())),
        "drift": state.drift(),
        "phi error / spread": float((own - wanted).square().mean().sqrt()) / spread,
        "unedited": float((phi_of(original, gone) - wanted).square().mean().sqrt()) / spread,
        "factors": mean([cost["factors"] for cost in edits]),
        "solve": mean([cost["solve"] for cost in edits]),
        "replay": mean([cost["replay"] for cost in edits]),
        "CPU, all steps": mean([spent for method, _, spent in costs if method == "edit"]),
    }


def sequence(count: int = 100, every: int = 25) -> None:
    """Print the table."""
    lines, bars = series(count, every), Bars()
    print(
        f"\n### {count} requests of 1 to 4 rows, one after another (digits, MLP, 15 epochs, budget 1)\n\n"
        "phi error of all deleted rows against a retrain without them, in spreads of 5 independent retrains; cost of "
        "one request in training epochs by part, the preconditioner's factors apart (fitted here for each request); "
        "CPU is edit, checkpoint, certificate and ledger together, over the CPU time of one epoch.\n"
    )
    print(f"| {' | '.join(lines[0])} |\n|{'---|' * len(lines[0])}")
    for line in lines:
        print(f"| {' | '.join(f'{value:.3g}' for value in line.values())} |")
    worst = max(line["phi error / spread"] for line in lines)
    bars.hold("phi error of all deleted rows / spread (worst line)", worst, 1.5)
    bars.hold("cost of one request without factors, training epochs", lines[0]["solve"] + lines[0]["replay"], 3.0)
    print(bars)
